"""Posteriors of scalar group effects on lattices, and what is asked of them, natively where that can be.

Host code on numpy arrays, each call for a piece of the groups and on any thread. A density of a group is K weights of
the points (first + k) step, k = 0 ... K - 1, the spacing a power of two; arrays of weights are (groups, K).
"""

import ctypes
from typing import NamedTuple

import numpy as np

from jaxglmm.ops import native
from jaxglmm.ops.fused import FAMILIES
from jaxglmm.ops.layout import scatter_rows, slots_of_rows
from jaxglmm.ops.memory import need


# Spacing: at most so many standard deviations of the curvature, and so much on the scale of eta. The poles of a
# logistic curve are pi away; the exponential of a log link has none, but its likelihood's spectrum falls slower.
_BY_SD, _BY_ETA = 0.5, 0.25
_PARTS = 16  # of a spacing, between which quantiles are interpolated


class SortedRows(NamedTuple):
    """Rows sorted by group: y, weights, eta, z (n,), and where each group begins (G + 1,)."""

    y: np.ndarray
    weights: np.ndarray
    eta: np.ndarray
    z: np.ndarray
    begin: np.ndarray


class Found(NamedTuple):
    """Posteriors of g groups: (g,) each, weights (g, K)."""

    mode: np.ndarray
    curvature_sd: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    first: np.ndarray
    step: np.ndarray
    weights: np.ndarray


class Tables(NamedTuple):
    """Values of T functions on the lattices of L spacings.

    Those of function t on level v are flat[at[v, t] : at[v, t] + length[v, t]] and belong to the numbers from
    origin[v, t] on. Beyond both ends the outermost window of K values serves.
    """

    origin: np.ndarray
    at: np.ndarray
    length: np.ndarray
    flat: np.ndarray


def covers(family) -> bool:
    """Whether the native library is there and has this family."""
    return (family.name, family.link) in FAMILIES and native.use_native()


def sort_rows(codes, y, weights, eta, z, n_groups: int) -> SortedRows:
    """Rows by group, in the order in which they come.

    Parameters
    ----------
    codes : int (n,)
    y, weights, eta, z : (n,)
    """
    begin = np.zeros(n_groups + 1, np.int64)
    np.cumsum(np.bincount(codes, minlength=n_groups), out=begin[1:])
    columns = [np.ascontiguousarray(v, np.float64) for v in (y, weights, eta, z)]
    if (codes[1:] >= codes[:-1]).all():
        return SortedRows(columns[0], columns[1], columns[2], columns[3], begin)
    slot = slots_of_rows(codes, begin[:-1], np.ones(n_groups, np.int64), across=1, block=1, base=0)
    out = [np.empty(len(codes)) for _ in columns]
    for column, to in zip(columns, out, strict=True):
        scatter_rows([column], slot, to)
    return SortedRows(out[0], out[1], out[2], out[3], begin)


def posteriors(family, log_phi: float, rows: SortedRows, groups, mean, sd, start, wide: float) -> Found:
    """Posteriors of b ~ N(mean, sd^2) in some groups; `covers(family)` must hold.

    Parameters
    ----------
    groups : int64 (g,)
        Best in order of their sizes.
    mean, sd : () or (G,)
        Of the prior.
    start : (G,) or None
        Modes to begin at, (b - mean) / sd.
    wide : float
        Weights below a hundredth of exp(-wide^2/2) of the largest are left out.

    Raises
    ------
    ValueError
        When lengths differ, or groups or their rows are not there.
    """
    g, G, own = len(groups), len(rows.begin) - 1, np.ndim(sd) > 0
    for name, column in zip(rows._fields[:4], rows, strict=False):
        need(name, column, len(rows.y))
    need("start", start, G)
    if own:
        need("sd", sd, G)
    mean, sd = (np.ascontiguousarray(np.broadcast_to(v, np.shape(sd) or 1), np.float64) for v in (mean, sd))
    start = None if start is None else np.ascontiguousarray(start, np.float64)
    groups = np.ascontiguousarray(groups, np.int64)
    mode, curvature, average, variance, step = np.empty((5, g))
    first, weights = np.empty(g, np.int64), np.empty((g, 8 * int(np.ceil(wide))))
    library = _library()

    def run(weights):
        return library.jaxglmm_lattices(
            *map(_at, rows), _i64(len(rows.y)), _i64(G), _at(groups), _i64(g), _at(mean), _at(sd), _i32(own),
            None if start is None else _at(start),
            _i32(FAMILIES[family.name, family.link]), _f64(log_phi), _f64(0.01 * np.exp(-0.5 * wide**2)), _f64(_BY_SD),
            _f64(_BY_ETA), _i64(weights.shape[1]), _at(mode), _at(curvature), _at(average),
            _at(variance), _at(first), _at(step), _at(weights),
        )  # fmt: skip

    needed = run(weights)
    if needed > weights.shape[1]:
        weights = np.empty((g, -(-needed // 8) * 8))
        needed = run(weights)
    if needed == -2:
        raise ValueError(f"posteriors are asked for of groups that are none of {G:,}, or whose rows are not there")
    if needed < 0:
        raise MemoryError("no memory for the posteriors of groups")
    return Found(mode, curvature, average, variance, first, step, weights)


def expect(weights, first, level, tables: Tables) -> np.ndarray:
    """sum_k weights[g, k] f_t(first[g] + k) for the functions of a group's level, (T, g).

    Parameters
    ----------
    weights : (g, K)
    first : int64 (g,)
    level : int32 (g,)
        Spacing, as the tables have them.

    Raises
    ------
    ValueError
        When lengths differ, or a level or its values are not there.
    """
    (g, K), (L, T) = weights.shape, tables.origin.shape
    need("first", first, g)
    need("level", level, g)
    need("at", tables.at, L, T)
    need("length", tables.length, L, T)
    if native.use_native():
        out = np.empty((T, g))
        weights, first, level = _plain(weights, np.float64), _plain(first, np.int64), _plain(level, np.int32)
        plain = (_plain(v, np.int64) for v in tables[:3])
        origin, at, length, flat = *plain, _plain(tables.flat, np.float64)
        if _library().jaxglmm_lattice_expect(
            _i64(g), _i64(K), _at(weights), _at(first), _at(level), _i64(L), _i64(T), _at(origin), _at(at), _at(length),
            _at(flat), _i64(len(flat)), _at(out),
        ):  # fmt: skip
            raise ValueError(f"levels must be of {L}, and have {K} values or more among {len(flat):,}")
        return out
    out, first = np.zeros((T, g)), first.astype(np.int64)
    for t in range(T):
        window = np.clip(first - tables.origin[level, t], 0, tables.length[level, t] - K) + tables.at[level, t]
        for k in range(K):
            out[t] += weights[:, k] * tables.flat[window + k]
    return out


def add(weights, first, level, origin, at, mass) -> None:
    """mass[at[level] + first + k - origin[level]] += weights[:, k].

    Parameters
    ----------
    weights : (g, K)
    first : int64 (g,)
    level : int32 (g,)
    origin, at : int64 (L,)
    mass : (M,)

    Raises
    ------
    ValueError
        When lengths differ, a level is not there or masses lie outside, of which some may have been added then.
    """
    g, K = weights.shape
    need("first", first, g)
    need("level", level, g)
    need("at", at, len(origin))
    if native.use_native():
        weights, first, level = _plain(weights, np.float64), _plain(first, np.int64), _plain(level, np.int32)
        origin, at = _plain(origin, np.int64), _plain(at, np.int64)
        if _library().jaxglmm_lattice_add(
            _i64(g), _i64(K), _at(weights), _at(first), _at(level), _i64(len(at)), _at(origin), _at(at), _at(mass),
            _i64(len(mass)),
        ):  # fmt: skip
            raise ValueError(f"levels must be of {len(at)}, and {K} masses from each place on among {len(mass):,}")
        return
    place = at[level] + first.astype(np.int64) - origin[level]
    for k in range(K):
        mass += np.bincount(place + k, weights[:, k], len(mass))


def quantiles(weights, first, step, kernel, probabilities) -> np.ndarray:
    """Quantiles (g, Q) of densities whose distribution function is F(x) = sum_k weights_k K((x - x_k) / step).

    By bisection between sixteenths of a spacing, then the inverse polynomial through six of them.

    Parameters
    ----------
    weights : (g, K)
    first : int64 (g,)
    step : (g,)
    kernel : (16, 2 K - 1)
        K(s / 16 + K - 1 - j) in row s, place j.
    probabilities : (Q,)

    Raises
    ------
    ValueError
        When lengths differ, or there are fewer than two points.
    """
    g, K = weights.shape
    need("first", first, g)
    need("step", step, g)
    need("kernel", kernel, _PARTS, 2 * max(K, 2) - 1)
    p = _plain(probabilities, np.float64)
    weights, first, step = _plain(weights, np.float64), _plain(first, np.int64), _plain(step, np.float64)
    kernel, out = _plain(kernel, np.float64), np.empty((g, len(p)))
    _library().jaxglmm_lattice_quantiles(
        _i64(g), _i64(K), _at(weights), _at(first), _at(step), _i64(_PARTS), _at(kernel), _i64(len(p)), _at(p), _at(out)
    )
    return out


def fine_kernel(kernel, K: int) -> np.ndarray:
    """What `quantiles` takes, from the function K(t)."""
    return kernel(np.arange(_PARTS)[:, None] / _PARTS + (K - 1.0 - np.arange(2 * K - 1)))


def _library():
    library = native.library()
    library.jaxglmm_lattices.restype = ctypes.c_int64
    library.jaxglmm_lattice_expect.restype = library.jaxglmm_lattice_add.restype = _i32
    library.jaxglmm_lattice_quantiles.restype = None
    return library


_i64, _i32, _f64 = ctypes.c_int64, ctypes.c_int32, ctypes.c_double


def _plain(array, dtype) -> np.ndarray:
    return np.ascontiguousarray(array, dtype)


def _at(array: np.ndarray):
    return ctypes.c_void_p(array.ctypes.data)
