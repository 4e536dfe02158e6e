"""Crossed factors, exactly: eliminate the largest, whose block of H is block diagonal, and factor the rest densely.

With H = [[D, B], [B', M]] the rest is the Schur complement M - B'D^-1 B of order r, the number of effects of all other
factors. Entries of the inverse follow from D^-1, the sparse E = D^-1 B and the dense inverse of the rest:

    H^-1 = [[D^-1 + E R E', -E R], [., R]],   R = (M - B'D^-1 B)^-1
"""

from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, product, sum_by, transposed
from jaxglmm.modes.dense import DenseCholesky, add_blocks, blocks_of, transposed_product
from jaxglmm.modes.elimination import Elimination
from jaxglmm.modes.solver import AbstractFactorisation, AbstractSolver


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
        self.rest = DenseCholesky(_schur_complement(self.elimination, H, dtype))
        self.log_det = self.elimination.log_det + self.rest.log_det

    def solve(self, b: np.ndarray) -> np.ndarray:
        own, right = self.elimination.reduce(b)
        return self.elimination.expand(own, self.rest.solve(right))

    @cached_property
    def pattern(self) -> Blocks:
        design, e = self.design, self.elimination
        R = self.rest.inverse()
        found = blocks_of(R, design, e.begins)
        with_first = {(e.first, t): -block for t, block in e.sampled(e.ratios, R.T).items()}
        diagonal, cross = found.diagonal, found.cross | with_first
        own = e.inverses
        for t in e.rest:
            part = product(cross[e.first, t], transposed(e.ratios[t]))
            own = own - sum_by(design.pairs[e.first, t].first, part, len(own))
        diagonal[e.first] = own
        return Blocks(diagonal, cross)


def _schur_complement(e: Elimination, H: Blocks, dtype) -> np.ndarray:
    """M - B'D^-1 B, dense and symmetric (r, r), in Fortran's order."""
    rest = np.zeros((e.order, e.order), dtype, order="F")
    where, product_of = transposed_product(e.B, e.E)
    rest[where] -= product_of
    add_blocks(rest, e.design, e.begins, H)
    return rest
