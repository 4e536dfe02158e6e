"""Systems over all factors but the largest, each of whose levels couples all levels of the others that it meets.

The matrix is M = H - sum_j sum_k x_jk x*_jk', H the blocks of rows that are independent and x_jk some vectors of the
largest factor's level j over the effects that it meets, x* each with its partner. They are given as arrays (k, P, S) by
the other factor, with the pairs of `RowDesign.pairs`.
"""

import abc
from functools import cached_property

import jax
import numpy as np

from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, sum_by, transposed
from jaxglmm.modes.dense import DenseCholesky, add_blocks, blocks_of, transposed_product
from jaxglmm.modes.incidence import Incidence
from jaxglmm.modes.nested import NestedFactorisation


def without_largest(design: RowDesign) -> RowDesign:
    """The same rows with the other factors only, in the order of elimination."""
    rest = design.order[1:]
    place = {t: i for i, t in enumerate(rest)}
    pairs = {(place[t], place[u]): p for (t, u), p in design.pairs.items() if t in place and u in place}
    return RowDesign(
        design.y, design.X, design.offset, design.weights, tuple(design.terms[t] for t in rest),
        tuple(range(len(rest))), pairs, design.nested, 0.0,
    )  # fmt: skip


class AbstractCoupled(abc.ABC):
    """M, factorised.

    Attributes
    ----------
    log_det : float
    pattern : Blocks
        The entries of M^-1 where levels of the others meet in a row.
    """

    log_det: float
    pattern: Blocks

    @abc.abstractmethod
    def solve(self, b: np.ndarray) -> np.ndarray:
        """M^-1 b for b (q, k)."""

    @abc.abstractmethod
    def at_pairs(self, x: list[np.ndarray]) -> list[np.ndarray]:
        """M^-1 x for the vectors (k, P, S) of every level, where the level meets the others."""


class DenseCoupled(AbstractCoupled):
    """By dense Cholesky.

    Parameters
    ----------
    incidence : Incidence
        Of the largest factor with the others.
    rest : RowDesign
        Of `without_largest`.
    H : Blocks
    x : list of (k, P, S)
        By factor of `rest`.
    partners : sequence of int (k,)

    Raises
    ------
    numpy.linalg.LinAlgError
        Where M is not positive definite.
    """

    def __init__(self, incidence: Incidence, rest: RowDesign, H: Blocks, x, partners):
        self.incidence, self.rest = incidence, rest
        M = np.zeros((incidence.order,) * 2, order="F")
        add_blocks(M, rest, self._begins, H)
        sparse = [incidence.joined(self._blocks(x, k)) for k in range(len(partners))]
        for one, partner in zip(sparse, partners, strict=True):
            where, product = transposed_product(one, sparse[partner])
            M[where] -= product
        self._cholesky = DenseCholesky(M)
        self.log_det = self._cholesky.log_det

    def solve(self, b: np.ndarray) -> np.ndarray:
        return self._cholesky.solve(b)

    def at_pairs(self, x: list[np.ndarray]) -> list[np.ndarray]:
        out, inverse = [np.empty_like(v) for v in x], jax.device_put(self._inverse.T)
        for k in range(len(x[0])):
            found = self.incidence.sampled(self._blocks(x, k), inverse)
            for v, t in zip(out, self.incidence.rest, strict=True):
                v[k] = found[t][:, 0]
        return out

    @cached_property
    def pattern(self) -> Blocks:
        return blocks_of(self._inverse, self.rest, self._begins)

    @cached_property
    def _inverse(self):
        return self._cholesky.inverse()

    @property
    def _begins(self):
        return dict(enumerate(self.rest.starts[:-1].tolist()))

    def _blocks(self, x, k):
        return {t: v[k][:, None] for t, v in zip(self.incidence.rest, x, strict=True)}


class NestedCoupled(AbstractCoupled):
    """By tree elimination, where every factor is nested in the next: a level meets one of each other factor.

    Parameters are as for `DenseCoupled`.
    """

    def __init__(self, incidence: Incidence, rest: RowDesign, H: Blocks, x, partners):
        self.rest = rest
        self._parents = [incidence.design.pairs[incidence.first, t].second for t in incidence.rest]
        partner = [v[list(partners)] for v in x]
        products = lambda i, j: sum_by(
            self._parents[i], np.einsum("kps,kpr->psr", x[i], partner[j]), rest.terms[i].n_levels
        )
        M = Blocks(
            [D - products(i, i) for i, D in enumerate(H.diagonal)],
            {(i, j): C - products(i, j) for (i, j), C in H.cross.items()},
        )
        self._factorisation = NestedFactorisation(rest, M)
        self.log_det = self._factorisation.log_det

    def solve(self, b: np.ndarray) -> np.ndarray:
        return self._factorisation.solve(b)

    def at_pairs(self, x: list[np.ndarray]) -> list[np.ndarray]:
        apply = lambda v, C: np.einsum("kps,psr->kpr", v, C)
        out = [apply(v, D[parent]) for v, D, parent in zip(x, self.pattern.diagonal, self._parents, strict=True)]
        for (i, j), C in self.pattern.cross.items():
            between = C[self._parents[i]]
            out[i] += apply(x[j], transposed(between))
            out[j] += apply(x[i], between)
        return out

    @cached_property
    def pattern(self) -> Blocks:
        return self._factorisation.pattern
