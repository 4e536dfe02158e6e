"""Two nested factors with the groups' effects profiled out: Laplace's approximation over both, in closed forms."""

import jax.numpy as jnp
import numpy as np

from jaxglmm.objectives.nested import AbstractNested, Groups, Parents
from jaxglmm.ops.nested import N_SCALARS, N_VECTORS, fixed_part, nested_pass


class NestedLaplace(AbstractNested):
    """See `objectives.nested`; the formulas of the groups are in `kernels/cpu/nested_target.cc`.

    Parameters
    ----------
    family : AbstractFamily
        Such that `ops.fused.covers_family`.
    design : NestedDesign
    """

    def __init__(self, family, design):
        super().__init__(family, design)
        self.modes = jnp.zeros(len(design.parents))
        self._index = jnp.asarray(design.group), jnp.asarray(design.parents)
        self._last = self.shift, np.zeros((0, 0))  # a shift, and what the parents sum up there

    def sums(self, eta, unknowns, shift):
        found = self._pass(eta, np.stack([shift, 0 * shift, 0 * shift]), unknowns, columns=False)
        self._last = shift, np.asarray(found.of_parents)
        if np.isfinite(float(found.value)):
            self.modes = found.modes
        at = self._last[1].T
        return float(found.value), at[0], at[1], -at[3]

    def groups(self, eta, psi, shift):
        T, tau = psi[-2] ** 2, psi[-3]
        # kappa and G_e at the mode, by their derivatives from a shift close by.
        if T == 0:
            kappa = bend = np.zeros_like(shift)
        else:
            at, step = _parents(self._last[1], T), shift - self._last[0]
            kappa, bend = T / (1 + T * (at.information - at.third * step)), at.bend + at.bend_e * step
        found = self._pass(eta, np.stack([shift, kappa, kappa * bend]), psi[[-3, -1]], columns=True)
        sums, p = np.asarray(found.of_parents), len(psi) - 3
        at = _parents(sums, T)
        other = sums[:, N_SCALARS : 2 * N_SCALARS].reshape(-1, 2, N_VECTORS).transpose(2, 0, 1)
        beta = sums[:, 2 * N_SCALARS :].reshape(-1, N_VECTORS, p).transpose(1, 0, 2)
        scores = np.concatenate([beta, other], axis=2)
        scores[2] += (0.5 * at.kappa**2 * at.third)[:, None] * scores[1]
        # From the variance to its root.
        gradient, hessian = np.array(found.gradient), np.array(found.hessian)
        by_variance = gradient[p]
        gradient[p] *= 2 * tau
        hessian[p] *= 2 * tau
        hessian[:, p] *= 2 * tau
        hessian[p, p] += 2 * by_variance
        scores[:, :, p] *= 2 * tau
        return Groups(float(found.value), gradient, hessian, by_variance, scores), at

    def posterior(self, psi):
        """Modes and variances of the effects given the parameters: of the groups by level, and of the parents.

        A parent's is kappa; a group's is q plus kappa times the square of what its effect moves with its parent's.
        """
        T, tau, unknowns = psi[-2] ** 2, psi[-3], psi[[-3, -1]]
        eta = fixed_part(self.design.tiles, psi[:-3])
        shift = self.find_shifts(eta, psi, self.shift)
        shift = self.shift if shift is None else shift
        found = self._pass(eta, np.stack([shift, 0 * shift, 0 * shift]), unknowns, columns=False)
        b, W = tau * np.asarray(found.modes), np.asarray(found.information)
        kappa, q = _parents(np.asarray(found.of_parents), T).kappa, tau**2 / (1 + tau**2 * W)
        variance = q + np.square(q * W) * kappa[self.design.parents]
        modes, variances = np.empty_like(b), np.empty_like(b)
        modes[self.design.levels], variances[self.design.levels] = b, variance
        return (modes, variances), (shift, kappa)

    def _pass(self, eta, held, unknowns, *, columns):
        return nested_pass(
            self.family, self.design.tiles, *self._index, eta, self.modes, held, unknowns, columns=columns
        )


def _parents(sums, T) -> Parents:
    score, information, P, R, P_e, R_e = sums[:, :N_SCALARS].T
    kappa = T / (1 + T * information)
    bend, bend_e = -0.5 * (P + kappa * R), -0.5 * (P_e + kappa * R_e) + 0.5 * np.square(kappa * R)
    return Parents(score, information, -R, kappa, bend, bend_e)
