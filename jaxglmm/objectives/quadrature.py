"""Adaptive Gauss-Hermite quadrature as a pure function of parameters and design."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxglmm.arguments import a_family, whole
from jaxglmm.design.design import Design, only_term
from jaxglmm.model.covariance import Covariance
from jaxglmm.model.families import AbstractFamily
from jaxglmm.objectives.glm import glm_loglik
from jaxglmm.objectives.marginal import MOST_NODES, gauss_hermite, group_gradient, group_value
from jaxglmm.objectives.params import Params, check_params
from jaxglmm.ops import fused, modes
from jaxglmm.ops.group import map_groups
from jaxglmm.ops.varying import alike


class AdaptiveQuadrature(eqx.Module):
    """Marginal log-likelihood by adaptive Gauss-Hermite quadrature.

    `AdaptiveQuadrature(family, nodes)(params, design)` is a scalar, with all constants. It can be jitted, vmapped,
    and differentiated to any order in the parameters and in the design's arrays.

    Attributes
    ----------
    family : AbstractFamily
    nodes : int
        Nodes per effect; `nodes ** S` in all. 1 is Laplace's approximation.

    References
    ----------
    Liu & Pierce (1994), Biometrika 81, 624. Pinheiro & Bates (1995), J. Comp. Graph. Stat. 4, eq. 2.5.
    """

    family: AbstractFamily
    nodes: int = eqx.field(static=True)

    def __check_init__(self):
        a_family("family", self.family)
        whole(1, MOST_NODES)("nodes", self.nodes)

    def __call__(self, params: Params, design: Design):
        check_params(params, design)
        covariance = only_term(design).covariance if design.terms else Covariance(())
        return self.at(params.beta, covariance.factor(params.theta), params.log_dispersion, design)

    def at(self, beta, factor, log_dispersion, design: Design):
        """The same of Lambda itself, `factor` (S, S), in which zero is an ordinary point."""
        design = jax.tree.map(jnp.asarray, design)
        eta = design.offset + jnp.matmul(design.X, beta, precision="highest")
        if not design.terms:
            return glm_loglik(self.family, eta, design.y, design.weights, log_dispersion) + design.constant
        term = only_term(design)
        nodes = jax.tree.map(lambda v: jnp.asarray(v, eta.dtype), gauss_hermite(self.nodes, term.covariance.n_effects))
        nodes = eqx.tree_at(lambda v: v.count, nodes, self.nodes**term.covariance.n_effects)
        value = _loglik(
            self.family, nodes.count, True, fused.covers(self.family, design),
            eta, factor, log_dispersion, design.y, design.weights, term.z, term.index, nodes,
        )  # fmt: skip
        return value + design.constant


# A tower of derivatives: the value's tangent is the inner product with the gradient; the gradient's is the Hessian's
# product with the direction; of that, the tangent is left to the plain form. Each step is a native kernel where there
# is one for the family and the design.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _loglik(family, count, determinant, native, eta, factor, log_phi, y, weight, z, index, nodes):
    gradient = slot_gradient(family, count, determinant, native, eta, factor, log_phi, y, weight, z, index, nodes)
    return gradient[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def slot_gradient(family, count, determinant, native, *arrays):
    """Value (), and its derivatives in eta (n_slots,), the factor (S, S) and log_phi ()."""
    if native:
        return modes.group_gradient(family, count, determinant, *arrays)
    return _plain_gradient(family, count, determinant, *arrays)


def _plain_gradient(family, count, determinant, eta, factor, log_phi, y, weight, z, index, nodes):
    nodes = eqx.tree_at(lambda v: v.count, nodes, count)

    def body(total, head, rows, _):
        eta, y, weight, z = rows
        g = group_gradient(
            total, head, family, eta, z, factor, log_phi, y, weight, nodes, jnp.zeros_like(z), determinant
        )
        return (jnp.sum(g.value), g.factor_sum(z), jnp.sum(g.log_phi)), g.eta

    (value, d_factor, d_phi), d_eta = map_groups(body, index, (eta, y, weight, z))
    return value, d_eta, d_factor, d_phi


@functools.partial(slot_gradient.defjvp, symbolic_zeros=True)
def _gradient_jvp(family, count, determinant, native, primals, tangents):
    direction = _filled(tangents[:3])
    if native and all(isinstance(t, SymbolicZero) for t in tangents[3:6]):
        found = slot_gradient(family, count, determinant, native, *primals)
        d_eta, d_factor, d_phi = found[1:]
        slope = jnp.sum(d_eta * direction[0]) + jnp.sum(d_factor * direction[1]) + d_phi * direction[2]
        return found, (slope, *_push(family, count, determinant, *primals, *direction))
    # The rule that JAX would find by itself, as a step of its own: reverse over reverse differentiation through the
    # scan would otherwise try to transpose the search for the modes.
    # Rows and directions vary over the same axes of a mesh, or the scan's carry would change its type.
    rows = alike(*primals[:6], *_filled(tangents[:6]))
    return jax.jvp(_of_rows(family, count, determinant, primals), tuple(rows[:6]), tuple(rows[6:]))


def _of_rows(family, count, determinant, primals):
    return lambda *rows: _plain_gradient(family, count, determinant, *rows, *primals[6:8])


def _filled(tangents):
    return tuple(jnp.zeros(t.shape, t.dtype) if isinstance(t, SymbolicZero) else t for t in tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _push(family, count, determinant, *arrays):
    """The Hessian's product with a direction (t_eta, t_factor, t_phi), the last three of the arrays."""
    return modes.group_push(family, count, determinant, *arrays)


@_push.defjvp
def _push_jvp(family, count, determinant, primals, tangents):
    def plain(*rows):
        of_rows = _of_rows(family, count, determinant, primals)
        return jax.jvp(lambda *psi: of_rows(*psi, *rows[3:6]), rows[:3], rows[6:])[1][1:]

    rows, t_rows = (*primals[:6], *primals[8:]), (*tangents[:6], *tangents[8:])
    return _push(family, count, determinant, *primals), jax.jvp(plain, rows, t_rows)[1]


def _reference(family, count, determinant, eta, factor, log_phi, y, weight, z, index, nodes):
    """The same value in a form that is differentiated as it stands, in every argument."""
    nodes = eqx.tree_at(lambda v: v.count, nodes, count)

    def body(total, head, rows, _):
        eta, y, weight, z = rows
        value = group_value(
            total, head, family, eta, z, factor, log_phi, y, weight, nodes, jnp.zeros_like(z), determinant
        )
        return jnp.sum(value), ()

    return map_groups(body, index, (eta, y, weight, z))[0]


@functools.partial(_loglik.defjvp, symbolic_zeros=True)
def _loglik_jvp(family, count, determinant, native, primals, tangents):
    eta, factor, log_phi, y, weight, z, index, nodes = primals
    t_eta, t_factor, t_phi, *t_data = tangents[:6]
    value, d_eta, d_factor, d_phi = slot_gradient(family, count, determinant, native, *primals)
    tangent = jnp.zeros_like(value)
    for derivative, t in ((d_eta, t_eta), (d_factor, t_factor), (d_phi, t_phi)):
        if not isinstance(t, SymbolicZero):
            tangent = tangent + jnp.sum(derivative * t)
    if not all(isinstance(t, SymbolicZero) for t in t_data):
        by_data = lambda y, weight, z: _reference(
            family, count, determinant, eta, factor, log_phi, y, weight, z, index, nodes
        )
        tangent = tangent + jax.jvp(by_data, (y, weight, z), _filled(t_data))[1]
    return value, tangent
