"""Quadrature over the largest factor's scalar effects, and Laplace's approximation over all other factors'.

Given the other factors' effects w, the levels of the largest are independent: F(eta) = sum_j F_j (`level_curvature`) is
the log-density of the rows given w, and no longer a sum over rows. With V = Z Lambda of the others and the mode w of
F - w'w/2,

    L = F - w'w/2 - (1/2) log det M,     M = I - V'F''V,   F'' = diag(d) + P P*' level by level

A level's part of M couples all levels of the others that its rows meet, by K + 4 vectors: the sums of the columns of P
over the rows of each pair (`modes.coupled`). With C = V M^-1 V', the log-determinant changes with F as (1/2) <F'', C>
does, C held: weights (1/2) diag(C) for d, and C P* for P. So with G the derivative of that in eta, and the adjoint
k = M^-1 V'G,

    dL/deta      = F' + G + F''Vk
    dL/dpsi      = d/dpsi [F + F'Vk + (1/2) <F'', C>],     psi = (tau, log phi)
    dL/dLambda_t = sum_g (Z'dL/deta)_g w_g' + (Z'F')_g k_g' + [Z'F''Z Lambda M^-1]_gg

No third derivatives over pairs are formed, and nothing of the size of levels x levels but M, where factors cross.
Compare Rabe-Hesketh, Skrondal & Pickles (2005), J. Econometrics 128, for quadrature on every factor.
"""

from typing import NamedTuple

import numpy as np

from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, normal_equations, standardised
from jaxglmm.modes.coupled import AbstractCoupled, DenseCoupled, NestedCoupled, without_largest
from jaxglmm.modes.incidence import Incidence
from jaxglmm.modes.several import effect_scores, linear_predictor
from jaxglmm.objectives.integrated_levels import IntegratedLevels
from jaxglmm.objectives.level_curvature import Curvature, partners
from jaxglmm.objectives.marginal import Nodes
from jaxglmm.objectives.several import SeveralEvaluation, leverages, occam_change


_MAX_ITERATIONS = 200
# A decrement from which a step that is a tenth off leaves nothing, and the share of the last one beyond which a matrix
# is too old.
_CLOSE, _OLD = 1e-18, 0.1


class _SecondOrder(NamedTuple):
    """F'' at a point, and M.

    Attributes
    ----------
    sums : list of (K + 4, P, S)
        The vectors P summed over the rows of each pair, times the other factor's columns z.
    normal : Blocks
        -Z'diag(d)Z.
    M : AbstractCoupled
    """

    sums: list[np.ndarray]
    normal: Blocks
    M: AbstractCoupled


class FactorQuadrature:
    """The approximation for one data set.

    Parameters
    ----------
    family : AbstractFamily
    design : RowDesign
        With one effect of the largest factor.
    nodes : Nodes
        For one effect, not padded.
    nested : bool
        Whether to make use of it that each factor is nested in the next.
    """

    def __init__(self, family, design: RowDesign, nodes: Nodes, *, nested: bool):
        self.design, self.nodes = design, nodes
        self.largest, *self.others = design.order
        self.rest, self._incidence = without_largest(design), Incidence(design)
        self._levels = IntegratedLevels(family, design, self.largest, nodes)
        self._way = NestedCoupled if nested else DenseCoupled
        self._M: AbstractCoupled | None = None

    def evaluate(self, beta, factors, log_phi, u) -> SeveralEvaluation:
        """Value and exact gradient; `u` (and the result's) holds the other factors' standardised modes.

        Parameters
        ----------
        beta : (p,)
        factors : sequence of (S, S)
            Lambda of each term, in formula order.
        log_phi : float
        u : (q,)
            Where the search for the others' modes begins.
        """
        psi, above = (factors[self.largest][0, 0], log_phi), [factors[t] for t in self.others]
        fixed = self.design.offset + self.design.X @ beta
        nothing = SeveralEvaluation(-np.inf, np.zeros_like(beta), [np.zeros_like(f) for f in factors], 0.0, u)
        try:
            found = self._find(psi, above, fixed, u)
            if found is None and u.any():  # as `modes.several.find_modes`
                found = self._find(psi, above, fixed, np.zeros_like(u))
            if found is None:
                return nothing
            u, eta, value, slope = found
            second = self._second_order(psi, above, eta)
        except np.linalg.LinAlgError:
            return nothing
        self._M = second.M
        weights, occam = self._log_det_change(second, above)
        tau, phi, G = self._levels.pull_curvature(psi, eta, weights)
        adjoint = second.M.solve(effect_scores(self.rest, above, G)[:, None])[:, 0]
        bend = linear_predictor(self.rest, np.zeros_like(eta), above, adjoint)
        by_tau, by_phi, e = self._levels.turned_slope(psi, eta, bend)
        e = e + G
        gradients = {self.largest: np.array([[by_tau + tau]])}
        effects = zip(self.rest.split(u), self.rest.split(adjoint), occam, strict=True)
        for t, term, (part, k, o) in zip(self.others, self.rest.terms, effects, strict=True):
            gradients[t] = term.sums(e).T @ part + term.sums(slope).T @ k - o
        value = value - 0.5 * u @ u - 0.5 * second.M.log_det + self.design.constant
        by_factor = [gradients[t] for t in range(len(factors))]
        return SeveralEvaluation(float(value), self.design.X.T @ e, by_factor, by_phi + phi, u)

    def all_effects(self, u):
        """The others' effects among those of all factors, where the largest's are zero."""
        every = np.zeros(self.design.starts[-1])
        parts = self.design.split(every)
        for t, part in zip(self.others, self.rest.split(u), strict=True):
            parts[t][...] = part
        return every

    # --- The other factors' modes ------------------------------------------------------------------------------

    def _find(self, psi, above, fixed, u):
        """Modes, eta, F and F' there; None where they are not found.

        Steps use the matrix of the last evaluation for as long as it serves.
        """

        def at(u):
            eta = linear_predictor(self.rest, fixed, above, u)
            value, slope = self._levels.slope(psi, eta)
            return value - 0.5 * u @ u, eta, effect_scores(self.rest, above, slope) - u, (value, slope)

        f, eta, g, found = at(u)
        if not np.isfinite(f):
            return None
        last = np.inf
        M, fresh = self._M, False
        for _ in range(_MAX_ITERATIONS):
            step = None if M is None else M.solve(g[:, None])[:, 0]
            if step is None or (not fresh and step @ g > _OLD * last):
                M, fresh = self._second_order(psi, above, eta).M, True
                step = M.solve(g[:, None])[:, 0]
            decrement = step @ g
            if decrement <= _CLOSE:
                _, eta, _, found = at(u + step)
                return u + step, eta, *found
            shrink = 1.0
            while True:
                new = at(u + shrink * step)
                if new[0] >= f - 1e-13 * (1 + abs(f)):
                    break
                shrink *= 0.5
                if shrink < 1e-8:
                    return None
            u, (f, eta, g, found) = u + shrink * step, new
            last, fresh = decrement, False
        return None

    # --- Second order ------------------------------------------------------------------------------------------

    def _second_order(self, psi, above, eta) -> _SecondOrder:
        diagonal, vectors = self._levels.curvature(psi, eta)
        sums, normal = self._sums(vectors), normal_equations(self.rest, -diagonal)
        H, x = standardised(normal, above), _scaled(sums, above)
        return _SecondOrder(sums, normal, self._way(self._incidence, self.rest, H, x, partners(len(vectors))))

    def _log_det_change(self, second: _SecondOrder, above):
        """(1/2) diag(C) and C P* in the rows, and the change of (1/2) log det M by each Lambda at fixed F''."""
        K, pattern = len(second.sums[0]), second.M.pattern
        Y = second.M.at_pairs(_scaled([T[partners(K)] for T in second.sums], above))
        occam = [
            o - np.einsum("kps,kpr->sr", T, y)
            for o, T, y in zip(occam_change(self.rest, second.normal, above, pattern), second.sums, Y, strict=True)
        ]
        along = self._at_rows([y @ factor.T for y, factor in zip(Y, above, strict=True)])
        return Curvature(0.5 * leverages(self.rest, above, pattern), along), occam

    # --- Rows and pairs ----------------------------------------------------------------------------------------

    @property
    def _pairs(self):
        return [self.design.pairs[self.largest, t] for t in self.others]

    def _sums(self, vectors):
        """sum z_i v_i over the rows of each pair with the largest factor: (k, n) -> (k, P, S) by factor."""
        out = []
        for pairs, term in zip(self._pairs, self.rest.terms, strict=True):
            sums = np.empty((len(vectors), len(pairs), term.n_effects))
            for k, v in enumerate(vectors):
                for a, z in enumerate(term.z):
                    sums[k, :, a] = np.bincount(pairs.row, v if z is None else v * z, len(pairs))
            out.append(sums)
        return out

    def _at_rows(self, x):
        """z_i'x of the row's pair, over all other factors: (k, P, S) by factor -> (k, n)."""
        out = np.zeros((len(x[0]), len(self.design.y)))
        for v, pairs, term in zip(x, self._pairs, self.rest.terms, strict=True):
            for a, z in enumerate(term.z):
                for total, part in zip(out, v[:, :, a], strict=True):
                    total += part[pairs.row] if z is None else part[pairs.row] * z
        return out


def _scaled(x, above):
    return [v @ factor for v, factor in zip(x, above, strict=True)]
