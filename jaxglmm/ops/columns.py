"""What is measured of the caller's columns, wherever they lie: moments, and codes of whole numbers.

Host code on NumPy arrays, before anything is traced; natively, on all processors, where that can be.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxglmm.ops import native


# Rows that are looked at at once: their columns stay in cache, and BLAS does not wake a thread for a product of two.
PIECE = 1 << 13
# What native code reads as it is; other types are converted.
TYPES = {np.dtype(t): k for k, t in enumerate(("f8", "f4", "i8", "i4", "i2", "i1", "u1", "u2", "u4"))}
TYPES[np.dtype(bool)] = TYPES[np.dtype("u1")]


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


def threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def moments(columns: Sequence[np.ndarray], n: int, weights: np.ndarray | None = None) -> Moments:
    """Moments of columns, reading each once.

    Parameters
    ----------
    columns : sequence of p arrays (n,)
        Of any numeric type and stride.
    n : int
    weights : (n,), optional
        Ones by default; rows of weight 0 do not count.

    References
    ----------
    Chan, Golub & LeVeque (1983), Am. Stat. 37, 242: sums of squares of pieces, joined without cancellation.
    """
    return of_sums(sums(columns, n, weights))


def sums(columns: Sequence[np.ndarray], n: int, weights: np.ndarray | None = None) -> np.ndarray:
    """What moments are made of: least and largest value, mass, mean and sum of squares about it, (p, 5).

    Parameters as in `moments`.
    """
    weights = None if weights is None or all_ones(weights) else np.asarray(weights, np.float64)
    out = np.empty((len(columns), 5))
    if native.use_native():
        _alive, *described = described_columns(columns)
        w = (None, _i64(0)) if weights is None else (at(weights), _i64(weights.strides[0]))
        _library().jaxglmm_column_moments(_i64(n), _i64(len(columns)), *described, *w, at(out), _i64(threads()))
        return out
    out[:] = [np.inf, -np.inf, 0, 0, 0]
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
    return bool((weights[:1] == 1).all() if not weights.strides[0] else (weights == 1).all())


def whole_codes(values: np.ndarray, low: int, high: int, missing: np.ndarray | None = None):
    """Codes of whole numbers in the order of their values, without sorting or hashing.

    Memory is a fifth of a byte for each number between the ends.

    Parameters
    ----------
    values : int (n,)
    low, high : int
        Between which all values lie that are not missing.
    missing : bool (n,), optional

    Returns
    -------
    codes : int32 (n,)
        -1 where missing.
    labels : int64 (G,)
        The numbers that occur.
    """
    n, size = len(values), high - low + 1
    if native.use_native():
        values = values if values.dtype in TYPES else values.astype(np.int64)
        kind = ctypes.c_int32(TYPES[values.dtype])
        mask = None if missing is None else np.ascontiguousarray(missing, np.uint8)
        bits, codes = np.zeros(-(-size // 64), np.uint64), np.empty(n, np.int32)
        column = (at(values), _i64(values.strides[0]), kind, None if mask is None else at(mask), _i64(low))
        count = _library().jaxglmm_whole_present(_i64(n), *column, _i64(len(bits)), at(bits), _i64(threads()))
        labels = np.empty(count, np.int64)
        _library().jaxglmm_whole_codes(
            _i64(n), *column, _i64(len(bits)), at(bits), at(codes), at(labels), _i64(threads())
        )
        return codes, labels
    places = values.astype(np.int64) - low
    if missing is not None:
        places[missing] = size
    present = np.zeros(size + 1, bool)
    present[places] = True
    labels = np.flatnonzero(present[:size])
    lookup = np.full(size + 1, -1, np.int32)
    lookup[labels] = np.arange(len(labels), dtype=np.int32)
    return lookup[places], labels + low


def described_columns(columns: Sequence[np.ndarray]):
    """Columns as native code takes them: what must be kept alive, addresses, strides and types."""
    held = [c if c.dtype in TYPES else c.astype(np.float64) for c in columns]
    strides = np.array([c.strides[0] for c in held], np.int64)
    types = np.array([TYPES[c.dtype] for c in held], np.int32)
    pointers = (ctypes.c_void_p * len(held))(*(c.ctypes.data for c in held))
    return (held, strides, types), pointers, at(strides), at(types)


def at(array: np.ndarray):
    """An array's address."""
    return ctypes.c_void_p(array.ctypes.data)


def _library():
    library = native.library()
    library.jaxglmm_whole_present.restype = ctypes.c_int64
    library.jaxglmm_whole_codes.restype = library.jaxglmm_column_moments.restype = None
    return library


_i64 = ctypes.c_int64
