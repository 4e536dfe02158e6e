"""Crossed factors, exactly: eliminate the largest, whose block of H is block diagonal, and factor the rest densely.

With H = [[D, B], [B', M]] the rest is the Schur complement M - B'D^-1 B of order r, the number of effects of all other
factors. Entries of the inverse follow from D^-1, the sparse E = D^-1 B and the dense inverse of the rest:

    H^-1 = [[D^-1 + E R E', -E R], [., R]],   R = (M - B'D^-1 B)^-1
"""

import math
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from scipy.linalg import get_lapack_funcs

from jaxglmm.design.groups import round_up
from jaxglmm.design.pairs import padded
from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, matrix, product, sum_by, transposed
from jaxglmm.modes.elimination import Elimination
from jaxglmm.modes.solver import AbstractFactorisation, AbstractSolver
from jaxglmm.ops.memory import aligned_zeros
from jaxglmm.ops.pairs import sampled_product
from jaxglmm.ops.programs import program


# Above this share of entries, and below this size, the eliminated factor's rows are multiplied as a dense matrix.
_DENSE_SHARE, _DENSE_SIZE = 0.05, 50_000_000


class Schur(AbstractSolver):
    """Elimination of the largest factor, dense Cholesky of the rest.

    Attributes
    ----------
    helper : AbstractSolver or None
        Finds the modes, and the start and the Hessian of a fit, where a factorisation is costly.
    single : bool
        Factorise in float32, at half the cost.
    """

    name: ClassVar[str] = "schur"
    reason: str
    helper: AbstractSolver | None = None
    single: bool = False

    @property
    def cheap(self) -> AbstractSolver:
        return self.helper or self

    @property
    def rough(self) -> AbstractSolver:
        return self.cheap if self.helper is None else self.helper.rough

    @property
    def approximate(self) -> "Schur":
        return replace(self, single=True)

    def factorise(self, design: RowDesign, H: Blocks) -> "SchurFactorisation":
        return SchurFactorisation(design, H, np.float32 if self.single else np.float64)


class SchurFactorisation(AbstractFactorisation):
    """See the module."""

    def __init__(self, design: RowDesign, H: Blocks, dtype=np.float64):
        self.design, self.elimination = design, Elimination(design, H)
        potrf, self._potrs, self._potri = get_lapack_funcs(("potrf", "potrs", "potri"), dtype=dtype)
        rest = _schur_complement(self.elimination, H, dtype)
        self.cholesky, failed = potrf(rest, lower=1, overwrite_a=1, clean=0)
        if failed:
            raise np.linalg.LinAlgError("not positive definite")
        diagonal = np.diag(self.cholesky).astype(np.float64)
        self.log_det = self.elimination.log_det + 2 * float(np.sum(np.log(diagonal)))

    def solve(self, b: np.ndarray) -> np.ndarray:
        own, right = self.elimination.reduce(b)
        rest, _ = self._potrs(self.cholesky, right, lower=1)
        return self.elimination.expand(own, rest.astype(np.float64, copy=False))

    def _inverse(self) -> np.ndarray:
        """R, its lower triangle alone."""
        R = aligned_zeros(self.cholesky.shape, self.cholesky.dtype).T
        R[...] = self.cholesky
        R, _ = self._potri(R, lower=1, overwrite_c=1)
        if R.dtype == np.float64:
            return R
        wide = aligned_zeros(R.shape, np.float64).T
        wide[...] = R
        return wide

    @cached_property
    def pattern(self) -> Blocks:
        design, e = self.design, self.elimination
        R = self._inverse()
        diagonal: list = [None] * len(design.terms)
        cross = {}
        for t in e.rest:
            term = design.terms[t]
            G, S, c = term.n_levels, term.n_effects, e.columns(t)
            each = c.start + np.arange(G * S).reshape(G, S)
            diagonal[t] = _symmetric(R, each[:, :, None], each[:, None, :])
        for (t, u), pairs in design.pairs.items():
            if t != e.first:
                one, other = (
                    e.begins[v] + at[:, None] * design.terms[v].n_effects + np.arange(design.terms[v].n_effects)
                    for v, at in ((t, pairs.first), (u, pairs.second))
                )
                cross[t, u] = _symmetric(R, one[:, :, None], other[:, None, :])
        cross |= self._with_first(R)
        own = e.inverses
        for t in e.rest:
            part = product(cross[e.first, t], transposed(e.ratios[t]))
            own = own - sum_by(design.pairs[e.first, t].first, part, len(own))
        diagonal[e.first] = own
        return Blocks(diagonal, cross)

    def _with_first(self, R) -> dict:
        """-E R where the largest factor meets the others."""
        e = self.elimination
        shapes = {t: e.ratios[t].shape for t in e.rest}
        ends = np.cumsum([0, *(math.prod(shape) for shape in shapes.values())])
        # Where each entry of E comes from: an entry's number, from 1 so that none is zero.
        numbers = {
            t: np.arange(begin + 1.0, end + 1).reshape(shape)
            for (t, shape), begin, end in zip(shapes.items(), ends[:-1], ends[1:], strict=True)
        }
        where = e.joined(numbers).data.astype(np.intp) - 1
        flat = np.empty(ends[-1])
        # Padded, for how many levels meet is the data's own.
        entries, column = (padded(v, round_up(e.E.nnz)) for v in (e.E.data, e.E.indices.astype(np.int32)))
        flat[where] = -np.asarray(_sampled(entries, e.E.indptr.astype(np.int32), column, R.T))[: e.E.nnz]
        return {
            (e.first, t): flat[begin:end].reshape(shape)
            for (t, shape), begin, end in zip(shapes.items(), ends[:-1], ends[1:], strict=True)
        }


_sampled = program()(sampled_product)


def _symmetric(R, i, j):
    """Entries of a matrix of which the lower triangle is stored."""
    return R[np.maximum(i, j), np.minimum(i, j)]


def _schur_complement(e: Elimination, H: Blocks, dtype) -> np.ndarray:
    """M - B'D^-1 B, dense and symmetric (r, r), in Fortran's order."""
    design = e.design
    rest = np.zeros((e.order, e.order), dtype, order="F")
    size = len(e.inverses) * design.terms[e.first].n_effects * e.order
    if e.B.nnz > _DENSE_SHARE * size and size < _DENSE_SIZE:
        rest -= e.B.toarray().T @ e.E.toarray()
    else:
        inner = (e.B.T @ e.E).tocoo()
        rest[inner.coords] = -inner.data
    for t in e.rest:
        term = design.terms[t]
        each = e.begins[t] + np.arange(term.n_levels) * term.n_effects
        for a in range(term.n_effects):
            for b in range(term.n_effects):
                rest[each + a, each + b] += H.diagonal[t][:, a, b]
    for (t, u), C in H.cross.items():
        if t != e.first:
            between = matrix(design, (t, u), C).tocoo()
            i, j = between.coords
            rest[e.begins[t] + i, e.begins[u] + j] += between.data
            rest[e.begins[u] + j, e.begins[t] + i] += between.data
    return rest
