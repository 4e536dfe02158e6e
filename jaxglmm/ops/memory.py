"""The caller's arrays as native code takes them."""

import ctypes
import os
from collections.abc import Sequence

import numpy as np


# What native code reads as it is; other types are converted.
TYPES = {np.dtype(t): k for k, t in enumerate(("f8", "f4", "i8", "i4", "i2", "i1", "u1", "u2", "u4"))}
TYPES[np.dtype(bool)] = TYPES[np.dtype("u1")]


def threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


i64 = ctypes.c_int64
