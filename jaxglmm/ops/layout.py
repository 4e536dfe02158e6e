"""The caller's rows on their way into tile storage: where each goes, and the copying; natively where that can be.

Host code on NumPy arrays, before anything is traced.
"""

import ctypes

import numpy as np

from jaxglmm.ops import memory, native
from jaxglmm.ops.memory import at, described_columns, i64, need, threads


_PIECE = 1 << 16  # rows that the plain form holds a second time


def group_counts(codes: np.ndarray, groups: int) -> np.ndarray:
    """Rows of each group, int64 (groups,).

    Raises
    ------
    ValueError
        When a code is outside its range.
    """
    n = len(codes)
    if native.use_native() and codes.dtype == np.int32:
        total = np.zeros(groups, np.int64)
        for begin in range(0, n, memory.LARGEST):  # as many rows of one group as the native counts hold
            part, found = np.ascontiguousarray(codes[begin : begin + memory.LARGEST]), np.zeros(groups, np.int32)
            if _library().jaxglmm_counts(i64(len(part)), at(part), i64(groups), at(found)):
                raise _outside(codes, groups)
            total += found
        return total
    if n and (codes.min() < 0 or codes.max() >= groups):
        raise _outside(codes, groups)
    return np.bincount(codes, minlength=groups).astype(np.int64, copy=False)


def slots_of_rows(codes, first, stride, *, across: int, block: int, base: int) -> np.ndarray:
    """Slot of every row, the rows of a group in the order in which they come.

    Parameters
    ----------
    codes : int (n,)
        Group of each row.
    first, stride : int64 (G,)
        The k-th row of group g goes to first + k stride; where the stride is 0 the group is stored in pieces of 32
        rows, and `first` is the number of its first piece.
    across, block, base : int
        Pieces in a block, slots in a block, first slot of the pieces.

    Returns
    -------
    int64 (n,)

    Raises
    ------
    ValueError
        When a code is outside its range.
    """
    n = len(codes)
    need("codes", codes, None)
    need("stride", stride, len(first))
    if native.use_native() and n <= memory.LARGEST:  # which counts the rows of a group in an int32
        codes, slot = np.ascontiguousarray(codes, np.int32), np.empty(n, np.int64)
        first, stride = np.ascontiguousarray(first, np.int64), np.ascontiguousarray(stride, np.int64)
        if _library().jaxglmm_slots(
            i64(n), at(codes), i64(len(first)), at(first), at(stride), i64(across), i64(block), i64(base), at(slot)
        ):
            raise _outside(codes, len(first))
        return slot
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=len(first))
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    slot = first[codes] + rank * stride[codes]
    if not stride.all():
        inside = stride[codes] == 0
        k, piece = rank[inside], first[codes[inside]] + rank[inside] // 32
        slot[inside] = base + piece // across * block + k % 32 * across + piece % across
    return slot


def scatter_rows(columns, slot, out, center=None, scale=None) -> None:
    """out[slot[i], j] = (columns[j][i] - center[j]) / scale[j].

    Parameters
    ----------
    columns : sequence of p arrays (n,)
        Of any numeric type and stride.
    slot : int64 (n,)
    out : float (n_slots, p) or, for one column, (n_slots,)
        C-contiguous, float64 or float32.
    center, scale : (p,), optional
        Zeros and ones by default.

    Raises
    ------
    ValueError
        When lengths differ or a slot is outside `out`, of which some rows may have been written then.
    """
    n, p = len(slot), len(columns)
    if not p:
        return
    need("out", out, *((None,) if p == 1 and out.ndim == 1 else (None, p)))
    need("center", center, p)
    need("scale", scale, p)
    center = np.zeros(p) if center is None else np.asarray(center, np.float64)
    scale = np.ones(p) if scale is None else np.asarray(scale, np.float64)
    if native.use_native() and out.dtype in (np.float64, np.float32):
        _alive, *described = described_columns(columns, n)
        slot = np.ascontiguousarray(slot, np.int64)
        if _library().jaxglmm_scatter(
            i64(n), i64(len(columns)), *described, at(center), at(scale), at(slot), i64(len(out)),
            ctypes.c_int32(out.dtype == np.float32), at(out), i64(threads()),
        ):  # fmt: skip
            raise ValueError(f"slots must lie in 0..{len(out) - 1}; found {slot.min()}..{slot.max()}")
        return
    for begin in range(0, n, _PIECE):
        rows = np.stack([c[begin : begin + _PIECE] for c in columns], 1, dtype=np.float64, casting="unsafe")
        out.reshape(len(out), p)[slot[begin : begin + _PIECE]] = (rows - center) / scale


def _outside(codes, groups: int) -> ValueError:
    return ValueError(f"group codes must lie in 0..{groups - 1}; found {int(codes.min())}..{int(codes.max())}")


def _library():
    library = native.library()
    for name in ("slots", "scatter", "counts"):
        getattr(library, f"jaxglmm_{name}").restype = ctypes.c_int32
    return library
