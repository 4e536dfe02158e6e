"""One factor's scalar effects integrated by quadrature, for rows on the host: what falls on the rows' eta."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.design import Design, make_design
from jaxglmm.design.parts import in_parts
from jaxglmm.design.rows import RowDesign
from jaxglmm.objectives.level_curvature import Curvature, level_curvatures, pull_curvatures
from jaxglmm.objectives.marginal import Nodes
from jaxglmm.objectives.quadrature import slot_gradient
from jaxglmm.ops import fused
from jaxglmm.ops.programs import program


class IntegratedLevels:
    """F(eta), the log-density of all rows given the other factors' effects, and its derivatives.

    Methods take psi = (tau, log dispersion) and eta (n,) without the factor's own effects.

    Parameters
    ----------
    family : AbstractFamily
    design : RowDesign
    term : int
        The factor.
    nodes : Nodes
        For one effect, not padded.
    """

    def __init__(self, family, design: RowDesign, term: int, nodes: Nodes):
        self.family, self.nodes = family, nodes
        own, nothing = design.terms[term], np.zeros((len(design.y), 0))
        tiles, self._layout = make_design(
            design.y, nothing, weights=design.weights, codes=own.codes, n_groups=own.n_levels, z=own.z[0]
        )
        self._tiles = jax.device_put(tiles)
        self._settings = family, int(nodes.count), fused.covers(family, self._tiles)
        self._modes = np.zeros(self._layout.n_slots)

    def slope(self, psi, eta):
        """F and dF/deta (n,)."""
        value, by_eta = _slope(*self._settings, self._tiles, self.nodes, *psi, self._slots(eta))
        return float(value), self._rows(by_eta)

    def turned_slope(self, psi, eta, direction):
        """Derivatives in tau, log dispersion and eta (n,) of F + <dF/deta, direction>."""
        slots = self._slots(eta), self._slots(direction)
        by_tau, by_phi, by_eta = _turned_slope(*self._settings, self._tiles, self.nodes, *psi, *slots)
        return float(by_tau), float(by_phi), self._rows(by_eta)

    def curvature(self, psi, eta) -> Curvature:
        """Second derivatives, diagonal (n,) and vectors (K + 4, n)."""
        run = lambda design, slots: level_curvatures(self.family, design, self.nodes, *psi, *slots)
        found, modes = self._in_parts(run, (self._slots(eta), self._modes), (Curvature(False, False), False))
        if np.isfinite(modes).all():
            self._modes = np.asarray(modes)
        return Curvature(*map(self._rows, found))

    def pull_curvature(self, psi, eta, weights: Curvature):
        """Derivatives in tau, log dispersion and eta (n,) of <weights, curvature>, after `curvature` there."""
        run = lambda design, slots: pull_curvatures(self.family, design, self.nodes, *psi, *slots)
        slots = self._slots(eta), self._modes, Curvature(*map(self._slots, weights))
        (by_tau, by_phi), by_eta = self._in_parts(run, slots, ((True, True), False))
        return float(by_tau), float(by_phi), self._rows(by_eta)

    def _in_parts(self, run, slots, totals):
        found = in_parts(run, self._tiles, slots, totals=totals)
        return run(self._tiles, slots) if found is None else found

    def _slots(self, v):
        return self._layout.scatter(v)

    def _rows(self, v):
        return np.asarray(v)[..., self._layout.slot]


def _gradient(family, count, native, design: Design, nodes, tau, log_phi, eta):
    factor, z = jnp.reshape(tau, (1, 1)), design.terms[0].z
    return slot_gradient(
        family, count, True, native, eta, factor, log_phi, design.y, design.weights, z, design.index, nodes
    )


@program(static=("family", "count", "native"))
def _slope(family, count, native, design: Design, nodes, tau, log_phi, eta):
    return _gradient(family, count, native, design, nodes, tau, log_phi, eta)[:2]


@program(static=("family", "count", "native"))
def _turned_slope(family, count, native, design: Design, nodes, tau, log_phi, eta, direction):
    at = partial(_gradient, family, count, native, design, nodes, tau, log_phi)
    (_, *slope), (_, *turned) = jax.jvp(at, (eta,), (direction,))
    by_eta, by_factor, by_phi = map(jnp.add, slope, turned)
    return by_factor[0, 0], by_phi, by_eta
