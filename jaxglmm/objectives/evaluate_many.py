"""Evaluations of many designs at once, a lane each; compiled once for each shape."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from jaxglmm.objectives.evaluate import evaluate, evaluate_glm
from jaxglmm.objectives.glm import glm_evaluate, row_sums
from jaxglmm.objectives.marginal import Nodes
from jaxglmm.ops import fused
from jaxglmm.ops.native import register
from jaxglmm.ops.programs import program


# Numbers in an array of rows that is worked on at once.
_NUMBERS = 1 << 15


class GroupSpread(NamedTuple):
    """Lanes without random effects.

    Attributes
    ----------
    score, spread, level : (B, S) or None
        As `objectives.glm.glm_evaluate` has them; None for designs without random effects.
    rows : (B,)
        Rows of positive weight.
    largest : (B,)
        Largest |eta| of them.
    """

    score: Any
    spread: Any
    level: Any
    rows: Array
    largest: Array


def evaluate_many(family, shared, own, nodes: Nodes, psi, modes, *, determinant=True, second=True):
    """Value (B,), gradient (B, m), exact Hessian (B, m, m) and modes (B, S, n_slots) of every lane.

    Parameters
    ----------
    shared, own : Design
        The parts of a `Batch`.
    psi : (B, m)
        A lane of NaN is not wanted, and ends at once.
    modes : (B, S, n_slots)
        Where the search for the modes begins; kept where the value is not finite.
    determinant, second : bool
        As in `objectives.evaluate.evaluate`.
    """
    lane = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), own)
    native = fused.covers(family, eqx.combine(lane, shared))
    if native:
        register()
    options = {"determinant": determinant, "second": second}
    return _evaluate_many(family, shared, own, nodes, psi, modes, native=native, **options)


@program(static=("family", "determinant", "second", "native"))
def _evaluate_many(family, shared, own, nodes, psi, modes, *, determinant, second, native):
    options = {"determinant": determinant, "second": second}
    one = lambda own, psi, start: evaluate(family, eqx.combine(own, shared), nodes, psi, start, **options)
    e = jax.vmap(one)(own, psi, modes)
    return e.value, e.gradient, e.hessian, jnp.where(jnp.isfinite(e.value)[:, None, None], e.modes, modes)


@program(static=("family",))
def evaluate_glm_many(family, shared, own, psi) -> tuple[Array, Array, Array]:
    """Value (B,), gradient (B, m) and Hessian (B, m, m) without random effects; psi = (beta, log dispersion)."""

    def one(design, psi):
        rows = design.X, design.y, design.weights, design.offset
        value, gradient, hessian, _ = row_sums(family, *rows, psi[:-1], psi[-1])
        return value + design.constant, gradient, hessian

    return _map_lanes(one, shared, own, psi)


@program(static=("family", "second"))
def evaluate_glm_weighted(family, shared, own, psi, *, second=True) -> tuple[Array, Array, Array]:
    """As `evaluate_glm_many`, for lanes of many rows that differ in their weights: X is read once for all of them."""
    one = lambda own, psi: evaluate_glm(family, eqx.combine(own, shared), psi, second=second)[:3]
    return jax.vmap(one)(own, psi)


@program(static=("family",))
def group_spread_many(family, shared, own, psi) -> GroupSpread:
    """What tells whether the groups of a lane differ, at a fit without random effects."""

    def one(design, psi):
        score, spread, level = glm_evaluate(family, design, psi[:-1], psi[-1])[3] if design.terms else (None,) * 3
        eta = design.offset + jnp.matmul(design.X, psi[:-1], precision="highest")
        live = design.weights > 0
        return GroupSpread(score, spread, level, jnp.sum(live), jnp.max(jnp.where(live, jnp.abs(eta), 0.0)))

    return _map_lanes(one, shared, own, psi)


def _map_lanes(one, shared, own, psi):
    """Some lanes at once, a power of two, so that their rows stay in cache."""
    slots = (shared.y if own.y is None else own.y).shape[-1]
    together = 1 << max((_NUMBERS // slots).bit_length() - 1, 0)
    at = lambda arguments: one(eqx.combine(arguments[0], shared), arguments[1])
    return jax.lax.map(at, (own, psi), batch_size=min(together, psi.shape[0]))
