"""Laplace's approximation for a scalar effect of each group inside a scalar effect of each parent: all closed forms.

Given the shift e_h that a parent's effect is of its rows' eta, the groups' effects are profiled out one by one
(`kernels/cpu/nested_target.cc`): F_h(e) is the sum over groups of f, A_h(e) that of -log D / 2, and eliminating the
groups leaves one number of the joint Hessian for each parent. With T the parents' variance, at the mode e_h = T F_e,

    L = sum_h  F - e^2 / (2 T) + A - log(D) / 2,    D = 1 + T Omega,   Omega = -F_ee,   kappa = T / D

and with G = A - log(D) / 2, lambda = kappa G_e, any two unknowns x, y but T, and derivatives at fixed e on the right,

    L_x  = F_x + A_x + (kappa/2) F_eex + lambda F_ex
    L_xy = [F + A + (kappa/2) F_ee + lambda F_e]_xy  + kappa F_ex F_ey + (kappa^2/2) F_eex F_eey
           + kappa (G_ex F_ey + F_ex G_ey) + kappa^2 G_ee F_ex F_ey
           + lambda kappa (F_eex F_ey + F_ex F_eey) + lambda kappa^2 F_eee F_ex F_ey

where kappa and lambda are held in the brackets, which are sums over groups. Derivation: the implicit function theorem
at the mode, de/dx = kappa F_ex, and at it dF_e/dT = -Omega F_e / D.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxglmm.design.nesting import NestedDesign
from jaxglmm.ops.nested import N_SCALARS, N_VECTORS, NestedPass, fixed_part, nested_pass


# The parents' modes are one Newton step away where no step gains more than this.
_CLOSE, _MOST_STEPS = 1e-8, 100


class NestedEvaluation(NamedTuple):
    """A design at psi = (beta, tau of the groups, tau of the parents, log dispersion).

    Attributes
    ----------
    value : float
        Minus infinity where it is not finite.
    gradient, hessian : (m,), (m, m)
    by_variance : (2,)
        Derivatives in tau^2 of the groups and of the parents.
    """

    value: float
    gradient: np.ndarray
    hessian: np.ndarray
    by_variance: np.ndarray


class _Parents(NamedTuple):
    """What of each parent the groups sum up to: (H,) each; A_e and G_e = A_e + (kappa/2) F_eee, and G_ee."""

    score: np.ndarray
    information: np.ndarray
    third: np.ndarray
    kappa: np.ndarray
    bend: np.ndarray
    bend_e: np.ndarray


class NestedLaplace:
    """The approximation for one data set, with modes that warm-start the next evaluation.

    Parameters
    ----------
    family : AbstractFamily
    design : NestedDesign
        The family such that `ops.fused.covers_family`.

    Attributes
    ----------
    passes : float
        Passes over the rows with their columns so far.
    """

    def __init__(self, family, design: NestedDesign):
        self.family, self.design, self.passes = family, design, 0.0
        self.modes = jnp.zeros(len(design.parents))
        self.shift = np.zeros(design.n_parents)
        self._index = jnp.asarray(design.group), jnp.asarray(design.parents)
        self._moves: tuple[np.ndarray, np.ndarray] | None = None  # psi, and de/dpsi there

    def evaluate(self, psi) -> NestedEvaluation:
        """Value, exact gradient and Hessian.

        Parameters
        ----------
        psi : (m,)
        """
        psi = np.asarray(psi, float)
        m, T, unknowns = len(psi), psi[-2] ** 2, psi[[-3, -1]]
        eta = fixed_part(self.design.tiles, jnp.asarray(psi[:-3]))
        shift, kappa, bend = self._find_shifts(eta, unknowns, T, self._predicted(psi))
        found = self._pass(eta, np.stack([shift, kappa, kappa * bend]), unknowns, columns=True)
        self.passes += 1
        value, gradient, hessian, by_variance, moves = _joined(found, shift, T, psi)
        if not (np.isfinite(value) and np.isfinite(gradient).all() and np.isfinite(hessian).all()):
            return NestedEvaluation(-np.inf, np.zeros(m), np.zeros((m, m)), np.zeros(2))
        self.modes, self.shift, self._moves = found.modes, shift, (psi, moves)
        return NestedEvaluation(value, gradient, hessian, by_variance)

    def posterior(self, psi):
        """Modes and variances of the effects given the parameters: of the groups by level, and of the parents.

        A parent's is kappa; a group's is q plus kappa times the square of what its effect moves with its parent's.
        """
        T, tau, unknowns = psi[-2] ** 2, psi[-3], psi[[-3, -1]]
        eta = fixed_part(self.design.tiles, jnp.asarray(psi[:-3]))
        shift, kappa, _ = self._find_shifts(eta, unknowns, T, self.shift)
        found = self._pass(eta, np.stack([shift, 0 * shift, 0 * shift]), unknowns, columns=False)
        b, W = tau * np.asarray(found.modes), np.asarray(found.information)
        q = tau**2 / (1 + tau**2 * W)
        variance = q + np.square(q * W) * kappa[self.design.parents]
        modes, variances = np.empty_like(b), np.empty_like(b)
        modes[self.design.levels], variances[self.design.levels] = b, variance
        return (modes, variances), (shift, kappa)

    def at_zero(self, beta, log_phi):
        """With all effects at zero: the derivative of the value in the parents' variance, and its rough curvature
        there, the sum of squares of their information."""
        eta = fixed_part(self.design.tiles, jnp.asarray(beta))
        none = np.zeros((3, self.design.n_parents))
        found = self._pass(eta, none, np.array([0.0, log_phi]), columns=False)
        score, information = np.asarray(found.of_parents).T[:2]
        return 0.5 * (score @ score - information.sum()), information @ information

    def _pass(self, eta, held, unknowns, *, columns) -> NestedPass:
        return nested_pass(
            self.family, self.design.tiles, *self._index, eta, self.modes, held, unknowns, columns=columns
        )

    def _predicted(self, psi):
        if self._moves is None:
            return self.shift
        return self.shift + self._moves[1] @ (psi - self._moves[0])

    def _find_shifts(self, eta, unknowns, T, shift):
        """Each parent's shift e at its mode, kappa and G_e there.

        T F_e(e) - e falls with slope -1 at least, so that the mode lies between e and e + (T F_e - e).
        """
        if T == 0:
            shift = np.zeros_like(shift)
        low, high = np.full_like(shift, -np.inf), np.full_like(shift, np.inf)
        for _ in range(_MOST_STEPS):
            found = self._pass(eta, np.stack([shift, 0 * shift, 0 * shift]), unknowns, columns=False)
            if not np.isfinite(float(found.value)):
                break
            self.modes = found.modes
            at = _parents(np.asarray(found.of_parents), T)
            move = T * at.score - shift
            step = move / (1 + T * at.information)
            if T == 0 or np.max(move * step) <= _CLOSE * T:
                # kappa and G_e after the step, by their derivatives.
                kappa = T / (1 + T * (at.information - at.third * step))
                return shift + step, kappa, at.bend + at.bend_e * step
            up = move > 0
            low = np.where(up, shift, np.maximum(low, shift + move))
            high = np.where(up, np.minimum(high, shift + move), shift)
            shift = shift + step
            shift = np.where((shift < low) | (shift > high), 0.5 * (low + high), shift)
        nothing = np.full_like(shift, np.nan)
        return nothing, nothing, nothing


def _parents(sums, T) -> _Parents:
    score, information, P, R, P_e, R_e = sums[:, :N_SCALARS].T
    kappa = T / (1 + T * information)
    bend, bend_e = -0.5 * (P + kappa * R), -0.5 * (P_e + kappa * R_e) + 0.5 * np.square(kappa * R)
    return _Parents(score, information, -R, kappa, bend, bend_e)


def _joined(found: NestedPass, shift, T, psi):
    """Value, gradient and Hessian in psi, derivatives in both variances, and de/dpsi (H, m)."""
    sums, p = np.asarray(found.of_parents), len(psi) - 3
    at = _parents(sums, T)
    kappa, lam, third, score = at.kappa, at.kappa * at.bend, at.third, at.score
    D = 1 + T * at.information
    other = sums[:, N_SCALARS : 2 * N_SCALARS].reshape(-1, 2, N_VECTORS)
    beta = sums[:, 2 * N_SCALARS :].reshape(-1, N_VECTORS, p)
    r1, r2, r3 = (np.concatenate([beta[:, v], other[:, :, v]], axis=1) for v in range(N_VECTORS))  # F_ex, F_eex, G_ex
    r3 = r3 + (0.5 * kappa**2 * third)[:, None] * r2

    value = float(found.value) - 0.5 * np.sum(np.log(D)) - (0.5 * shift @ shift / T if T > 0 else 0.0)
    square = kappa + kappa**2 * at.bend_e + lam * kappa**2 * third
    mixed = r1.T @ (kappa[:, None] * r3 + (lam * kappa)[:, None] * r2)
    inner = np.asarray(found.hessian) + r1.T @ (square[:, None] * r1) + r2.T @ ((0.5 * kappa**2)[:, None] * r2)
    inner = inner + mixed + mixed.T

    # In T: derivatives of F_e, Omega and G_e along the moving mode.
    by_T = 0.5 * score**2 - 0.5 * at.information / D + at.bend * score / D
    along = lambda v: v[:, None]
    score_x, omega_x = r1 / along(D), -r2 - along(third * kappa) * r1
    bend_x = r3 + along(at.bend_e * kappa) * r1
    cross = (
        along(score) * score_x - 0.5 * omega_x / along(D**2) + bend_x * along(score / D)
        + along(at.bend) * (score_x / along(D) - along(T * score / D**2) * omega_x)
    )  # fmt: skip
    score_T, omega_T = -at.information * score / D, -third * score / D
    D_T = at.information + T * omega_T
    bend_T = at.bend_e * score / D + 0.5 * third / D**2
    twice = (
        score * score_T - 0.5 * (omega_T / D - at.information * D_T / D**2)
        + bend_T * score / D + at.bend * (score_T / D - score * D_T / D**2)
    )  # fmt: skip

    m = p + 3
    others, groups, parents = np.r_[0 : p + 1, m - 1], p, p + 1
    gradient, hessian = np.zeros(m), np.zeros((m, m))
    gradient[others], gradient[parents] = np.asarray(found.gradient), by_T.sum()
    hessian[np.ix_(others, others)] = inner
    hessian[parents, others] = hessian[others, parents] = cross.sum(0)
    hessian[parents, parents] = twice.sum()
    moves = np.zeros((len(shift), m))
    moves[:, others], moves[:, parents] = kappa[:, None] * r1, score / D

    # From the variances to their roots.
    by_variance, slope = gradient[[groups, parents]], np.ones(m)
    slope[[groups, parents]] = 2 * psi[[groups, parents]]
    hessian *= slope[:, None] * slope
    hessian[[groups, parents], [groups, parents]] += 2 * by_variance
    return value, gradient * slope, hessian, by_variance, moves * slope
