"""Cross products of a Gaussian model with several grouping factors, as one sparse matrix.

As in `design.crossproducts` the likelihood sees the rows only through cross products, formed once. Z'WZ couples two
levels of different factors only where some row has both, so that it is sparse: nothing of size levels x levels is
formed here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxglmm.design.crossproducts import row_products
from jaxglmm.design.factor_range import FactorRange, apart
from jaxglmm.model.covariance import Covariance


# Pairs of couplings that are kept: 21 bytes each.
_MOST_COUPLINGS = 10_000_000


@dataclass(frozen=True)
class Couplings:
    """Pairs of columns of the later factors that a level of the first one couples.

    Attributes
    ----------
    levels : int
        Of the first factor, G.
    size : int
        Columns of the later factors, R.
    level : int (m,)
    place : int (m,)
        Of the pair in an (R, R) matrix: its lower triangle.
    product : (m,)
        Of the two entries of Z'WZ.
    off_diagonal : bool (m,)
    """

    levels: int
    size: int
    level: np.ndarray
    place: np.ndarray
    product: np.ndarray
    off_diagonal: np.ndarray

    def outer(self, weights: np.ndarray) -> np.ndarray:
        """A' diag(weights) A, (R, R), for weights (G,) of the first factor's levels."""
        lower = np.bincount(self.place, weights[self.level] * self.product, minlength=self.size**2)
        return mirrored(lower.reshape(self.size, self.size))

    def quadratic(self, E: np.ndarray) -> np.ndarray:
        """Diagonal of A E A', (G,), for a symmetric E (R, R)."""
        values = E.ravel()[self.place] * self.product
        values[self.off_diagonal] *= 2
        return np.bincount(self.level, values, minlength=self.levels)


@dataclass(frozen=True)
class FactorProducts:
    """What a Gaussian likelihood with several factors needs of the data. All numpy or scipy.sparse.

    The columns of Z lie factor by factor in the order of elimination, within a factor level by level, within a level
    effect by effect. V = [X, r] and `origin` are those of `CrossProducts`.

    Attributes
    ----------
    ztz : sparse (q, q)
        Z'WZ, compressed by rows.
    ztv : (q, p + 1)
        Z'WV.
    vtv : (p + 1, p + 1)
    origin : (p,)
    n : float
        Rows of positive weight.
    log_weights : float
    levels : tuple of int
        Of each factor, in the formula's order.
    structures : tuple of Covariance
        Of each factor, in the formula's order.
    order : tuple of int
        Factors in the order of elimination.
    n_sparse : int
        How many of these are eliminated level by level; the others together, as a dense matrix.
    within : FactorRange or None
        Where the response hardly varies apart from the effects.
    """

    ztz: Any
    ztv: np.ndarray
    vtv: np.ndarray
    origin: np.ndarray
    n: float
    log_weights: float
    levels: tuple[int, ...]
    structures: tuple[Covariance, ...]
    order: tuple[int, ...]
    n_sparse: int
    within: FactorRange | None = None

    @property
    def p(self) -> int:
        """Number of fixed-effect columns."""
        return len(self.origin)

    @property
    def n_effects(self) -> int:
        """Effects of a level, summed over the factors."""
        return self.covariance.n_effects

    @property
    def n_groups(self) -> int:
        """Levels of the factor that has the most."""
        return max(self.levels)

    @cached_property
    def covariance(self) -> Covariance:
        """Of all factors' effects side by side, in the formula's order."""
        return Covariance.joined(self.structures)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Columns of each factor, in the order of elimination."""
        return tuple(self.levels[t] * self.structures[t].n_effects for t in self.order)

    @cached_property
    def bounds(self) -> np.ndarray:
        """Where each factor's columns begin, in the order of elimination, and the end of the last one."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    @property
    def n_dense(self) -> int:
        """Dimension of what is left for a dense factorisation."""
        return int(self.bounds[-1] - self.bounds[self.n_sparse])

    @cached_property
    def couplings(self) -> Couplings | None:
        """Products of the first eliminated factor's couplings, where it is scalar and they are few enough to keep."""
        across = self.ztz[: self.sizes[0], self.sizes[0] :]
        counts = np.diff(across.indptr).astype(np.int64)
        if self.n_sparse > 1 or self.structures[self.order[0]].n_effects > 1 or not len(counts):
            return None
        if np.sum(counts * (counts + 1)) > 2 * _MOST_COUPLINGS:
            return None
        # Each entry of a row with itself and every later one.
        later = across.indptr[1:].repeat(counts) - np.arange(across.nnz)
        one = np.arange(across.nnz).repeat(later)
        other = one + np.arange(len(one)) - (np.cumsum(later) - later).repeat(later)
        return Couplings(
            levels=len(counts),
            size=across.shape[1],
            level=np.arange(len(counts), dtype=np.int32).repeat(counts)[one],
            place=across.indices[other].astype(np.int64) * across.shape[1] + across.indices[one],
            product=across.data[one] * across.data[other],
            off_diagonal=one != other,
        )

    def mean_squares(self) -> np.ndarray:
        """Mean of w z^2 of each effect, in the formula's order, (S,)."""
        diagonal = self.ztz.diagonal()
        sums = [np.zeros(0)] * len(self.order)
        for place, t in enumerate(self.order):
            part = diagonal[self.bounds[place] : self.bounds[place + 1]]
            sums[t] = part.reshape(self.levels[t], -1).sum(0)
        return np.concatenate(sums) / self.n

    def reordered(self, order: np.ndarray) -> FactorProducts:
        """With the effects of each level in another order; `order` counts over all factors and keeps them apart."""
        starts = np.cumsum([0, *(s.n_effects for s in self.structures)])
        where = np.empty(self.bounds[-1], np.int64)
        for place, t in enumerate(self.order):
            inside = np.asarray(order)[starts[t] : starts[t + 1]] - starts[t]
            begin, end = self.bounds[place], self.bounds[place + 1]
            where[begin:end] = (np.arange(begin, end, len(inside))[:, None] + inside).ravel()
        within = None if self.within is None else self.within.taken(where)
        return replace(self, ztz=self.ztz[where][:, where], ztv=self.ztv[where], within=within)

    def combined(self, M: np.ndarray) -> FactorProducts:
        """With columns M z (S,) of the effects in place of z; M (S, S) keeps the factors apart."""
        from scipy import sparse

        starts = np.cumsum([0, *(s.n_effects for s in self.structures)])
        own = [slice(starts[t], starts[t + 1]) for t in self.order]
        K = sparse.block_diag(
            [sparse.kron(sparse.eye(self.levels[t]), M[at, at]) for t, at in zip(self.order, own, strict=True)], "csr"
        )
        within = None if self.within is None else self.within.combined(K)
        return replace(self, ztz=(K @ self.ztz @ K.T).tocsr(), ztv=K @ self.ztv, within=within)


def factor_products(
    y: np.ndarray,
    X: np.ndarray,
    *,
    terms,
    weights: np.ndarray | None = None,
    offset: np.ndarray | None = None,
    center: np.ndarray | None = None,
    scale: np.ndarray | None = None,
) -> FactorProducts:
    """Form the cross products, in float64.

    Parameters
    ----------
    y, X, weights, offset, center, scale
        As in `cross_products`.
    terms : sequence
        One a factor, each with `codes` (n,), `levels` (G,), `z` (S, n) and `blocks`.

    Returns
    -------
    FactorProducts
    """
    from scipy import sparse

    scalars, w, r, column = row_products(y, X, weights=weights, offset=offset, center=center, scale=scale)
    levels = tuple(len(term.levels) for term in terms)
    effects = [len(term.z) for term in terms]
    order, n_sparse = _elimination_order(terms, [g * s for g, s in zip(levels, effects, strict=True)])
    p = X.shape[1]
    blocks: list[list] = [[None] * len(order) for _ in order]
    ztv = []
    for i, t in enumerate(order):
        codes = np.asarray(terms[t].codes, np.intp)
        against = np.empty((levels[t], effects[t], p + 1))
        for a, z in enumerate(terms[t].z):
            wz = w * z
            for j in range(p):
                against[:, a, j] = np.bincount(codes, wz * column(j), minlength=levels[t])
            against[:, a, p] = np.bincount(codes, wz * r, minlength=levels[t])
        ztv.append(against.reshape(-1, p + 1))
        for j in range(i, len(order)):
            blocks[i][j] = _product(terms[t], terms[order[j]], w)
            if j > i:
                blocks[j][i] = blocks[i][j].T
    ztz = sparse.csr_array(sparse.block_array(blocks, format="csr"))
    ztz.sort_indices()
    ztv = np.concatenate(ztv)
    within = apart(ztz, ztv, scalars, w, r, column, [terms[t] for t in order])
    return FactorProducts(
        ztz=ztz, ztv=ztv, levels=levels, structures=tuple(Covariance(term.blocks) for term in terms), order=order,
        n_sparse=n_sparse, within=within, **scalars,
    )  # fmt: skip


def mirrored(lower: np.ndarray) -> np.ndarray:
    """The symmetric matrix of a lower triangle with zeros above it."""
    out = lower + lower.T
    out[np.diag_indices_from(out)] *= 0.5
    return out


def _product(one, other, w):
    """Z_t'WZ_u, sparse: one entry for each pair of levels that some row has, and pair of effects."""
    from scipy import sparse

    S, R = len(one.z), len(other.z)
    shape = (len(one.levels) * S, len(other.levels) * R)
    rows, columns, values = [], [], []
    for a in range(S):
        for b in range(R):
            rows.append(np.asarray(one.codes, np.int64) * S + a)
            columns.append(np.asarray(other.codes, np.int64) * R + b)
            values.append(w * one.z[a] * other.z[b])
    found = sparse.coo_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape)
    return found.tocsr()


def dense_order(terms) -> int:
    """Order of the dense matrix that is left when the factors that can be are eliminated level by level."""
    sizes = [len(term.levels) * len(term.z) for term in terms]
    order, n_sparse = _elimination_order(terms, sizes)
    return sum(sizes[t] for t in order[n_sparse:])


def _elimination_order(terms, sizes) -> tuple[tuple[int, ...], int]:
    """Largest factor first; then those in which everything eliminated before is nested: no fill arises within them."""
    left = sorted(range(len(terms)), key=lambda t: -sizes[t])
    order = [left.pop(0)]
    while True:
        fitting = [t for t in left if all(nested(terms[k].codes, terms[t].codes, len(terms[k].levels)) for k in order)]
        if not fitting:
            break
        order.append(fitting[0])
        left.remove(fitting[0])
    return (*order, *left), len(order)


def nested(inner: np.ndarray, outer: np.ndarray, n_inner: int) -> bool:
    """Whether all rows of a level of `inner` (n,) have the same level of `outer` (n,)."""
    of_level = np.zeros(n_inner, outer.dtype)
    of_level[inner] = outer  # of some row of the level
    return bool((of_level[inner] == outer).all())
