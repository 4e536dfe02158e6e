"""Columns of a design before they are laid out, wherever they lie: in arrays, or still in their file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


# Rows that are looked at at once: their columns stay in cache, and BLAS does not wake a thread for a product of two.
PIECE = 1 << 13


@dataclass(frozen=True)
class StoredColumn:
    """A column (n,) that is not in memory; `numpy.asarray` reads it whole.

    Attributes
    ----------
    source
        Of which `read(names)` gives (number of the first row, arrays of some rows), in order, and `sample` some rows
        from all over: [(numbers of rows, {name: values})].
    name
        In the source.
    n : int
    """

    source: Any
    name: str
    n: int

    @property
    def shape(self) -> tuple[int]:
        """(n,)"""
        return (self.n,)

    def __len__(self) -> int:
        return self.n

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        parts = [arrays[0] for _, arrays in self.source.read([self.name])]
        return np.concatenate(parts, dtype=dtype) if parts else np.zeros(0, dtype)

    def __getitem__(self, rows) -> np.ndarray:
        return np.asarray(self)[rows]


class Columns:
    """Columns of equal length, wherever each lies: as good as a matrix (n, p), without being formed.

    Attributes
    ----------
    columns : tuple of p arrays (n,) or StoredColumns of one source
        Of any numeric type and stride.
    shape : (n, p)
    """

    def __init__(self, columns: Sequence[np.ndarray | StoredColumn], n: int):
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

    def parts(self) -> Iterator[tuple[int, Sequence["np.ndarray | StoredColumn"]]]:
        """All rows in order, some at a time where they are not in memory: (number of the first, p arrays)."""
        stored = {c.name: c for c in self.columns if isinstance(c, StoredColumn)}
        if not stored:
            yield 0, self.columns
            return
        source = next(iter(stored.values())).source
        for begin, arrays in source.read(list(stored)):
            found = dict(zip(stored, arrays, strict=True))
            rows = slice(begin, begin + len(arrays[0]))
            yield begin, [found[c.name] if isinstance(c, StoredColumn) else c[rows] for c in self.columns]

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows in order, some at a time: (rows, matrix (m, p) in float64)."""
        for start, arrays in self.parts():
            n = len(self) if len(arrays) == 0 else len(arrays[0])
            for begin in range(0, n, PIECE):
                end = min(begin + PIECE, n)
                yield slice(start + begin, start + end), _matrix(arrays, begin, end)

    def matrix(self) -> np.ndarray:
        """A copy as one matrix (n, p), float64, C order."""
        out = np.empty(self.shape)
        for start, arrays in self.parts():
            n = len(arrays[0]) if len(arrays) else 0
            for begin in range(0, n, PIECE):
                _fill(out[start + begin : start + min(begin + PIECE, n)], arrays, begin)
        return out

    def places(self, count: int, size: int) -> Iterator[tuple[Any, np.ndarray]]:
        """Some rows from all over, of so many places of that size, or those kept of a file: (rows, matrix (m, p))."""
        stored = [c for c in self.columns if isinstance(c, StoredColumn)]
        if not stored:
            for begin in np.linspace(0, len(self) - size, count).astype(int):
                yield slice(begin, begin + size), _matrix(self.columns, begin, begin + size)
            return
        for rows, found in stored[0].source.sample:
            values = [found[c.name] if isinstance(c, StoredColumn) else c[rows] for c in self.columns]
            yield rows, np.column_stack(values).astype(np.float64)

    def __matmul__(self, beta: np.ndarray) -> np.ndarray:
        """X beta, (n,)."""
        out = np.zeros(len(self))
        for rows, values in self.pieces():
            out[rows] = values @ beta
        return out


def _matrix(columns, begin: int, end: int) -> np.ndarray:
    out = np.empty((end - begin, len(columns)))
    _fill(out, columns, begin)
    return out


def _fill(out: np.ndarray, columns, begin: int) -> None:
    for j, column in enumerate(columns):
        out[:, j] = column[begin : begin + len(out)]
