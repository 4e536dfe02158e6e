"""Evaluations of many designs at once, a lane each; compiled once for each shape."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from jaxglmm.objectives.evaluate import evaluate, evaluate_glm
from jaxglmm.objectives.glm import row_information
from jaxglmm.objectives.marginal import Nodes
from jaxglmm.ops import fused
from jaxglmm.ops.native import register
from jaxglmm.ops.programs import program


def evaluate_many(family, shared, own, nodes: Nodes, psi, modes):
    """Value (B,), gradient (B, m), exact Hessian (B, m, m) and modes (B, S, n_slots) of every lane.

    Parameters
    ----------
    shared, own : Design
        The parts of a `Batch`.
    psi : (B, m)
        A lane of NaN is not wanted, and ends at once.
    modes : (B, S, n_slots)
        Where the search for the modes begins; kept where the value is not finite.
    """
    lane = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), own)
    native = fused.covers(family, eqx.combine(lane, shared))
    if native:
        register()
    return _evaluate_many(family, shared, own, nodes, psi, modes, native=native)


@program(static=("family", "native"))
def _evaluate_many(family, shared, own, nodes, psi, modes, *, native):
    one = lambda own, psi, start: evaluate(family, eqx.combine(own, shared), nodes, psi, start)
    e = jax.vmap(one)(own, psi, modes)
    return e.value, e.gradient, e.hessian, jnp.where(jnp.isfinite(e.value)[:, None, None], e.modes, modes)


@program(static=("family",))
def evaluate_glm_many(family, shared, own, psi):
    """Value, gradient and Hessian of every lane without random effects; psi = (beta, log dispersion)."""
    one = lambda own, psi: evaluate_glm(family, eqx.combine(own, shared), psi)[:3]
    return jax.vmap(one)(own, psi)


@program(static=("family",))
def information_many(family, shared, own, psi) -> tuple[Array, Array, Array]:
    """Without random effects: sum of z^2 w of each effect (B, S), rows that count (B,), and the largest |eta| (B,)."""
    return jax.vmap(lambda own, psi: row_information(family, eqx.combine(own, shared), psi))(own, psi)
