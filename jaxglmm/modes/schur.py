"""Crossed factors, exactly: eliminate the largest, whose block of H is block diagonal, and factor the rest densely.

With H = [[D, B], [B', M]] the rest is the Schur complement M - B'D^-1 B of order r, the number of effects of all other
factors. Entries of the inverse follow from D^-1, the sparse E = D^-1 B and the dense inverse of the rest:

    H^-1 = [[D^-1 + E R E', -E R], [., R]],   R = (M - B'D^-1 B)^-1
"""

from functools import cached_property
from typing import ClassVar

import numpy as np
from scipy.linalg import get_lapack_funcs

from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, matrix, product, sum_by, transposed
from jaxglmm.modes.elimination import Elimination
from jaxglmm.modes.solver import AbstractFactorisation, AbstractSolver


_potrf, _potrs, _potri = get_lapack_funcs(("potrf", "potrs", "potri"), dtype=np.float64)
# Above this share of entries, and below this size, the eliminated factor's rows are multiplied as a dense matrix.
_DENSE_SHARE, _DENSE_SIZE = 0.05, 50_000_000
# Entries of E R that are formed at once.
_PIECE = 20_000_000


class Schur(AbstractSolver):
    """Elimination of the largest factor, dense Cholesky of the rest.

    Attributes
    ----------
    helper : AbstractSolver or None
        Finds the modes, and the start and the Hessian of a fit, where a factorisation is costly.
    """

    name: ClassVar[str] = "schur"
    reason: str
    helper: AbstractSolver | None = None

    @property
    def cheap(self) -> AbstractSolver:
        return self.helper or self

    @property
    def rough(self) -> AbstractSolver:
        return self.cheap if self.helper is None else self.helper.rough

    def factorise(self, design: RowDesign, H: Blocks) -> "SchurFactorisation":
        return SchurFactorisation(design, H)


class SchurFactorisation(AbstractFactorisation):
    """See the module."""

    def __init__(self, design: RowDesign, H: Blocks):
        self.design, self.elimination = design, Elimination(design, H)
        rest = _schur_complement(self.elimination, H)
        self.cholesky, failed = _potrf(rest, lower=1, overwrite_a=1, clean=0)
        if failed:
            raise np.linalg.LinAlgError("not positive definite")
        self.log_det = self.elimination.log_det + 2 * float(np.sum(np.log(np.diag(self.cholesky))))

    def solve(self, b: np.ndarray) -> np.ndarray:
        own, right = self.elimination.reduce(b)
        rest, _ = _potrs(self.cholesky, right, lower=1)
        return self.elimination.expand(own, rest)

    @cached_property
    def pattern(self) -> Blocks:
        design, e = self.design, self.elimination
        R, _ = _potri(self.cholesky.copy(order="F"), lower=1, overwrite_c=1)
        _mirror(R)
        diagonal: list = [None] * len(design.terms)
        cross = {}
        for t in e.rest:
            term = design.terms[t]
            G, S, c = term.n_levels, term.n_effects, e.columns(t)
            square = R[c, c].reshape(G, S, G, S)
            each = np.arange(G)
            diagonal[t] = np.ascontiguousarray(square[each, :, each, :])
        for (t, u), pairs in design.pairs.items():
            if t != e.first:
                a, b = design.terms[t], design.terms[u]
                between = R[e.columns(t), e.columns(u)].reshape(a.n_levels, a.n_effects, b.n_levels, b.n_effects)
                cross[t, u] = between[pairs.first, :, pairs.second, :]
        cross |= self._with_first(R)
        own = e.inverses
        for t in e.rest:
            part = product(cross[e.first, t], transposed(e.ratios[t]))
            own = own - sum_by(design.pairs[e.first, t].first, part, len(own))
        diagonal[e.first] = own
        return Blocks(diagonal, cross)

    def _with_first(self, R) -> dict:
        """-E R where the largest factor meets the others, some of its levels at a time."""
        e, design = self.elimination, self.design
        S = design.terms[e.first].n_effects
        G = len(e.inverses)
        out = {(e.first, t): np.empty_like(e.ratios[t]) for t in e.rest}
        step = max(_PIECE // (S * e.order), 1)
        for begin in range(0, G, step):
            end = min(begin + step, G)
            ER = (e.E[begin * S : end * S] @ R).reshape(end - begin, S, e.order)
            for t in e.rest:
                pairs, width = design.pairs[e.first, t], design.terms[t].n_effects
                here = slice(pairs.start[begin], pairs.start[end])
                at = pairs.first[here] - begin
                column = e.begins[t] + pairs.second[here, None] * width + np.arange(width)
                out[e.first, t][here] = -ER[at[:, None, None], np.arange(S)[None, :, None], column[:, None, :]]
        return out


def _schur_complement(e: Elimination, H: Blocks) -> np.ndarray:
    """M - B'D^-1 B, dense and symmetric (r, r), in Fortran's order."""
    design = e.design
    rest = np.zeros((e.order, e.order), order="F")
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


def _mirror(R: np.ndarray, step: int = 512) -> None:
    """Copy the lower triangle to the upper one, in place."""
    for i in range(0, len(R), step):
        R[i : i + step, i + step :] = R[i + step :, i : i + step].T
        corner = R[i : i + step, i : i + step]
        corner[...] = np.tril(corner) + np.tril(corner, -1).T
