"""The arrays of a model with several grouping factors: rows sorted by the finest factor, and the pairs of levels.

With one factor a group's rows lie together and everything about it is summed where it lies (`design.groups`). With
several they cannot lie together for all factors: rows are sorted by the factor with the most levels, and sums over the
others' levels are counted up by level number, which is deterministic and needs no second copy of the rows.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array

from jaxglmm.design.design import Scaling
from jaxglmm.design.pairs import Pairs, find_pairs, level_order, nesting_chain
from jaxglmm.model.covariance import Covariance
from jaxglmm.ops.memory import LARGEST, need_int32


# Rows of X that are held a second time at once: so many, or this share of all, since sums by level over a piece of the
# rows cost as much as there are levels.
_ROWS, _PIECES = 1 << 14, 16


@dataclass(frozen=True)
class RowTerm:
    """One grouping factor and its effects' columns.

    Attributes
    ----------
    codes : int64 (n,)
        Level of each row, of the type that is counted by without a copy.
    n_levels : int
    z : tuple of (n,) or None
        Column of each effect, divided by `z_scale`; None for a column of ones.
    z_scale : (S,)
        Root mean square of each column.
    covariance : Covariance
    """

    codes: np.ndarray
    n_levels: int
    z: tuple[np.ndarray | None, ...]
    z_scale: np.ndarray
    covariance: Covariance

    @property
    def n_effects(self) -> int:
        return len(self.z)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """sum z_i values_i over the rows of each level: (n,) -> (G, S)."""
        count = lambda v: np.bincount(self.codes, v, self.n_levels)
        return np.stack([count(values if z is None else values * z) for z in self.z], axis=1)

    def column_sums(self, weights: np.ndarray, columns: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """sum z_i weights_i columns_i over the given rows of each level: (n,), (n, k) -> (G, S, k)."""
        n = len(weights)
        number = np.int32 if max(n, self.n_levels) < LARGEST else np.int64  # of 32 bits where they do: half the time
        codes = self.codes[rows].astype(number)
        at = lambda v: csc_array((v, codes, np.arange(n + 1, dtype=number)), shape=(self.n_levels, n))
        return np.stack([at(weights if z is None else weights * z[rows]) @ columns for z in self.z], axis=1)

    def at_rows(self, effects: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """z_i'b[g(i)] of each row: (G, S) -> (n,), or (G, S, k) -> (n, k)."""
        total = None
        for a, z in enumerate(self.z):
            part = effects[:, a][self.codes[rows]]
            if z is not None:
                part = part * (z[rows] if part.ndim == 1 else z[rows][:, None])
            total = part if total is None else total + part
        assert total is not None
        return total

    def factor_to_columns(self, factor: np.ndarray) -> np.ndarray:
        """Lambda for z as given from Lambda for scaled z."""
        return factor / self.z_scale[:, None]

    def factor_from_columns(self, factor: np.ndarray) -> np.ndarray:
        return factor * self.z_scale[:, None]


@dataclass(frozen=True)
class RowDesign:
    """Response, columns and factors of a model, rows in the order of the finest factor's levels.

    Attributes
    ----------
    y, offset, weights : (n,)
    X : (n, p)
        Scaled columns.
    terms : tuple of RowTerm
        In formula order.
    order : tuple of int
        Terms from the one with the most levels to the one with the fewest: the order of elimination.
    pairs : dict of (int, int) to Pairs
        For terms t before t' in `order`.
    nested : bool
        Each factor is nested in the next of `order`.
    constant : float
        The part of the log-likelihood that depends on the data alone.
    """

    y: np.ndarray
    X: np.ndarray
    offset: np.ndarray
    weights: np.ndarray
    terms: tuple[RowTerm, ...]
    order: tuple[int, ...]
    pairs: dict[tuple[int, int], Pairs]
    nested: bool
    constant: float

    @property
    def starts(self) -> np.ndarray:
        """Where each term's standardised effects begin in a vector of all of them, and its length."""
        return np.concatenate([[0], np.cumsum([t.n_levels * t.n_effects for t in self.terms])])

    def split(self, u: np.ndarray) -> list[np.ndarray]:
        """Views (G, S, ...) of each term's part of a vector (q, ...) of all effects."""
        parts = zip(self.terms, self.starts[:-1], self.starts[1:], strict=True)
        return [u[begin:end].reshape(t.n_levels, t.n_effects, *u.shape[1:]) for t, begin, end in parts]

    def row_pieces(self):
        """Slices of rows small enough for working copies."""
        n = len(self.y)
        step = max(_ROWS, -(-n // _PIECES))
        return (slice(begin, begin + step) for begin in range(0, n, step))


def make_rows(y, X, terms, *, weights, offset, scaling: Scaling, constant: float) -> RowDesign:
    """Sort rows by the finest factor and find out how the factors' levels meet.

    Parameters
    ----------
    y, weights, offset : (n,)
    X : (n, p)
    terms : sequence of TermFrame
        Have codes (n,), levels (G,), z (S, n), blocks.
    scaling : Scaling
        Of the columns of X.
    constant : float
        Added to the log-likelihood.
    """
    levels = [len(t.levels) for t in terms]
    chain = nesting_chain([t.codes for t in terms], levels)
    order = chain or tuple(sorted(range(len(terms)), key=lambda t: -levels[t]))
    rows = level_order(terms[order[0]].codes, levels[order[0]]).rows
    made = tuple(_row_term(t, rows) for t in terms)
    pairs = {}
    for i, t in enumerate(order):
        for u in order[i + 1 :]:
            a, b = made[t], made[u]
            if chain is not None:
                pairs[t, u] = parent_pairs(a, b)
            else:
                pairs[t, u] = find_pairs(a.codes, a.n_levels, b.codes, b.n_levels)
    scaled = np.empty(X.shape)
    for begin in range(0, len(y), _ROWS):
        piece = slice(begin, begin + _ROWS)
        scaled[piece] = (X[rows[piece]] - scaling.center) / scaling.scale
    return RowDesign(y[rows], scaled, offset[rows], weights[rows], made, order, pairs, chain is not None, constant)


def _row_term(term, rows) -> RowTerm:
    scale = np.sqrt(np.mean(np.square(term.z), axis=1))
    columns = tuple(None if (z == s).all() else z[rows] / s for z, s in zip(term.z, scale, strict=True))
    return RowTerm(term.codes[rows].astype(np.intp), len(term.levels), columns, scale, Covariance(term.blocks))


def parent_pairs(fine: RowTerm, coarse: RowTerm) -> Pairs:
    """Pairs of a factor with one that it is nested in: as many as it has levels."""
    need_int32("levels of a grouping factor", fine.n_levels)
    parent = np.zeros(fine.n_levels, np.int32)
    parent[fine.codes] = coarse.codes
    each = np.arange(fine.n_levels, dtype=np.int32)
    return Pairs(each, parent, np.arange(fine.n_levels + 1), fine.codes, coarse.n_levels)
