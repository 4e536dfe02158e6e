"""A scalar effect of each group inside one of each parent: Laplace's approximation over the parents' effects.

Given the shift e that a parent's effect is of its rows' eta, its groups are independent, and their effects are
eliminated one by one: profiled out, with G_1 the sum of what their elimination leaves of log determinants, or
integrated by quadrature, where G_1 = 0. With F(e) the sum over the groups of a parent and T the parents' variance,

    L = sum over parents of  F - e^2 / (2 T) + G,   G = G_1 - log(D) / 2,   D = 1 + T Omega,   Omega = -F_ee

at the mode e = T F_e. With kappa = T / D, lambda = kappa G_e, any two unknowns x, y but T, and derivatives at fixed e
on the right,

    L_x  = F_x + G_1x + (kappa/2) F_eex + lambda F_ex
    L_xy = [F + G_1 + (kappa/2) F_ee + lambda F_e]_xy  + kappa F_ex F_ey + (kappa^2/2) F_eex F_eey
           + kappa (G_ex F_ey + F_ex G_ey) + kappa^2 G_ee F_ex F_ey
           + lambda kappa (F_eex F_ey + F_ex F_eey) + lambda kappa^2 F_eee F_ex F_ey

where kappa and lambda are held in the brackets, which are sums over groups. Derivation: the implicit function theorem
at the mode, de/dx = kappa F_ex, and at it dF_e/dT = -Omega F_e / D.
"""

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.nesting import NestedDesign
from jaxglmm.ops.nested import fixed_part


# The parents' modes are one step away where no step gains more than this; a step that knows of third derivatives leaves
# the cube of the error and not its square.
_CLOSE, _CLOSE_BY_THIRD, _MOST_STEPS = 1e-8, 1e-6, 100


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


class Parents(NamedTuple):
    """Of each parent (H,): F_e, Omega, F_eee, kappa, G_e and G_ee."""

    score: np.ndarray
    information: np.ndarray
    third: np.ndarray
    kappa: np.ndarray
    bend: np.ndarray
    bend_e: np.ndarray


class Groups(NamedTuple):
    """What is summed over groups, in x = (beta, tau of the groups, log dispersion).

    Attributes
    ----------
    value : float
        F + G_1.
    gradient, hessian : (m - 1,), (m - 1, m - 1)
        L_x, and the brackets of L_xy.
    by_variance : float
        L's derivative in tau^2.
    scores : (3, H, m - 1)
        F_ex, F_eex and G_ex of each parent.
    """

    value: float
    gradient: np.ndarray
    hessian: np.ndarray
    by_variance: float
    scores: np.ndarray


class AbstractNested(abc.ABC):
    """The approximation for one data set, with modes that warm-start the next evaluation.

    Attributes
    ----------
    passes : float
        Passes over the rows with their columns so far.
    modes : array
        Of the groups, where the search for them begins.
    """

    modes: jax.Array

    def __init__(self, family, design: NestedDesign):
        self.family, self.design, self.passes = family, design, 0.0
        self.shift = np.zeros(design.n_parents)
        self._moves: tuple[np.ndarray, np.ndarray] | None = None  # psi, and de/dpsi there

    @abc.abstractmethod
    def sums(self, eta, unknowns, shift) -> tuple[float, np.ndarray, np.ndarray, np.ndarray | None]:
        """F_e, Omega and F_eee of each parent at a shift, first a number that is finite where all went well.

        F_eee is None where it is not known.

        Parameters
        ----------
        eta : (n_slots,)
            Offset and fixed part.
        unknowns : (2,)
            tau of the groups, log dispersion.
        shift : (H,)
        """

    @abc.abstractmethod
    def groups(self, eta, psi, shift) -> tuple[Groups, Parents]:
        """Everything at the parents' modes."""

    def evaluate(self, psi) -> NestedEvaluation:
        """Value, exact gradient and Hessian.

        Parameters
        ----------
        psi : (m,)
        """
        psi = np.asarray(psi, float)
        eta = fixed_part(self.design.tiles, psi[:-3])
        start = self.shift if self._moves is None else self.shift + self._moves[1] @ (psi - self._moves[0])
        e = self._from(eta, psi, start)
        if e is None and (start.any() or np.asarray(self.modes).any()):
            # From modes of other parameters the search for these may overflow; from zero the way is always up.
            warm, self.modes = self.modes, jnp.zeros_like(self.modes)
            e = self._from(eta, psi, np.zeros_like(start))
            if e is None:
                self.modes = warm
        m = len(psi)
        return NestedEvaluation(-np.inf, np.zeros(m), np.zeros((m, m)), np.zeros(2)) if e is None else e

    def _from(self, eta, psi, start) -> NestedEvaluation | None:
        """With the search for the parents' modes begun at `start`; None where there is no finite value."""
        with np.errstate(over="ignore", invalid="ignore"):
            shift = self.find_shifts(eta, psi, start)
        if shift is None:
            return None
        found, at = self.groups(eta, psi, shift)
        self.passes += 1
        e, moves = _joined(found, at, shift, psi)
        if not (np.isfinite(e.value) and np.isfinite(e.gradient).all() and np.isfinite(e.hessian).all()):
            return None
        self.shift, self._moves = shift, (psi, moves)
        return e

    def at_zero(self, beta, log_phi):
        """With all effects at zero: the derivative of the value in the parents' variance, and its rough curvature
        there, the sum of squares of their information."""
        eta = fixed_part(self.design.tiles, np.asarray(beta))
        _, score, information, _ = self.sums(eta, np.array([0.0, log_phi]), np.zeros(self.design.n_parents))
        return 0.5 * (score @ score - information.sum()), information @ information

    def find_shifts(self, eta, psi, shift):
        """Each parent's shift e at its mode; None where it is not found.

        T F_e(e) - e falls with slope -1 at least, so that the mode lies between e and e + (T F_e - e).
        """
        T, unknowns = psi[-2] ** 2, psi[[-3, -1]]
        if T == 0:
            return np.zeros_like(shift)
        low, high = np.full_like(shift, -np.inf), np.full_like(shift, np.inf)
        for _ in range(_MOST_STEPS):
            value, score, information, third = self.sums(eta, unknowns, shift)
            if not np.isfinite(value):
                return None
            move = T * score - shift
            slope = 1 + T * np.maximum(information, 0.0)
            step = move / slope
            near = np.max(move * step) <= (_CLOSE if third is None else _CLOSE_BY_THIRD) * T
            if third is not None:  # Halley's step; Newton's where it would differ much
                step = step / np.clip(1 - 0.5 * step * T * third / slope, 0.5, 2.0)
            if near:
                return shift + step
            up = move > 0
            low = np.where(up, shift, np.maximum(low, shift + move))
            high = np.where(up, np.minimum(high, shift + move), shift)
            shift = shift + step
            shift = np.where((shift < low) | (shift > high), 0.5 * (low + high), shift)
        return None


def _joined(found: Groups, at: Parents, shift, psi) -> tuple[NestedEvaluation, np.ndarray]:
    """Value, gradient and Hessian in psi, and de/dpsi (H, m)."""
    T, m = psi[-2] ** 2, len(psi)
    kappa, lam, third, score = at.kappa, at.kappa * at.bend, at.third, at.score
    r1, r2, r3 = found.scores
    D = 1 + T * at.information
    along = lambda v: v[:, None]
    value = found.value - 0.5 * np.sum(np.log(D)) - (0.5 * shift @ shift / T if T > 0 else 0.0)
    square = kappa + kappa**2 * at.bend_e + lam * kappa**2 * third
    mixed = r1.T @ (along(kappa) * r3 + along(lam * kappa) * r2)
    inner = found.hessian + r1.T @ (along(square) * r1) + r2.T @ (along(0.5 * kappa**2) * r2) + mixed + mixed.T

    # In T: derivatives of F_e, Omega and G_e along the moving mode.
    by_T = 0.5 * score**2 - 0.5 * at.information / D + at.bend * score / D
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

    others, parents = np.r_[0 : m - 2, m - 1], m - 2
    to_root = 2 * psi[parents]
    gradient, hessian, moves = np.zeros(m), np.zeros((m, m)), np.zeros((len(shift), m))
    gradient[others], gradient[parents] = found.gradient, to_root * by_T.sum()
    hessian[np.ix_(others, others)] = inner
    hessian[parents, others] = hessian[others, parents] = to_root * cross.sum(0)
    hessian[parents, parents] = to_root**2 * twice.sum() + 2 * by_T.sum()
    moves[:, others], moves[:, parents] = along(kappa) * r1, to_root * score / D
    return NestedEvaluation(value, gradient, hessian, np.array([found.by_variance, by_T.sum()])), moves
