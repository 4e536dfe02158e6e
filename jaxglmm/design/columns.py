"""Columns of a design before they are laid out."""

from collections.abc import Sequence

import numpy as np

from jaxglmm.ops.columns import PIECE, Moments, moments as measured


class Columns:
    """Columns of equal length, wherever each lies: as good as a matrix (n, p), without being formed.

    Attributes
    ----------
    columns : tuple of p arrays (n,)
        Of any numeric type and stride.
    shape : (n, p)
    """

    def __init__(self, columns: Sequence[np.ndarray], n: int):
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

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Some rows as a matrix (m, p) in float64."""
        n, p = self.shape
        begin, end, _ = rows.indices(n)
        out = np.empty((end - begin, p))
        for at in range(begin, end, PIECE):
            piece = out[at - begin : at - begin + PIECE]
            for j, column in enumerate(self.columns):
                piece[:, j] = column[at : min(at + PIECE, end)]
        return out

    def pieces(self, used: np.ndarray | None = None):
        """All rows, or those that are used, in order, some at a time."""
        for begin in range(0, len(self), PIECE):
            rows = self[begin : begin + PIECE]
            rows = rows if used is None else rows[used[begin : begin + PIECE]]
            if len(rows):
                yield rows


def moments(X, weights: np.ndarray | None = None) -> Moments:
    """Moments of the columns, reading each once.

    Parameters
    ----------
    X : (n, p) or Columns
    weights : (n,), optional
        Ones by default; rows of weight 0 do not count.
    """
    X = Columns.of(X)
    return measured(X.columns, len(X), weights)
