"""Eliminating the factor with the most levels, which two of the solvers begin with."""

import numpy as np

from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, inverse, log_det, product
from jaxglmm.modes.incidence import Incidence


class Elimination(Incidence):
    """The largest factor's part of H: D^-1, B and E = D^-1 B, and how they carry vectors to the rest and back.

    Attributes
    ----------
    inverses : (G, S, S)
        D^-1.
    cross, ratios : dict of int to (P, S, S')
        B and E as blocks, by the other factor.
    B, E : csr_array (G S, r)
    """

    def __init__(self, design: RowDesign, H: Blocks):
        super().__init__(design)
        D = H.diagonal[self.first]
        self.log_det = log_det(D)
        if not np.isfinite(self.log_det):
            raise np.linalg.LinAlgError("not positive definite")
        self.inverses = inverse(D)
        self.cross = {t: H.cross[self.first, t] for t in self.rest}
        self.ratios = {t: product(self.inverses[design.pairs[self.first, t].first], C) for t, C in self.cross.items()}
        self.B = self.joined(self.cross)
        self.E = self.joined(self.ratios)

    def columns(self, t: int) -> slice:
        """Where a term's effects lie among the rest."""
        term = self.design.terms[t]
        return slice(self.begins[t], self.begins[t] + term.n_levels * term.n_effects)

    def reduce(self, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """D^-1 b_1 (G S, k), and what is left on the right-hand side of the rest (r, k)."""
        parts = self.design.split(b)
        k = b.shape[1]
        own = product(self.inverses, parts[self.first]).reshape(-1, k)
        right = np.concatenate([parts[t].reshape(-1, k) for t in self.rest]) - self.B.T @ own
        return own, right

    def expand(self, own: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """All effects from D^-1 b_1 and the solution of the rest."""
        k = rest.shape[1]
        x = np.empty((len(own) + self.order, k))
        parts = self.design.split(x)
        parts[self.first].reshape(-1, k)[...] = own - self.E @ rest
        for t in self.rest:
            parts[t].reshape(-1, k)[...] = rest[self.columns(t)]
        return x
