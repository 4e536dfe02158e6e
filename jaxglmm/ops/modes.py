"""Native kernels for groups whose linear predictor comes from anywhere: value and derivatives in it.

The specification in plain JAX, and the rules of differentiation, are in `objectives.quadrature`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxglmm.ops import native
from jaxglmm.ops.fused import FAMILIES, normaliser, storage
from jaxglmm.ops.varying import alike


def group_modes(family, count, determinant, eta, factor, log_phi, y, weight, z, index, nodes, start=None):
    """Modes of all groups, and the marginal likelihood there, by the native kernel.

    Parameters
    ----------
    family
        One of `fused.FAMILIES`.
    count : int
        How many of the nodes are used; 1 is Laplace's approximation.
    determinant : bool
        Without it and with one node, the joint likelihood at the modes.
    eta, y, weight : (n_slots,)
    factor : (S, S)
        Lambda, lower triangular; S = 1, 2, 3.
    log_phi : ()
    z : (S, n_slots)
    index : GroupIndex
    nodes : Nodes
    start : (S, n_slots), optional
        Where the search for the modes begins; zeros by default.

    Returns
    -------
    value : ()
        Without the constants of the data.
    d_eta, d_factor, d_phi
        Its derivatives, shaped as what they are taken in; above the diagonal of `factor` they are zero.
    modes : (S, n_slots)
    curvature : (S (S + 1) / 2, n_slots)
        Upper triangle of H = I + Lambda' Z'WZ Lambda at the mode, row by row, in every slot of the group.
    """
    S = z.shape[0]
    unknowns = _unknowns(factor, log_phi)
    start = jnp.zeros_like(z) if start is None else start

    def shapes(eta, unknowns, y, weight, z):
        row = eta + y + weight + z[0] + unknowns[-1]
        pairs = jnp.broadcast_to(row, (unknowns.size - 1, row.size))
        return jnp.sum(row), row, unknowns + jnp.sum(row), z + row, pairs

    result = jax.eval_shape(shapes, eta, unknowns, y, weight, z)
    value, d_eta, d_unknowns, modes, curvature = native.call(
        "group_modes", result, eta, y, weight, z, start, *storage(index), unknowns, *_rule(nodes, count),
        **_settings(family, determinant, index),
    )  # fmt: skip
    d_factor, d_phi = _split(d_unknowns, S)
    rows, terms = normaliser(family, weight, log_phi)
    return value + rows * terms[0], d_eta, d_factor, d_phi + rows * terms[1], modes, curvature


def group_gradient(family, count, determinant, *arrays):
    """Value, d_eta, d_factor and d_phi of `group_modes`."""
    return group_modes(family, count, determinant, *arrays)[:4]


def group_push(
    family, count, determinant, eta, factor, log_phi, y, weight, z, index, nodes, t_eta, t_factor, t_phi
):  # fmt: skip
    """Product of the Hessian of `group_modes`'s value in (eta, factor, log_phi) with a direction."""
    S = z.shape[0]
    # All alike in what they vary over before the system below is stated, which is traced for itself.
    operands = (eta, y, weight, z, jnp.zeros_like(z), *storage(index), _unknowns(factor, log_phi), *_rule(nodes, count))
    direction = jnp.concatenate([t_eta, _unknowns(t_factor, t_phi)])
    *operands, direction = alike(*operands, direction)
    eta, y, weight, z, *_, unknowns = operands[:8]
    rows, terms = normaliser(family, weight, log_phi)

    def push(direction):
        t_eta, t_unknowns = direction[: eta.size], direction[eta.size :]

        def shapes(t_eta, t_unknowns, eta, y, weight, z, unknowns):
            row = t_eta + eta + y + weight + z[0] + t_unknowns[-1] + unknowns[-1]
            return row, t_unknowns + jnp.sum(row)

        result = jax.eval_shape(shapes, t_eta, t_unknowns, eta, y, weight, z, unknowns)
        pushed, of_unknowns = native.call(
            "group_push", result,
            *operands, t_eta, t_unknowns, **_settings(family, determinant, index),
        )  # fmt: skip
        return jnp.concatenate([pushed, of_unknowns.at[-1].add(rows * terms[2] * t_unknowns[-1])])

    # Linear in the direction, and symmetric: JAX is told so by stating it as the solution of a symmetric linear system,
    # of one vector, since JAX transposes a system only where all of its right-hand side is linear.
    pushed = lax.custom_linear_solve(lambda x: x, direction, lambda _, b: push(b), symmetric=True)
    return (pushed[: eta.size], *_split(pushed[eta.size :], S))


def _unknowns(factor, log_phi):
    """The lower triangle of the factor by columns, then log_phi."""
    columns, rows = np.triu_indices(factor.shape[0])
    return jnp.append(factor[rows, columns], log_phi)


def _split(unknowns, S):
    columns, rows = np.triu_indices(S)
    factor = jnp.zeros((S, S), unknowns.dtype).at[rows, columns].set(unknowns[:-1], unique_indices=True)
    return factor, unknowns[-1]


def _rule(nodes, count):
    return nodes.points, nodes.log_weights, jnp.asarray(count, jnp.int32)


def _settings(family, determinant, index):
    return {
        "block": np.int64(index.block),
        "family": np.int64(FAMILIES[family.name, family.link]),
        "determinant": np.int64(determinant),
    }
