"""The rows of many strata: sorted by stratum and group, and gathered to be fitted; natively where that can be.

Host code on NumPy arrays, before anything is traced.
"""

import ctypes
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxglmm.ops import lanes, native
from jaxglmm.ops.memory import at, described_columns, i64, need, need_int32


# Below this share of a column's size, what other columns leave of it is to be looked at closely.
SUSPECT = 1e-9
# A column's spread, over its mean, that may be rounding.
_CONSTANT = 1e-7


class Segments:
    """Rows sorted by stratum and group, the largest group first, and where each stratum and group begins.

    Attributes
    ----------
    order : int (n,)
        The frame's rows in that order.
    rows, groups, largest : int (B,)
        Rows and groups of each stratum, and rows of its largest group.
    begin, first_group : int (B,)
        Its first row and group.
    count, rank, of_group : int (G,)
        Rows of each group, its place in its stratum, and that stratum.
    """

    def __init__(self, stratum: np.ndarray, codes: np.ndarray, B: int, threads: int):
        """Sort rows (n,) of B strata by their group's code. ValueError where a stratum is none of them."""
        need("codes", codes, len(stratum))
        if len(stratum) and stratum.max() >= B:
            raise ValueError(f"strata must lie in 0..{B - 1}; found {stratum.min()}..{stratum.max()}")
        self.rows = np.bincount(stratum, minlength=B)
        self.begin = np.cumsum(self.rows) - self.rows
        sort = _sort_natively if native.use_native() else _sort
        self.order, self.count, self.groups = sort(stratum, codes, self.rows, self.begin, threads)
        self.first_group = np.cumsum(self.groups) - self.groups
        self.of_group = np.repeat(np.arange(B), self.groups)
        self.rank = np.arange(len(self.count)) - np.repeat(self.first_group, self.groups)
        self.largest = np.zeros(B, np.int64)
        full = self.groups > 0
        self.largest[full] = self.count[self.first_group[full]]

    @cached_property
    def group(self) -> np.ndarray:
        """Group (n,) of each row in order, counted through all strata."""
        return np.repeat(np.arange(len(self.count)), self.count)

    @cached_property
    def within(self) -> np.ndarray:
        """Place (n,) of each row in its group."""
        return np.arange(len(self.order)) - (np.cumsum(self.count) - self.count)[self.group]


def _sort(stratum, codes, rows, begin, threads):
    key = stratum.astype(np.int64) * (int(codes.max(initial=0)) + 1) + codes
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.zeros(0, int)
    count, of_group = np.diff(np.append(first, len(key))), stratum[order[first]]
    by_size = np.lexsort((-count, of_group))
    count = count[by_size]
    within = np.arange(len(key)) - np.repeat(np.cumsum(count) - count, count)
    return order[np.repeat(first[by_size], count) + within], count, np.bincount(of_group, minlength=len(rows))


def _sort_natively(stratum, codes, rows, begin, threads):
    n, B = need_int32("rows of all strata", len(stratum)), len(rows)
    stratum, codes = np.ascontiguousarray(stratum, np.int64), np.ascontiguousarray(codes, np.int32)
    order, size, groups = np.empty(n, np.int64), np.empty(n, np.int32), np.empty(B, np.int64)
    ends = np.append(begin, n).astype(np.int64)
    segments = native.library().jaxglmm_segments
    segments.restype = ctypes.c_int32
    if segments(i64(n), at(stratum), at(codes), i64(B), at(ends), at(order), at(size), at(groups), i64(threads)):
        raise ValueError(f"{n:,} rows are not those of {B:,} strata that begin at {ends}")
    return order, size[size > 0].astype(np.int64), groups


@dataclass
class Source:
    """Rows of a table to gather strata from.

    Attributes
    ----------
    y : (n,)
    columns : sequence of p arrays (n,)
    weights, offset : (n,) or None
        None for ones, and for zeros.
    z : (S, n) or None
        None for ones.
    effects : int
        S.
    intercept : int or None
        Column that is constant.
    """

    y: np.ndarray
    columns: tuple
    weights: np.ndarray | None
    offset: np.ndarray | None
    z: np.ndarray | None
    effects: int
    intercept: int | None


@dataclass
class StratumRows:
    """Rows of some strata, one stratum after the other, columns centred and scaled in each.

    Attributes
    ----------
    begin : int64 (B + 1,)
        Where strata begin, and the end.
    y : (N,)
    X : (N, p)
    weights, offset : (N,) or None
    z : (S, N) or None
        Not scaled.
    center, scale : (B, p)
        As `design.column_scaling` has them.
    z_scale : (B, S)
        Root mean squares of z.
    suspect : bool (B,)
        There are too few rows, rows without weight, one response throughout, or columns that may be zero, constant or
        combinations of others.
    """

    begin: np.ndarray
    y: np.ndarray
    X: np.ndarray
    weights: np.ndarray | None
    offset: np.ndarray | None
    z: np.ndarray | None
    center: np.ndarray
    scale: np.ndarray
    z_scale: np.ndarray
    suspect: np.ndarray

    @property
    def lane(self) -> np.ndarray:
        """Stratum (N,) of each row, from 0."""
        return np.repeat(np.arange(len(self.begin) - 1), np.diff(self.begin))

    @property
    def ones(self) -> np.ndarray:
        return np.broadcast_to(1.0, len(self.y))


def gather(source: Source, order: np.ndarray, rows: np.ndarray, threads: int) -> StratumRows:
    """The rows `order` (N,) of a table, `rows` (B,) of them for each stratum. ValueError where one is not there."""
    begin = np.append(0, np.cumsum(rows)).astype(np.int64)
    N, B, p, S = len(order), len(rows), len(source.columns), source.effects
    n = len(source.y)
    need("weights", source.weights, n)
    need("offset", source.offset, n)
    need("z", source.z, S, n)
    if begin[-1] != N or (rows < 0).any() or (N and (order.min() < 0 or order.max() >= n)):
        raise ValueError(f"strata of {begin[-1]:,} rows, by {N:,} numbers of rows of a table of {n:,}")
    if not -1 <= (-1 if source.intercept is None else source.intercept) < p:
        raise ValueError(f"column {source.intercept} of {p} is no intercept")
    take = lambda v, *shape: None if v is None else np.empty((*shape, N))
    out = StratumRows(
        begin, np.empty(N), np.empty((N, p)), take(source.weights), take(source.offset), take(source.z, S),
        np.empty((B, p)), np.empty((B, p)), np.empty((B, S)), np.empty(B, bool),
    )  # fmt: skip
    (_gather_natively if native.use_native() else _gather)(source, np.ascontiguousarray(order, np.int64), out, threads)
    return out


class _Problem(ctypes.Structure):
    """StratumRows of kernels/cpu/strata.h."""

    _numbers = ("strata", "rows", "columns", "effects", "all_rows", "intercept")
    _arrays = (
        "begin", "order", "column", "stride", "type", "y", "weight", "offset", "z", "y_out", "x_out", "weight_out",
        "offset_out", "z_out", "center", "scale", "z_scale", "suspect",
    )  # fmt: skip
    _fields_ = tuple((name, ctypes.c_int64) for name in _numbers) + tuple((name, ctypes.c_void_p) for name in _arrays)


def _gather_natively(source: Source, order, out: StratumRows, threads):
    _alive, columns, strides, types = described_columns(source.columns, len(source.y))
    whole = lambda v: None if v is None else np.ascontiguousarray(v, float)
    given = [whole(v) for v in (source.y, source.weights, source.offset, source.z)]
    where = lambda v: None if v is None else v.ctypes.data
    problem = _Problem(
        len(out.suspect), len(order), len(source.columns), source.effects, len(source.y),
        -1 if source.intercept is None else source.intercept, where(out.begin), where(order),
        ctypes.addressof(columns), strides.value, types.value, *map(where, given), where(out.y), where(out.X),
        where(out.weights), where(out.offset), where(out.z), where(out.center), where(out.scale), where(out.z_scale),
        where(out.suspect),
    )  # fmt: skip
    stratum_rows = native.library().jaxglmm_stratum_rows
    stratum_rows.restype = ctypes.c_int32
    if stratum_rows(ctypes.byref(problem), ctypes.c_double(SUSPECT), i64(threads)):
        raise ValueError("rows of strata that are not there")


def _gather(source: Source, order, out: StratumRows, _):
    counts = np.diff(out.begin)
    full = np.flatnonzero(counts > 0)
    begins, lane = out.begin[full], out.lane
    out.y[:] = source.y[order]
    for j, column in enumerate(source.columns):
        out.X[:, j] = column[order]
    for name in ("weights", "offset", "z"):
        if (given := getattr(source, name)) is not None:
            getattr(out, name)[...] = given[..., order]
    weights = out.ones if out.weights is None else out.weights
    out.z_scale[:] = 1.0
    if out.z is not None:
        square = np.add.reduceat(out.z**2, begins, axis=1).T / counts[full, None]
        out.z_scale[full] = np.where(square > 0, np.sqrt(square), 1.0)
    out.suspect[:] = counts < max(out.X.shape[1], 1)
    out.suspect[full] |= np.minimum.reduceat(out.y, begins) == np.maximum.reduceat(out.y, begins)
    out.suspect |= np.bincount(lane, ~(weights > 0), minlength=len(counts)) > 0
    out.suspect[full] |= _bad_columns(out.X, begins, source.intercept)
    out.center[:], out.scale[:] = 0.0, 1.0
    out.center[full], out.scale[full] = _scaling(out.X, weights, begins, source.intercept)
    out.X -= out.center[lane]
    out.X /= out.scale[lane]


def _bad_columns(X, begins, intercept) -> np.ndarray:
    """Strata in which columns may be zero, constant or combinations of others."""
    p = X.shape[1]
    counts = np.diff(np.append(begins, len(X)))
    gram = np.empty((p, p, len(begins)))
    mean = np.add.reduceat(X, begins) / counts[:, None]
    if intercept is not None:
        mean[:, intercept] = 0.0
        centred = X - np.repeat(mean, counts, axis=0)
    else:
        centred = X
    for j in range(p):
        gram[j] = np.add.reduceat(centred * centred[:, j : j + 1], begins).T
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.sqrt(np.einsum("iib->ib", gram))
        L = lanes.cholesky(gram / size[:, None] / size[None, :], least=SUSPECT)
        # What centring leaves of a constant is rounding.
        constant = (size < _CONSTANT * np.sqrt(counts) * np.abs(mean.T)) & (mean.T != 0)
    return ~np.isfinite(L).all((0, 1)) | constant.any(0)


def _scaling(X, weights, begins, intercept) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale of each column in each stratum, as `design.column_scaling`."""
    total = np.add.reduceat(weights, begins)[:, None]
    counts = np.diff(np.append(begins, len(X)))
    with np.errstate(invalid="ignore", divide="ignore"):
        center = np.add.reduceat(X * weights[:, None], begins) / total
        apart = np.square(X - np.repeat(center, counts, axis=0)) * weights[:, None]
        scale = np.sqrt(np.add.reduceat(apart, begins) / total)
    if intercept is None:
        scale, center = np.sqrt(np.square(scale) + np.square(center)), np.zeros_like(center)
    else:
        scale[:, intercept], center[:, intercept] = center[:, intercept], 0.0
    return center, np.where(scale != 0, scale, 1.0)
