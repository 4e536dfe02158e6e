"""Levels: which labels a column has, in which order, and the code of every row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ..errors import DataError
from ..ops.codes import whole_codes
from ..ops.memory import need_int32
from .columns import KIND_WORDS, Column
from .spelling import label_key, pc, spelled, typed


_SPREAD = 64  # times as many numbers as rows may lie between the least and the largest of a table of numbers by value
_WHOLE = re.compile(r"[+-]?\d{1,4000}")
_EXACT = 2**53  # whole numbers up to here have a float of their own
_PADDED = r"^\s*[+-]?[0-9]+(\.0*)?\s*$"  # text that is a whole number, if maybe not as it is written


def factorize(column: Column, wanted: Sequence[Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes and levels of a column: (codes (n,) int32 with -1 for missing, levels (G,)).

    Only levels that occur are kept. Their order is `wanted` if given, else a category's own, else
    sorted; text that is all whole numbers sorts as numbers.

    Raises
    ------
    DataError
        When `wanted` lacks a level that occurs, and names it.
    """
    column = column.as_labels
    codes, labels, ordered = _distinct(column)
    need_int32(f"levels of {column.name!r}", len(labels))
    if column.from_text and labels.dtype == object:
        labels = typed(labels)
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
    if len(labels) and all(_WHOLE.fullmatch(v) for v in labels[:8]):
        if all(_WHOLE.fullmatch(v) for v in labels):
            if max(map(len, labels)) < 19:
                return np.lexsort((labels.astype(str), labels.astype(np.int64)))
            return np.array(sorted(range(len(labels)), key=lambda i: (int(labels[i]), labels[i])))
    return np.asarray(pd.Index(labels, dtype="str").argsort())


def match(column: Column, levels: np.ndarray) -> np.ndarray:
    """Codes (n,) int32 of a new column in an old level table: -1 where missing or unseen.

    Numbers match numbers of the same value, of whatever type. Between whole numbers and text a match is the text by
    which the number is written, 501 and "501": among the levels always, in the new column where it is the text of a
    file (text of a data frame is of another type than numbers).

    Raises
    ------
    DataError
        When the column is of another type than the levels, so that nothing could match; when a number and a label are
        the same number in two spellings, as 501 and "00501"; for floats that stand for several whole numbers.
    """
    column = column.as_labels
    if column.labels is not None:
        present = whole_codes(column.values, 0, max(len(column.labels), 1) - 1, column.missing)[1]
        lookup = np.full(max(len(column.labels), 1), -1, np.int32)
        if len(present):
            lookup[present] = _lookup(column, column.labels[present], levels)
        return np.where(column.values < 0, np.int32(-1), lookup[column.values])
    if column.kind == "number" and levels.dtype == object:
        codes, labels, _ = _distinct(column)
        found = np.append(_lookup(column, labels, levels), np.int32(-1)).astype(np.int32)
        return found[codes]
    everything_missing = column.missing is not None and bool(column.missing.all())
    if everything_missing or not len(column):
        return np.full(len(column), -1, np.int32)
    values = column.values
    if column.missing is not None and values.dtype.kind == "f":
        values = np.where(column.missing, np.nan, values)
    codes = _lookup(column, values, levels)
    if column.missing is not None:
        codes[column.missing] = -1
    return codes


def _lookup(column: Column, values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Places int32 of labels in a level table, -1 where they are not in it."""
    if not len(values):
        return np.zeros(0, np.int32)
    found, expected = _family(values), _family(levels)
    if found == expected:
        return _numbers_in(column.name, values, levels) if found == "numbers" else _index(levels, values)
    if found == "numbers" and expected == "text" and values.dtype.kind in "iu":
        return _numbers_in_text(column.name, values, levels)
    if found == "text" and column.from_text:
        return _text_in(column.name, values, levels)
    raise _another_type(column.name, values, levels)


def _family(values: np.ndarray) -> str:
    kinds = {"i": "numbers", "f": "numbers", "u": "numbers", "b": "true/false values", "O": "text", "U": "text"}
    return kinds.get(values.dtype.kind, "dates")


def _another_type(name: str, values: np.ndarray, levels: np.ndarray) -> DataError:
    return DataError(
        f"column {name!r} holds {_family(values)} ({_shown(values[0])}), and the model was fitted to {_family(levels)} "
        f"({_shown(levels[0])}) there; convert the column to the type that it had."
    )


def _shown(label: Any) -> str:
    if isinstance(label, np.datetime64 | np.timedelta64):
        return str(label)
    return repr(label.item() if isinstance(label, np.generic) else label)


def _two_spellings(name: str, one: Any, other: Any) -> DataError:
    return DataError(
        f"column {name!r} holds {_shown(one)}, and the model was fitted to {_shown(other)} there: one number in two "
        "spellings, which may be one label or two. Give the column the text that it had (leading zeros are lost where "
        "text is read as numbers)."
    )


def _index(levels: np.ndarray, values: np.ndarray) -> np.ndarray:
    return pd.Index(levels).get_indexer(pd.Index(values)).astype(np.int32)


def _numbers_in(name: str, values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Places of numbers among numbers, exactly: neither side is rounded to the type of the other."""
    kind, other = values.dtype.kind, levels.dtype.kind
    if kind == other:
        return _index(levels, values)
    if "f" not in (kind, other):  # int64 and uint64
        most = 2**63 - 1
        possible = values <= most if kind == "u" else values >= 0
        return np.where(possible, _index(levels, np.where(possible, values, 0).astype(levels.dtype)), np.int32(-1))
    if other == "f":
        codes = _index(levels, values.astype(np.float64))
        large = np.flatnonzero((np.abs(values.astype(np.float64)) >= _EXACT) & (codes >= 0))
        wrong = [i for i in large.tolist() if int(levels[codes[i]]) != int(values[i])]
        codes[wrong] = -1
        return codes
    if (np.abs(values) > _EXACT).any():
        first = values[np.argmax(np.abs(np.where(np.isnan(values), 0.0, values)) > _EXACT)]
        raise DataError(
            f"column {name!r} holds the float {_shown(first)}, which stands for several whole numbers, and the model "
            "was fitted to whole numbers there: a column of integers became one of floats, mostly because a value is "
            "missing. Pass it as a nullable integer (Int64) or as text."
        )
    whole = values == np.rint(values)  # not for NaN
    codes = _index(levels, np.where(whole, values, 0.0).astype(np.int64).astype(levels.dtype))
    return np.where(whole, codes, np.int32(-1))


def _numbers_in_text(name: str, values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    texts = spelled(values)
    codes = _index(levels, texts)
    if (codes < 0).any():
        table = pa.array(levels, pa.large_string())
        padded = levels[pc.match_substring_regex(table, _PADDED).to_numpy(zero_copy_only=False)]
        if not len(padded):
            if (codes < 0).all():
                raise _another_type(name, values, levels)
            return codes
        number = {text.strip().partition(".")[0]: text for text in padded.tolist()}
        number = {str(int(digits)): text for digits, text in number.items() if len(digits) < 4000}
        for value in texts[codes < 0].tolist():
            if value in number:
                raise _two_spellings(name, int(value), number[value])
    return codes


def _text_in(name: str, texts: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Places of a file's text among labels of another type, by what it stands for."""
    expected, labels = _family(levels), typed(texts)
    if expected == "dates":
        try:
            labels = pd.to_datetime(pd.Series(texts), format="ISO8601").to_numpy()
        except (ValueError, TypeError):
            raise _another_type(name, texts, levels) from None
    if _family(labels) == expected:
        codes = _numbers_in(name, labels, levels) if expected == "numbers" else _index(levels, labels)
    elif expected != "numbers":
        raise _another_type(name, texts, levels)
    else:
        codes = _some_numbers_in(name, texts, levels)
    hit, count = np.unique(codes[codes >= 0], return_counts=True)
    if (count > 1).any():
        twice = hit[np.argmax(count)]
        raise _two_spellings(name, texts[codes == twice].tolist(), levels[twice])
    return codes


def _some_numbers_in(name: str, texts: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """As `_text_in`, where only some of the text is that of numbers, or is not as they are written."""
    codes, numbers = np.full(len(texts), -1, np.int32), 0
    for i, text in enumerate(texts.tolist()):
        try:
            value = float(text)
        except ValueError:
            continue
        numbers += 1
        one = typed(texts[i : i + 1])
        if one.dtype != object:
            codes[i] = _numbers_in(name, one, levels)[0]
        elif (place := _index(levels.astype(np.float64), np.array([value]))[0]) >= 0:
            raise _two_spellings(name, text, levels[place])
    if not numbers:
        raise _another_type(name, texts, levels)
    return codes


def labels_of_rows(column: Column, levels: np.ndarray, raw: bool = False) -> np.ndarray:
    """The label of every row, a filler where missing; of the levels' type where nothing is lost by it.

    With `raw` the text of a file stays as it is, so that labels of the file's parts go together.
    """
    column = column.as_labels
    if column.labels is not None:
        if not len(column.labels):
            return np.full(len(column), "", dtype=object)
        labels = column.labels
        if column.from_text and not raw and levels.dtype != object:
            labels = typed(labels)
        return labels[column.values]
    values = column.values
    if column.kind == "number":
        whole = levels.dtype.kind != "f"
        values = _labels_of(values, column.missing) if whole else values.astype(np.float64, copy=False)
        if levels.dtype == object:
            values = spelled_rows(values)
    return values


def spelled_rows(values: np.ndarray) -> np.ndarray:
    """Labels of rows as text, object (n,)."""
    codes, labels = pd.factorize(values, use_na_sentinel=False)
    return spelled(np.asarray(labels))[codes]


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
    if values.dtype.kind == "u":
        return values.astype(np.int64 if values.dtype != np.uint64 else np.uint64, copy=False)
    if values.dtype.kind != "f":
        return values.astype(np.int64, copy=False)
    filled = (values if missing is None else np.where(missing, 0.0, values)).astype(np.float64, copy=False)
    whole = len(filled) and np.all(filled == np.rint(filled)) and np.abs(filled).max() < 2**53
    return filled.astype(np.int64) if whole else values.astype(np.float64, copy=False)


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
