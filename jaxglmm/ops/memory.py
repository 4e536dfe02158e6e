"""Arrays of a design, in memory that is used again, and the caller's arrays as native code takes them."""

import ctypes
import os
import weakref
from collections.abc import Sequence

import numpy as np

from jaxglmm.errors import DataError


LARGEST = 2**31 - 1  # what an int32 holds
# What native code reads as it is; other types are converted.
TYPES = {np.dtype(t): k for k, t in enumerate(("f8", "f4", "i8", "i4", "i2", "i1", "u1", "u2", "u4"))}
TYPES[np.dtype(bool)] = TYPES[np.dtype("u1")]
_ALIGN = 64  # what JAX asks of memory that it takes over without a copy
# The first touch of fresh memory takes as long as all that is written to it. Pieces from this size on are kept for the
# next array when theirs is gone, up to so many bytes.
_LARGE, _MOST_KEPT = 1 << 20, 1 << 30
_kept: dict[int, np.ndarray] = {}


def aligned_empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """`numpy.empty` that begins at a multiple of 64 bytes, where it can in the memory of an earlier one."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = _memory(size + _ALIGN)
    start = -memory.ctypes.data % _ALIGN
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned_zeros(shape: tuple[int, ...], dtype) -> np.ndarray:
    """As `aligned_empty`, of zeros."""
    out = aligned_empty(shape, dtype)
    out.fill(0)
    return out


def _memory(size: int) -> np.ndarray:
    if size < _LARGE:
        return np.empty(size, np.uint8)
    fitting = [piece for piece in list(_kept.values()) if size <= len(piece) <= size + size // 4]
    piece = min(fitting, key=len, default=None)
    piece = None if piece is None else _kept.pop(id(piece), None)  # None where another thread was faster
    if piece is None:
        piece = np.empty(size, np.uint8)
    held = np.frombuffer(memoryview(piece), np.uint8)  # what every view keeps alive
    weakref.finalize(held, _keep, piece).atexit = False
    return held


def _keep(piece: np.ndarray) -> None:
    _kept[id(piece)] = piece
    while sum(map(len, list(_kept.values()))) > _MOST_KEPT:
        _kept.pop(next(iter(_kept)), None)


def threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def described_columns(columns: Sequence[np.ndarray], n: int):
    """Columns of n rows as native code takes them: what must be kept alive, addresses, strides and types."""
    for j, column in enumerate(columns):
        need(f"column {j}", column, n)
    held = [c if c.dtype in TYPES else c.astype(np.float64) for c in columns]
    strides = np.array([c.strides[0] for c in held], np.int64)
    types = np.array([TYPES[c.dtype] for c in held], np.int32)
    pointers = (ctypes.c_void_p * len(held))(*(c.ctypes.data for c in held))
    return (held, strides, types), pointers, at(strides), at(types)


def need(name: str, array: np.ndarray | None, *shape: int | None) -> None:
    """ValueError where an array, if there is one, is not of this shape, in which None is any length."""
    if array is None:
        return
    found = np.shape(array)
    if len(found) != len(shape) or any(want not in (None, have) for have, want in zip(found, shape, strict=True)):
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name}: found shape {found}, expected ({expected})")


def at(array: np.ndarray):
    """An array's address."""
    return ctypes.c_void_p(array.ctypes.data)


def need_int32(what: str, count: int) -> int:
    """`count`, where numbers of 32 bits, which places are kept in, count so far.

    Raises
    ------
    DataError
    """
    if count > LARGEST:
        raise DataError(
            f"{count:,} {what} are more than the {LARGEST:,} that numbers of 32 bits count, which this part is limited "
            "to: split the data, or merge levels"
        )
    return int(count)


i64 = ctypes.c_int64
