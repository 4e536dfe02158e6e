"""The variables of a formula: each column as formulaic is to see it, at the fit and for new data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError, DataWarning
from .columns import Column
from .fixed import unseen_levels
from .levels import describe, factorize, match
from .spelling import label_key


@dataclass(frozen=True)
class Variable:
    """What a column was at the fit.

    Attributes
    ----------
    name
        The column.
    kind
        "number", "boolean" or "factor".
    levels
        For a factor, the labels that occurred, in order.
    """

    name: str
    kind: str
    levels: np.ndarray | None = None


def first_variable(
    column: Column, wanted: str | Sequence[Any] | None, plain: bool = False
) -> tuple[Variable, pd.Series]:
    """A column of the fitted data, without missing rows, as a variable and its values.

    Numbers become float64 (so that small integer types cannot overflow in `x^2`), or stay as they are if `plain`, where
    nothing is computed of them; text and categories become pandas categoricals of the levels that occur. `wanted` is
    the caller's `levels=` for the column.

    Raises
    ------
    DataError
        For dates, and for an order that lacks a level that occurs.
    """
    if wanted is None and column.kind in ("number", "boolean"):
        values = pd.Series(column.values, copy=False) if plain else _plain(column)
        return Variable(column.name, column.kind), values
    if wanted is None and column.kind == "time":
        raise DataError(
            f"column {column.name!r} holds {describe(column)}, which have no scale of their own; make a column of "
            "numbers (say, days since the start), or set levels={" + f"{column.name!r}: 'categorical'" + "}."
        )
    order = order_of(column.name, wanted)
    codes, levels = factorize(column, order)
    if order is not None:
        found = {label_key(v) for v in levels}
        unused = [v for v in order if label_key(v) not in found]
        if unused:
            warnings.warn(
                f"no row has the level {', '.join(map(repr, unused))} of {column.name!r}; it gets no coefficient.",
                DataWarning,
                stacklevel=2,
            )
    return Variable(column.name, "factor", levels), _factor(codes, levels)


def order_of(name: str, wanted: str | Sequence[Any] | None) -> Sequence[Any] | None:
    """The list in `levels[name]`, None when it only says "categorical"."""
    if isinstance(wanted, str):
        if wanted not in ("categorical", "category", "factor"):
            raise DataError(f"levels[{name!r}] is {wanted!r}; expected a list of levels in order, or 'categorical'.")
        return None
    return wanted


def next_variable(variable: Variable, column: Column) -> pd.Series:
    """The column of new data, without missing rows, as the variable that was fitted.

    Raises
    ------
    DataError
        For another type than at the fit, or a level that the fit did not have.
    """
    if variable.levels is None:
        if column.kind not in ("number", "boolean"):
            raise DataError(
                f"column {column.name!r} holds {describe(column)}{_strange(column)}, and the model was fitted to "
                "numbers there."
            )
        values = _plain(column)
        return values.astype(bool) if variable.kind == "boolean" else values.astype(float)
    codes = match(column, variable.levels)
    if (codes < 0).any():
        _, present = factorize(column.take(codes < 0))
        raise unseen_levels(column.name, list(present), list(variable.levels))
    return _factor(codes, variable.levels)


def check_finite(name: str, values: Any, rows: np.ndarray | None, why: str = "") -> None:
    """Raise a `DataError` that names the first row where `values` is infinite or not a number."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        if np.isfinite(values.sum()):
            return
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        row = first if rows is None else int(rows[first])
        raise DataError(
            f"{name!r} is {values[first]} in row {row} (counting from 0){why}; correct that row, drop it, or mark the "
            "value as missing."
        )


def take_complete(
    columns: Mapping[str, Column], rows: int, stored: Any = None, apart: np.ndarray | None = None
) -> tuple[dict[str, Column], np.ndarray, dict[str, int]]:
    """Drop rows with a missing value: (columns, positions of the rows left, missing values a column).

    `apart` (rows,) bool are rows that are dropped whatever they hold, and whose missing values do not count. Columns
    that stay in their file, `stored`, are read for what is missing and what moments there are, and have no
    values.
    """
    missing = apart
    counts: dict[str, int] = {}
    for name, column in columns.items():
        if column.missing is not None:
            count = int(np.count_nonzero(column.missing if apart is None else column.missing & ~apart))
            counts |= {name: count} if count or apart is None else {}
            missing = column.missing if missing is None else missing | column.missing
    if stored is not None:
        stored.measure(missing)
        missing = stored.missing
        counts |= stored.counts
    if missing is None:
        return dict(columns), np.arange(rows), counts
    kept = np.flatnonzero(~missing)
    return {name: column.take(kept) for name, column in columns.items()}, kept, counts


def _strange(column: Column) -> str:
    """The first label that is no number, and its row."""
    if column.labels is None:
        return ""
    words = np.array([not _is_number(label) for label in column.labels.tolist()])
    if not len(words) or not words.any():
        return ""
    places = np.where(column.values < 0, False, words[column.values])
    row = int(np.argmax(places))
    return f" (the first is {column.labels[column.values[row]]!r}, in row {row} of the complete ones, from 0)"


def _is_number(label: Any) -> bool:
    try:
        float(label)
    except (TypeError, ValueError):
        return False
    return True


def _plain(column: Column) -> pd.Series:
    values = column.values if column.kind == "boolean" else column.values.astype(np.float64, copy=False)
    return pd.Series(values, copy=False)


def _factor(codes: np.ndarray, levels: np.ndarray) -> pd.Series:
    return pd.Series(pd.Categorical.from_codes(codes, categories=pd.Index(levels)), copy=False)
