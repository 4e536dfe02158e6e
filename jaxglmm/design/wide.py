"""Columns of X that are only partly read: some dense, some sparse, some dummies of a categorical kept as its codes.

Columns are used as (x - center) / scale. Neither centring nor scaling is ever applied to what is stored.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


# Rows of a matrix that are worked on at once.
_ROWS = 1 << 10


@dataclass(frozen=True)
class DensePart:
    """Columns in slots (n_slots, k), already centred and scaled: a NumPy or JAX array."""

    X: Any

    @property
    def width(self) -> int:
        return self.X.shape[1]

    def gather(self, columns: np.ndarray) -> np.ndarray:
        return self.X if len(columns) == self.width else np.asarray(self.X)[:, columns]

    def against(self, v: np.ndarray) -> np.ndarray:
        return np.asarray(self.X).T @ v


@dataclass(frozen=True)
class MatrixPart:
    """A matrix (n, k) in the caller's rows: scipy.sparse CSC, which stays so, or a NumPy array."""

    X: Any
    slot: np.ndarray
    center: np.ndarray
    scale: np.ndarray

    @property
    def width(self) -> int:
        return self.X.shape[1]

    def gather(self, columns: np.ndarray) -> np.ndarray:
        chosen = self.X[:, columns]
        chosen = chosen if isinstance(chosen, np.ndarray) else chosen.toarray()
        return (chosen - self.center[columns]) / self.scale[columns]

    def against(self, v: np.ndarray) -> np.ndarray:
        return (self.X.T @ v[self.slot] - np.outer(self.center, v.sum(0))) / self.scale[:, None]


@dataclass(frozen=True)
class IndexPart:
    """All dummies of a categorical: codes (n,) of k levels."""

    codes: np.ndarray
    slot: np.ndarray
    center: np.ndarray
    scale: np.ndarray

    @property
    def width(self) -> int:
        return len(self.center)

    def gather(self, columns: np.ndarray) -> np.ndarray:
        return ((self.codes[:, None] == columns) - self.center[columns]) / self.scale[columns]

    def against(self, v: np.ndarray) -> np.ndarray:
        sums = [np.bincount(self.codes, each[self.slot], minlength=self.width) for each in v.T]
        return (np.stack(sums, axis=1) - np.outer(self.center, v.sum(0))) / self.scale[:, None]


@dataclass(frozen=True)
class WideColumns:
    """All columns of a model, part by part.

    Attributes
    ----------
    parts : tuple
    slot : int (n,)
        Slot of each row, for parts that are kept in the caller's rows.
    n_slots : int
    """

    parts: tuple
    slot: np.ndarray
    n_slots: int

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    @property
    def dense(self):
        """All columns (n_slots, p), where they are stored so; otherwise None."""
        (first, *others) = self.parts
        return first.X if isinstance(first, DensePart) and not others else None

    def gather(self, columns: np.ndarray) -> np.ndarray:
        """The chosen columns, dense (n_slots, k)."""
        out = np.zeros((self.n_slots, len(columns)))
        first = 0
        for part in self.parts:
            mine = np.flatnonzero((columns >= first) & (columns < first + part.width))
            if len(mine):
                found = part.gather(columns[mine] - first)
                if isinstance(part, DensePart):
                    if len(mine) == len(columns):
                        return found
                    out[:, mine] = found
                else:
                    out[self.slot[:, None], mine] = found
            first += part.width
        return out

    def against(self, v: np.ndarray) -> np.ndarray:
        """X'v (p, k) for some vectors v (n_slots, k), 0 in slots without a row."""
        return np.concatenate([part.against(v) for part in self.parts])


def matrix_moments(X, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of the columns of a matrix (n, k), scipy.sparse or not."""
    total = weights.sum()
    mean = (X.T @ weights) / total
    if not isinstance(X, np.ndarray):
        second = (X.multiply(X).T @ weights) / total
        return mean, np.sqrt(np.maximum(second - mean**2, 0.0))
    variance = np.zeros_like(mean)
    for first in range(0, len(X), _ROWS):
        apart = X[first : first + _ROWS] - mean
        variance += np.einsum("i,ij,ij->j", weights[first : first + _ROWS], apart, apart) / total
    return mean, np.sqrt(variance)


def index_moments(codes: np.ndarray, levels: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of the dummies of a categorical."""
    mean = np.bincount(codes, weights, minlength=levels) / weights.sum()
    return mean, np.sqrt(mean * (1 - mean))
