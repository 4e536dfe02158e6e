"""Columns of a design before they are laid out, and what is measured of them in one reading."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


# Rows that are looked at at once: their columns stay in cache, and BLAS does not wake a thread for a product of two.
PIECE = 1 << 13


class Columns:
    """Columns of equal length, wherever each lies: as good as a matrix (n, p), without being formed.

    Attributes
    ----------
    columns : tuple of p arrays (n,)
        Of any numeric type and stride.
    shape : (n, p)
    """

    def __init__(self, columns: Sequence[np.ndarray], n: int):
        self.columns = tuple(columns)
        self.shape = (n, len(self.columns))

    @classmethod
    def of(cls, X) -> "Columns":
        """Of a matrix (n, p), without a copy; Columns stay as they are."""
        return X if isinstance(X, Columns) else cls(list(np.asarray(X).T), len(X))

    def only(self, which) -> "Columns":
        """Some of the columns."""
        return Columns([self.columns[j] for j in which], len(self))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Some rows as a matrix (m, p) in float64."""
        n, p = self.shape
        begin, end, _ = rows.indices(n)
        out = np.empty((end - begin, p))
        for at in range(begin, end, PIECE):
            piece = out[at - begin : at - begin + PIECE]
            for j, column in enumerate(self.columns):
                piece[:, j] = column[at : min(at + PIECE, end)]
        return out

    def pieces(self, used: np.ndarray | None = None):
        """All rows, or those that are used, in order, some at a time."""
        for begin in range(0, len(self), PIECE):
            rows = self[begin : begin + PIECE]
            rows = rows if used is None else rows[used[begin : begin + PIECE]]
            if len(rows):
                yield rows


@dataclass(frozen=True)
class Moments:
    """Of each column over rows of positive weight: least and largest value, weighted mean and variance, all (p,)."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    @property
    def constant(self) -> np.ndarray:
        """bool (p,)"""
        return self.low == self.high


def moments(X, weights: np.ndarray | None = None) -> Moments:
    """Moments of the columns, reading each once.

    Parameters
    ----------
    X : (n, p) or Columns
    weights : (n,), optional
        Ones by default; rows of weight 0 do not count.

    References
    ----------
    Chan, Golub & LeVeque (1983), Am. Stat. 37, 242: sums of squares of pieces, joined without cancellation.
    """
    X = Columns.of(X)
    n, p = X.shape
    weights = None if weights is None or _all_ones(weights) else weights
    low, high, mean, square = np.full(p, np.inf), np.full(p, -np.inf), np.zeros(p), np.zeros(p)
    total = 0.0
    for begin in range(0, n, PIECE):
        w = None if weights is None else weights[begin : begin + PIECE]
        if w is not None and not w.any():
            continue
        kept = None if w is None or w.all() else w > 0
        mass = float(min(PIECE, n - begin) if w is None else w.sum())
        for j, column in enumerate(X.columns):
            if column.strides[0] == 0:  # a constant that is stored once
                low[j] = high[j] = mean[j] = column[0]
                continue
            v = column[begin : begin + PIECE].astype(np.float64, copy=False)
            inside = v if kept is None else v[kept]
            low[j], high[j] = min(low[j], inside.min()), max(high[j], inside.max())
            here = v.mean() if w is None else w @ v / mass
            away = v - here
            spread = away @ away if w is None else w @ np.square(away)
            gap = here - mean[j]
            square[j] += spread + gap * gap * total * mass / (total + mass)
            mean[j] += gap * mass / (total + mass)
        total += mass
    same = low == high  # whatever the rounding of the mean
    return Moments(low, high, np.where(same, low, mean), np.where(same, 0.0, square / (total or 1.0)))


def _all_ones(weights: np.ndarray) -> bool:
    return bool((weights[:1] == 1).all() if not weights.strides[0] else (weights == 1).all())
