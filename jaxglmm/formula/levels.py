"""Levels: which labels a column has, in which order, and the code of every row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from ..ops.codes import whole_codes
from .columns import KIND_WORDS, Column


_SPREAD = 64  # times as many numbers as rows may lie between the least and the largest of a table of numbers by value
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}")


def factorize(column: Column, wanted: Sequence[Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes and levels of a column: (codes (n,) int32 with -1 for missing, levels (G,)).

    Only levels that occur are kept. Their order is `wanted` if given, else a category's own, else
    sorted; text that is all whole numbers sorts as numbers.

    Raises
    ------
    DataError
        When `wanted` lacks a level that occurs, and names it.
    """
    codes, labels, ordered = _distinct(column)
    if wanted is not None:
        order = _wanted_order(column.name, labels, wanted)
    elif ordered:
        return codes, labels
    else:
        order = sort_order(labels)
    rank = np.empty(len(labels), dtype=np.int32)
    rank[order] = np.arange(len(labels), dtype=np.int32)
    if column.missing is None:
        return rank[codes], labels[order]
    return np.where(codes < 0, np.int32(-1), rank[codes]) if len(rank) else codes, labels[order]


def sort_order(labels: np.ndarray) -> np.ndarray:
    """The permutation that sorts labels; text that is all whole numbers sorts as numbers."""
    if labels.dtype != object:
        return np.argsort(labels, kind="stable")
    if len(labels) and all(WHOLE_NUMBER.fullmatch(v) for v in labels[:8]):
        if all(WHOLE_NUMBER.fullmatch(v) for v in labels):
            return np.lexsort((labels.astype(str), labels.astype(np.int64)))
    return np.asarray(pd.Index(labels, dtype="str").argsort())


def match(column: Column, levels: np.ndarray) -> np.ndarray:
    """Codes (n,) int32 of a new column in an old level table: -1 where missing or unseen.

    Raises
    ------
    DataError
        When the column is of another type than the levels, so that nothing could match.
    """
    if column.labels is not None:
        _check_kind(column, column.labels, levels)
        lookup = pd.Index(levels).get_indexer(pd.Index(column.labels)).astype(np.int32)
        return np.where(column.values < 0, np.int32(-1), lookup[column.values]) if len(lookup) else column.values
    _check_kind(column, column.values, levels)
    codes = pd.Index(levels).get_indexer(pd.Index(column.values)).astype(np.int32)
    if column.missing is not None:
        codes[column.missing] = -1
    return codes


def labels_of_rows(column: Column, levels: np.ndarray) -> np.ndarray:
    """The label of every row, None where missing; whole numbers as integers where the levels are."""
    if column.labels is not None:
        if not len(column.labels):
            return np.full(len(column), None, dtype=object)
        values = column.labels[column.values]
    else:
        values = column.values
        if column.kind == "number":
            whole = levels.dtype.kind == "i"
            values = _labels_of(values, column.missing) if whole else values.astype(np.float64, copy=False)
    if column.missing is not None:
        values = values.astype(object)
        values[column.missing] = None
    return values


def _check_kind(column: Column, values: np.ndarray, levels: np.ndarray) -> None:
    family = {"i": "numbers", "f": "numbers", "u": "numbers", "b": "true/false values", "O": "text"}
    found, expected = family.get(values.dtype.kind, "dates"), family.get(levels.dtype.kind, "dates")
    everything_missing = column.missing is not None and bool(column.missing.all())
    if found != expected and len(values) and not everything_missing:
        raise DataError(
            f"column {column.name!r} holds {found} ({values[0]!r}), and the model was fitted to {expected} "
            f"({levels[0]!r}) there; convert the column to the type that it had."
        )


def _distinct(column: Column) -> tuple[np.ndarray, np.ndarray, bool]:
    """(codes with -1 for missing, labels that occur, whether the labels are in their order)."""
    values, missing = column.values, column.missing
    if column.labels is not None:
        codes, labels = _occurring(values, len(column.labels), missing)
        return codes, column.labels[labels], column.kind == "category"
    if column.kind == "boolean":
        codes, labels = _occurring(values, 2, missing)
        return codes, labels.astype(bool), True
    if column.kind == "number":
        values = _labels_of(values, missing)
    if values.dtype.kind == "i" and len(values):
        low, high = int(values.min()), int(values.max())
        if high - low < max(_SPREAD * len(values), 1024):
            codes, labels = whole_codes(values, low, high, missing)
            return codes, labels, True
    codes, labels = pd.factorize(values)
    if missing is None:
        return codes.astype(np.int32), np.asarray(labels), False
    codes, kept = _occurring(codes, len(labels), missing)
    return codes, np.asarray(labels)[kept], False


def _occurring(codes: np.ndarray, size: int, missing: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Drop codes that do not occur: (new codes int32, the old codes that are left, in order)."""
    return whole_codes(codes, 0, max(size, 1) - 1, missing)


def _labels_of(values: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    """Numbers as labels: float64, or int64 if all are whole, since a column of integers with a gap comes as floats."""
    if values.dtype.kind != "f":
        return values.astype(np.int64, copy=False)
    filled = (values if missing is None else np.where(missing, 0.0, values)).astype(np.float64, copy=False)
    whole = len(filled) and np.all(filled == np.rint(filled)) and np.abs(filled).max() < 2**53
    return filled.astype(np.int64) if whole else values.astype(np.float64, copy=False)


def label_key(value: Any) -> str:
    """A label as text: 1, 1.0 and "1" are the same level when an order is given by hand."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _wanted_order(name: str, labels: np.ndarray, wanted: Sequence[Any]) -> np.ndarray:
    if isinstance(wanted, str) or not isinstance(wanted, Sequence | np.ndarray):
        raise DataError(f"levels[{name!r}] is {wanted!r}; expected a list of levels in their order, or 'categorical'.")
    place = {label_key(v): i for i, v in enumerate(wanted)}
    if len(place) != len(wanted):
        raise DataError(f"levels[{name!r}] lists a level twice: {list(wanted)}.")
    keys = [label_key(v) for v in labels]
    lost = [k for k in keys if k not in place]
    if lost:
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise DataError(
            f"levels[{name!r}] lacks {', '.join(map(repr, lost[:5]))}{more}, which the column has; list every level "
            f"({list(wanted)[:20]} given), or drop those rows."
        )
    return np.argsort([place[k] for k in keys], kind="stable").astype(np.intp)


def describe(column: Column) -> str:
    """What a column holds, for messages."""
    return KIND_WORDS[column.kind]
