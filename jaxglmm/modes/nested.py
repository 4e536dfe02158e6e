"""Factors each nested in the next: elimination up the tree, exact, in time linear in the number of levels.

A level of the finest factor meets one level of each other. Eliminating it changes only the blocks of these, its
ancestors, so that the matrix that is left has the same form with one factor less. Going back down gives the entries of
the inverse (Takahashi, Fagan & Chin 1973).
"""

from functools import cached_property
from typing import ClassVar

import numpy as np

from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, inverse, log_det, product, sum_by, transposed
from jaxglmm.modes.solver import AbstractFactorisation, AbstractSolver


class Nested(AbstractSolver):
    """Tree elimination for nested factors."""

    name: ClassVar[str] = "separable"
    reason: str

    def factorise(self, design: RowDesign, H: Blocks) -> "NestedFactorisation":
        return NestedFactorisation(design, H)


class NestedFactorisation(AbstractFactorisation):
    """H = U'DU with D block diagonal and U unit triangular from fine to coarse."""

    def __init__(self, design: RowDesign, H: Blocks):
        self.design = design
        diagonal, cross = list(H.diagonal), dict(H.cross)
        self.inverses: dict[int, np.ndarray] = {}
        self.ratios: dict[tuple[int, int], np.ndarray] = {}  # D^-1 C
        self.log_det = 0.0
        for i, t in enumerate(design.order):
            self.log_det += log_det(diagonal[t])
            if not np.isfinite(self.log_det):
                raise np.linalg.LinAlgError("not positive definite")
            self.inverses[t] = inverse(diagonal[t])
            above = design.order[i + 1 :]
            for u in above:
                self.ratios[t, u] = product(self.inverses[t], cross[t, u])
            for j, u in enumerate(above):
                parent, count = design.pairs[t, u].second, design.terms[u].n_levels
                for v in above[j:]:
                    change = sum_by(parent, product(transposed(cross[t, u]), self.ratios[t, v]), count)
                    if u == v:
                        diagonal[u] = diagonal[u] - change
                    else:
                        cross[u, v] = cross[u, v] - change

    def solve(self, b: np.ndarray) -> np.ndarray:
        x = b.copy()
        parts, order = self.design.split(x), self.design.order
        for i, t in enumerate(order):
            for u in order[i + 1 :]:
                parent = self.design.pairs[t, u].second
                parts[u][...] -= sum_by(parent, product(transposed(self.ratios[t, u]), parts[t]), len(parts[u]))
        for i in reversed(range(len(order))):
            t = order[i]
            parts[t][...] = product(self.inverses[t], parts[t])
            for u in order[i + 1 :]:
                parts[t][...] -= product(self.ratios[t, u], parts[u][self.design.pairs[t, u].second])
        return x

    @cached_property
    def pattern(self) -> Blocks:
        design, order = self.design, self.design.order
        diagonal: list = [None] * len(order)
        cross = {}
        for i in reversed(range(len(order))):
            t, above = order[i], order[i + 1 :]
            ancestor = {u: design.pairs[t, u].second for u in above}
            for u in above:
                total = np.zeros(())
                for v in above:
                    if u == v:
                        between = diagonal[u][ancestor[u]]
                    elif (v, u) in cross:  # v is the finer
                        between = cross[v, u][ancestor[v]]
                    else:
                        between = transposed(cross[u, v][ancestor[u]])
                    total = total + product(self.ratios[t, v], between)
                cross[t, u] = -total
            diagonal[t] = self.inverses[t]
            for u in above:
                diagonal[t] = diagonal[t] - product(cross[t, u], transposed(self.ratios[t, u]))
        return Blocks(diagonal, cross)
