"""Cross products of a Gaussian model with several grouping factors, as one sparse matrix.

As in `design.crossproducts` the likelihood sees the rows only through cross products, formed once. Z'WZ couples two
levels of different factors only where some row has both, so that it is sparse: nothing of size levels x levels is
formed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxglmm.design.crossproducts import row_products
from jaxglmm.model.covariance import Covariance


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
        return FactorProducts(
            self.ztz[where][:, where], self.ztv[where], self.vtv, self.origin, self.n, self.log_weights, self.levels,
            self.structures, self.order, self.n_sparse,
        )  # fmt: skip


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
    return FactorProducts(
        ztz=ztz, ztv=np.concatenate(ztv), levels=levels,
        structures=tuple(Covariance(term.blocks) for term in terms), order=order, n_sparse=n_sparse, **scalars,
    )  # fmt: skip


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
