"""Codes of labels, as int32: whole numbers by their values, text by its bytes; natively, on all processors.

Host code on NumPy arrays, before anything is traced.
"""

import ctypes

import numpy as np

from jaxglmm.ops import native
from jaxglmm.ops.memory import TYPES, at, i64, need, threads


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

    Raises
    ------
    ValueError
        When a value lies outside.
    """
    n, size = len(values), high - low + 1
    need("values", values, None)
    need("missing", missing, n)
    if native.use_native():
        values = values if values.dtype in TYPES else values.astype(np.int64)
        kind = ctypes.c_int32(TYPES[values.dtype])
        mask = None if missing is None else np.ascontiguousarray(missing, np.uint8)
        bits, codes = np.zeros(-(-size // 64), np.uint64), np.empty(n, np.int32)
        column = (at(values), i64(values.strides[0]), kind, None if mask is None else at(mask), i64(low))
        count = _library().jaxglmm_whole_present(i64(n), *column, i64(len(bits)), at(bits), i64(threads()))
        if count < 0:
            raise _outside(low, high)
        labels = np.empty(count, np.int64)
        _library().jaxglmm_whole_codes(i64(n), *column, i64(len(bits)), at(bits), at(codes), at(labels), i64(threads()))
        if count and labels[-1] > high:  # in the last of the bits' words
            raise _outside(low, high)
        return codes, labels
    places = values.astype(np.int64) - low
    outside = (places < 0) | (places >= size)
    if missing is not None:
        outside &= ~missing
        places[missing] = size
    if outside.any():
        raise _outside(low, high)
    present = np.zeros(size + 1, bool)
    present[places] = True
    labels = np.flatnonzero(present[:size])
    lookup = np.full(size + 1, -1, np.int32)
    lookup[labels] = np.arange(len(labels), dtype=np.int32)
    return lookup[places], labels + low


def text_codes(
    rows: int, offsets: int, data: int, size: int, valid: int = 0, begin: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of texts that lie one after the other in memory, as Arrow's large strings do; natively only.

    Rows are dealt out by a hash of their text, so that the table of each part stays in cache.

    Parameters
    ----------
    rows : int
        Fewer than 2^31.
    offsets : int
        Address of int64 (rows + 1,): where each text begins.
    data, size : int
        Address of the bytes, and how many they are.
    valid, begin : int
        Address of bits, of which the `begin`-th tells that the first row is not missing; 0 where none is missing.

    Returns
    -------
    codes : int32 (rows,)
        Equal for equal texts, in no particular order that the threads would have a part in; -1 where missing.
    first : int32 (G,)
        Row of the first text of each code.

    Raises
    ------
    ValueError
        When texts do not begin one after the other, within the bytes.
    """
    codes, first = np.empty(rows, np.int32), np.empty(rows, np.int32)
    pointer = ctypes.c_void_p
    count = _library().jaxglmm_text_codes(
        i64(rows), pointer(offsets), pointer(data), i64(size), pointer(valid), i64(begin), at(codes), at(first),
        i64(threads()),
    )  # fmt: skip
    if count < 0:
        raise ValueError(f"the offsets of {rows:,} texts do not rise from 0 to the {size:,} bytes that there are")
    return codes, first[:count].copy()


def _outside(low: int, high: int) -> ValueError:
    return ValueError(f"a whole number lies outside {low}..{high}")


def _library():
    library = native.library()
    library.jaxglmm_whole_present.restype = library.jaxglmm_text_codes.restype = ctypes.c_int64
    library.jaxglmm_whole_codes.restype = None
    return library
