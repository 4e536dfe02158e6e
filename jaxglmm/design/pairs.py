"""Two grouping factors together: which levels occur with which, and sorted orders of the rows.

A pair is a level of one factor that shares a row with a level of another. There are never more pairs than rows, and
what two factors' effects have to do with each other (Z1'W Z2) is a sum over the rows of each pair: nothing of the size
of (levels of one) x (levels of the other) is ever made.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array

from jaxglmm.design.groups import round_up
from jaxglmm.ops.memory import need_int32
from jaxglmm.ops.pairs import PairIndex


@dataclass(frozen=True)
class Order:
    """Rows sorted by the levels of a factor, ties as they came.

    Attributes
    ----------
    rows : (n,)
        Permutation: the rows of level 0, then those of level 1, ...
    start : (G + 1,)
        Those of level g are `rows[start[g]:start[g + 1]]`.
    """

    rows: np.ndarray
    start: np.ndarray


def level_order(codes: np.ndarray, n_levels: int) -> Order:
    """Sort rows by level by counting, in O(n).

    Parameters
    ----------
    codes : int (n,)
        Level of each row, 0 <= codes < n_levels.
    n_levels : int
    """
    n = len(codes)
    by_row = csr_array((np.empty(n, np.bool_), codes, np.arange(n + 1)), shape=(n, n_levels))
    by_level = by_row.tocsc()  # a counting sort
    return Order(by_level.indices, by_level.indptr)


@dataclass(frozen=True)
class Pairs:
    """Pairs of levels that occur together, sorted by the first factor's level, then by the second's.

    Attributes
    ----------
    first, second : int32 (P,)
        The pair's levels.
    n_second : int
        Levels of the second factor.
    start : (G1 + 1,)
        The pairs of the first factor's level g are `start[g]:start[g + 1]`: `second` and `start` are the column
        indices and row pointers of a sparse (G1, G2) matrix in CSR form.
    row : int64 (n,)
        The pair of each row, of the type that is counted by without a copy.
    """

    first: np.ndarray
    second: np.ndarray
    start: np.ndarray
    row: np.ndarray
    n_second: int

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def index(self) -> PairIndex:
        """For products with matrices over the pairs; numbers of levels and pairs are rounded up to shared shapes.

        Levels that were added meet nothing; entries that were added belong to no level.
        """
        need_int32("pairs of levels", round_up(len(self)))
        order = level_order(self.second, self.n_second)
        entries = lambda v: padded(v.astype(np.int32), round_up(len(self)))
        pointers = lambda v: padded(v.astype(np.int32), round_up(len(v) - 1) + 1, len(self))
        place = order.rows
        arrays = (
            entries(self.first), entries(self.second), pointers(self.start), entries(place), pointers(order.start),
            entries(self.first[place]),
        )  # fmt: skip
        return PairIndex(*map(jnp.asarray, arrays))

    @property
    def nested(self) -> bool:
        """Whether the first factor is nested in the second: each of its levels occurs with one level only."""
        return bool(np.all(np.diff(self.start) <= 1))


def find_pairs(first: np.ndarray, n_first: int, second: np.ndarray, n_second: int) -> Pairs:
    """Pairs of two factors' levels.

    Parameters
    ----------
    first, second : int (n,)
        Level of each row, counted from 0.
    n_first, n_second : int
        Numbers of levels.
    """
    need_int32("levels of a grouping factor", max(n_first, n_second))
    order = level_order(second, n_second).rows
    order = order[level_order(first[order], n_first).rows]
    a, b = first[order], second[order]
    new = np.ones(len(a), bool)
    new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    row = np.empty(len(a), np.intp)
    row[order] = np.cumsum(new) - 1
    a, b = a[new].astype(np.int32), b[new].astype(np.int32)
    start = np.zeros(n_first + 1, np.int64)
    np.cumsum(np.bincount(a, minlength=n_first), out=start[1:])
    return Pairs(a, b, start, row, n_second)


def padded(v: np.ndarray, length: int, fill: float = 0) -> np.ndarray:
    """v with `fill` behind it, along the first axis."""
    out = np.full((length, *v.shape[1:]), fill, v.dtype)
    out[: len(v)] = v
    return out


def nesting_chain(codes, n_levels) -> tuple[int, ...] | None:
    """The factors from the finest to the coarsest, where each is nested in the next, whatever the formula says.

    Parameters
    ----------
    codes : sequence of int (n,)
    n_levels : sequence of int

    Returns
    -------
    tuple of int or None
        Positions in `codes`; None where two factors cross.
    """
    chain = sorted(range(len(codes)), key=lambda t: -n_levels[t])
    for fine, coarse in itertools.pairwise(chain):
        # The coarse level that some row of each fine level has must be that of all its rows.
        parent = np.zeros(n_levels[fine], codes[coarse].dtype)
        parent[codes[fine]] = codes[coarse]
        if not np.array_equal(parent[codes[fine]], codes[coarse]):
            return None
    return tuple(chain)
