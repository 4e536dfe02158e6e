"""What the optimiser and the posterior read: compiled evaluations of a design at a point.

Parameters are raw here: psi = (beta, free entries of Lambda, log dispersion), so that Lambda = 0 is an ordinary
point. The Hessian is the exact one of the value.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from jaxglmm.design.parts import in_parts
from jaxglmm.design.shards import each_part, refuse_scattered
from jaxglmm.modes.separable import curvature, find_modes, linear
from jaxglmm.objectives.glm import glm_evaluate
from jaxglmm.objectives.marginal import Nodes, group_gradient, loadings
from jaxglmm.objectives.second_order import group_hessian
from jaxglmm.ops import fused, small
from jaxglmm.ops.group import map_groups
from jaxglmm.ops.native import register
from jaxglmm.ops.programs import program


# Nodes of the posterior are weighed so many at once that the vectors still fit in cache: slots times nodes.
_NODE_SLOTS = 4096


class Evaluation(NamedTuple):
    """A design at a point: value (), gradient (m,), hessian (m, m), modes (S, n_slots)."""

    value: Array
    gradient: Array
    hessian: Array
    modes: Array


_TOTALS: Any = Evaluation(True, True, True, False)  # which are sums over the parts of a design


def _split(psi, p, q):
    return psi[:p], psi[p : p + q], psi[p + q]


def evaluate(family, design, nodes: Nodes, psi, start, *, determinant=True, second=True) -> Evaluation:
    """Value, gradient, exact Hessian (where `second`) and modes; one pass over X.

    Computed by the native kernel where there is one for this family and design (`ops.fused.covers`).

    Parameters
    ----------
    psi : (p + q + 1,)
        Fixed effects, free entries of Lambda, log dispersion.
    start : (S, n_slots)
        Where the search for the modes begins.

    Results have the type of psi, modes that of `start`. Rows are computed with in the type of psi unless the design
    says otherwise (`Design.single`; native kernels always compute in float64).
    """
    refuse_scattered(design)
    native = fused.covers(family, design)
    if native:
        register()  # a stored program is run without the tracing that would do it
    at = lambda design, start: _evaluate(
        family, design, nodes, psi, start, determinant=determinant, second=second, native=native
    )
    traced = any(isinstance(v, Tracer) for v in (psi, start))
    if not (native or traced) and (parts := in_parts(at, design, start, totals=_TOTALS)) is not None:
        return parts
    return at(design, start)


@program(static=("family", "determinant", "second", "native"))
def _evaluate(family, design, nodes: Nodes, psi, start, *, determinant, second, native) -> Evaluation:
    if design.index.mesh is not None:
        part = lambda d, same, start: _evaluate(
            family, d, *same, start, determinant=determinant, second=second, native=native
        )
        return each_part(part, design, (nodes, psi), start, totals=_TOTALS, out=Evaluation(0, 0, 0, 1))
    if native:
        value, *rest = fused.fused_pass(family, design, nodes, psi, start, determinant=determinant, second=second)
        return Evaluation(value + design.constant, *rest)
    term = design.terms[0]
    m, sums, stored = psi.shape[0], psi.dtype, start.dtype
    work = design.work_type(sums)
    psi, nodes = psi.astype(work), nodes.astype(work)

    beta, raw, log_phi = _split(psi, design.X.shape[1], len(term.covariance.entries[0]))
    factor, entries = term.covariance.raw_factor(raw), term.covariance.entries

    def body(total, head, rows, X):
        y, weight, offset, z, start = rows
        eta = offset + jnp.matmul(X, beta, precision="highest")
        given = family, eta, z, factor, log_phi, y, weight, nodes
        g = group_gradient(total, head, *given, start, determinant)
        gradient = jnp.concatenate([total.columns(g.eta), g.factor_sum(z)[entries], jnp.sum(g.log_phi)[None]])
        hessian = jnp.zeros((m, m), psi.dtype)
        if second:
            hessian = group_hessian(total, head, *given, g, entries, determinant)
        return (jnp.sum(g.value), gradient, hessian), g.modes.astype(stored)

    rows = (design.y, design.weights, design.offset, term.z, start)
    (value, gradient, hessian), modes = map_groups(body, design.index, rows, design.X, dtype=work, sums=sums)
    return Evaluation(value + design.constant, gradient, 0.5 * (hessian + hessian.T), modes)


@program(static=("family", "second"))
def evaluate_glm(family, design, psi, *, second=True):
    """As `evaluate` without random effects: psi = (beta, log dispersion); the last result is (score, spread, level)."""
    refuse_scattered(design)
    if design.index.mesh is not None:
        part = lambda d, psi, _: evaluate_glm(family, d, psi, second=second)
        return each_part(part, design, psi, (), totals=(True,) * 4, out=(0,) * 4)
    value, gradient, hessian, groups = glm_evaluate(family, design, psi[:-1], psi[-1], second=second)
    return value + design.constant, gradient, hessian, groups


class Moments(NamedTuple):
    """Posterior of u in each slot: mode (S, N), M = L^-T with M M' = H^-1 at the mode (S, S, N), mean (S, N),
    covariance (S, S, N), and the nodes' weights (K, N)."""

    mode: Array
    root: Array
    mean: Array
    covariance: Array
    weights: Array


@program(static=("family",))
def posterior_moments(family, design, nodes: Nodes, psi, start) -> Moments:
    """Mode, curvature and node moments of every group's posterior given the parameters."""
    if design.index.mesh is not None:
        part = lambda d, same, start: posterior_moments(family, d, *same, start)
        before = Moments(1, 2, 1, 2, 1)
        return each_part(part, design, (nodes, psi), start, totals=Moments(*[False] * 5), out=before)
    term = design.terms[0]

    def body(total, head, rows, X):
        y, weight, offset, z, start = rows
        beta, raw, log_phi = _split(psi, X.shape[1], len(term.covariance.entries[0]))
        eta = offset + jnp.matmul(X, beta, precision="highest")
        v = loadings(term.covariance.raw_factor(raw), z)
        u = find_modes(total, family, eta, v, y, weight, log_phi, start)
        L = small.cholesky(curvature(total, v, family.derivatives(eta + linear(v, u), y, weight, log_phi).w))
        M = jnp.swapaxes(small.inverse_lower(L), 0, 1)
        spread = jnp.sqrt(2.0).astype(u.dtype) * M
        log_density = lambda u: (
            total(family.derivatives(eta + linear(v, u), y, weight, log_phi).l) - 0.5 * jnp.sum(u * u, 0)
        )
        peak = log_density(u)
        weigh = lambda node: jnp.exp(node[1] + log_density(u + small.matvec(spread, node[0][:, None])) - peak)
        # A loop over few nodes at once has less to do than one over each where a block is short.
        at_once = min(nodes.log_weights.shape[0], max(1, _NODE_SLOTS // eta.shape[0]))
        weights = jax.lax.map(weigh, (nodes.points.T, nodes.log_weights), batch_size=at_once)
        weights = weights / jnp.sum(weights, axis=0)
        # Moments of the nodes themselves, then of u = mode + spread * node.
        first = jnp.matmul(nodes.points, weights, precision="highest")
        squares = nodes.points[:, None] * nodes.points[None]
        second = jnp.matmul(squares, weights, precision="highest") - first[:, None] * first[None]
        product = lambda A, B: jnp.sum(A[:, :, None] * B[None], axis=1)
        covariance = product(product(spread, second), jnp.swapaxes(spread, 0, 1))
        return (), Moments(u, M, u + small.matvec(spread, first), covariance, weights)

    rows = (design.y, design.weights, design.offset, term.z, start)
    return map_groups(body, design.index, rows, design.X, dtype=psi.dtype)[1]
