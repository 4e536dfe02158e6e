"""Moments of columns; natively, on all processors, where that can be.

Host code on NumPy arrays, before anything is traced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxglmm.ops import native
from jaxglmm.ops.columns import PIECE, Columns
from jaxglmm.ops.memory import at, described_columns, i64, need, threads


@dataclass(frozen=True)
class Moments:
    """Of each column over rows of positive weight: least and largest value, weighted mean and variance, all (p,).

    The mean is not finite where a value is not.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    @property
    def constant(self) -> np.ndarray:
        """bool (p,)"""
        return self.low == self.high

    def take(self, which) -> "Moments":
        """Of some of the columns."""
        return Moments(self.low[which], self.high[which], self.mean[which], self.variance[which])

    @classmethod
    def joined(cls, parts: Sequence["Moments"]) -> "Moments":
        """Of the columns of all parts, in order."""
        names = ("low", "high", "mean", "variance")
        return cls(*(np.concatenate([np.zeros(0), *(getattr(part, name) for part in parts)]) for name in names))


def moments(X, weights: np.ndarray | None = None) -> Moments:
    """Moments of columns, reading each once.

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
    total = no_sums(X.shape[1])
    for begin, arrays in X.parts():
        n = len(arrays[0]) if len(arrays) else 0
        total = join_sums(total, sums(arrays, n, None if weights is None else weights[begin : begin + n]))
    return of_sums(total)


def no_sums(columns: int) -> np.ndarray:
    """Sums (p, 5) over no rows."""
    return np.tile([np.inf, -np.inf, 0.0, 0.0, 0.0], (columns, 1))


def sums(columns: Sequence[np.ndarray], n: int, weights: np.ndarray | None = None) -> np.ndarray:
    """What moments are made of: least and largest value, mass, mean and sum of squares about it, (p, 5).

    Parameters
    ----------
    columns : sequence of p arrays (n,)
        Of any numeric type and stride.
    n : int
    weights : (n,), optional
    """
    need("weights", weights, n)
    weights = None if weights is None or all_ones(weights) else np.asarray(weights, np.float64)
    if native.use_native():
        out = np.empty((len(columns), 5))
        _alive, *described = described_columns(columns, n)
        w = (None, i64(0)) if weights is None else (at(weights), i64(weights.strides[0]))
        _library().jaxglmm_column_moments(i64(n), i64(len(columns)), *described, *w, at(out), i64(threads()))
        return out
    out = no_sums(len(columns))
    for begin in range(0, n, PIECE):
        rows = slice(begin, begin + PIECE)
        w = None if weights is None else weights[rows]
        if w is not None and not w.any():
            continue
        kept = None if w is None or w.all() else w > 0
        out = join_sums(out, np.array([_sums_of(column[rows], w, kept) for column in columns]).reshape(out.shape))
    return out


def join_sums(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Sums (p, 5) over the rows of both."""
    low, high = np.minimum(one[:, 0], other[:, 0]), np.maximum(one[:, 1], other[:, 1])
    mass = one[:, 2] + other[:, 2]
    share = other[:, 2] / np.where(mass > 0, mass, 1.0)
    with np.errstate(all="ignore"):  # values that are not finite
        gap = other[:, 3] - one[:, 3]
        mean = one[:, 3] + gap * share
        square = one[:, 4] + other[:, 4] + gap * gap * one[:, 2] * share
    return np.stack([low, high, mass, mean, square], axis=1)


def of_sums(found: np.ndarray) -> Moments:
    """Moments from sums (p, 5)."""
    low, high, mass, mean, square = found.T
    same = low == high  # whatever the rounding of the mean
    same &= ~np.isnan(mean)
    return Moments(low, high, np.where(same, low, mean), np.where(same, 0.0, square / np.where(mass > 0, mass, 1.0)))


def _sums_of(v, w, kept):
    v = v.astype(np.float64, copy=False)
    inside = v if kept is None else v[kept]
    mass = len(v) if w is None else w.sum()
    with np.errstate(all="ignore"):
        mean = v.mean() if w is None else w @ v / mass
        away = v - mean
        square = away @ away if w is None else w @ np.square(away)
    return np.fmin.reduce(inside, initial=np.inf), np.fmax.reduce(inside, initial=-np.inf), mass, mean, square


def all_ones(weights: np.ndarray) -> bool:
    """Whether all are 1; one look where one number is stored for all."""
    return bool((stored(weights) == 1).all())


def stored(values: np.ndarray) -> np.ndarray:
    """The numbers (n,) as they are stored: one (1,) where that is all of them."""
    return values if values.strides[0] else values[:1]


def _library():
    library = native.library()
    library.jaxglmm_column_moments.restype = None
    return library
