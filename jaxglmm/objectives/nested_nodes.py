"""Two nested factors with the finer one's effects integrated by quadrature, Laplace's approximation over the coarser.

The integral over a group's effect is a value of as many nodes as there are, with its exact derivatives in every
unknown, by the same kernel as for one factor. Its derivatives in the parent's shift e beyond the second are differences
of these over five points of e: an error of the fourth power of the step, about 1e-8 of terms that are themselves
corrections of Laplace's approximation over the parents.
"""

import jax.numpy as jnp
import numpy as np

from jaxglmm.objectives.marginal import Nodes
from jaxglmm.objectives.nested import AbstractNested, Groups, Parents
from jaxglmm.ops.nested import shifted_pass


_STEP = 0.05
_POINTS = _STEP * np.array([0.0, 1.0, -1.0, 2.0, -2.0])
# Rows: first, second and third difference.
_DIFFERENCES = np.array(
    [[0, 2 / 3, -2 / 3, -1 / 12, 1 / 12], [-5 / 2, 4 / 3, 4 / 3, -1 / 12, -1 / 12], [0, -1, 1, 1 / 2, -1 / 2]]
) / _STEP ** np.arange(1, 4)[:, None]  # fmt: skip


class NestedNodes(AbstractNested):
    """See the module and `objectives.nested`.

    Parameters
    ----------
    family : AbstractFamily
        Such that `ops.fused.covers_family`.
    design : NestedDesign
    nodes : Nodes
    """

    def __init__(self, family, design, nodes: Nodes):
        super().__init__(family, design)
        self.nodes = nodes
        self.modes = jnp.zeros_like(design.tiles.terms[0].z)
        self._index = jnp.asarray(design.group), jnp.asarray(design.parents)

    def sums(self, eta, unknowns, shift):
        value, slopes, curvatures = self._shifted(eta, unknowns, shift, _POINTS[:1])
        return value, slopes[:, 0], -curvatures[:, 0], None

    def groups(self, eta, psi, shift):
        T, tau, p = psi[-2] ** 2, psi[-3], len(psi) - 3
        _, slopes, curvatures = self._shifted(eta, psi[[-3, -1]], shift, _POINTS)
        score, information = slopes[:, 0], -curvatures[:, 0]
        third, fourth = _DIFFERENCES[:2] @ curvatures.T
        kappa = T / (1 + T * information)
        bend, bend_e = 0.5 * kappa * third, 0.5 * kappa * fourth + 0.5 * np.square(kappa * third)
        at = Parents(score, information, third, kappa, bend, bend_e)

        first, second, _ = _DIFFERENCES
        multiplier = first[:, None] * (kappa * bend) + second[:, None] * (0.5 * kappa)
        multiplier[0] += 1
        found = shifted_pass(
            self.family, self.design.tiles, *self._index, None, self.modes, shift, _POINTS, multiplier,
            np.concatenate([psi[: p + 1], psi[-1:]]), self.nodes,
        )  # fmt: skip
        slopes = np.asarray(found.of_parents)[:, :, 1:-1]
        scores = np.einsum("dj,hjx->dhx", _DIFFERENCES, slopes)
        scores[2] = 0.5 * kappa[:, None] * scores[2] + (0.5 * kappa**2 * third)[:, None] * scores[1]
        gradient, hessian = np.asarray(found.gradient), np.asarray(found.hessian)
        by_variance = 0.5 * hessian[p, p] if tau == 0 else 0.5 * gradient[p] / tau
        return Groups(float(found.value), gradient, hessian, by_variance, scores), at

    def _shifted(self, eta, unknowns, shift, points) -> tuple[float, np.ndarray, np.ndarray]:
        """The value, and F_e and F_ee of each parent at each point; beta is a number here, added to every eta."""
        found = shifted_pass(
            self.family, self.design.tiles, *self._index, eta, self.modes, shift, points,
            np.zeros((len(points), len(shift))), np.concatenate([[0.0], unknowns]), self.nodes,
        )  # fmt: skip
        value, of_parents = float(found.value), np.asarray(found.of_parents)
        if np.isfinite(value):
            self.modes = found.modes
        return value, of_parents[:, :, 1], of_parents[:, :, -1]
