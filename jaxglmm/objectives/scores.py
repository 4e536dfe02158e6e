"""The derivative of a log-likelihood in eta, row by row: what the gradient in columns that are not read is made of."""

import jax.numpy as jnp

from jaxglmm.objectives.marginal import Nodes, group_gradient
from jaxglmm.ops.group import map_groups
from jaxglmm.ops.programs import program


@program(static=("family", "determinant"))
def marginal_scores(family, rows, term, nodes: Nodes, eta, raw, log_phi, start, *, determinant=True):
    """dL/deta of the marginal likelihood (or, without `determinant`, of the joint one), in each slot.

    Parameters
    ----------
    rows : (y, weights), each (n_slots,)
    term : RandomTerm
    eta : (n_slots,)
        Offset plus fixed part.
    raw : (q,)
        Free entries of Lambda.
    log_phi : ()
    start : (S, n_slots)
        Where the search for the modes begins.

    Returns
    -------
    (n_slots,)
    """
    factor = term.covariance.raw_factor(raw)

    def body(total, head, values, _):
        eta, y, weight, z, start = values
        g = group_gradient(total, head, family, eta, z, factor, log_phi, y, weight, nodes, start, determinant)
        return (), g.eta

    return map_groups(body, term.index, (eta, *rows, term.z, start))[1]


@program(static=("family",))
def glm_scores(family, rows, eta, log_phi):
    """dl/deta of every slot without random effects."""
    y, weight = rows
    return family.derivatives(eta, y, weight, log_phi).s


@program()
def linear_predictor(X, beta, offset):
    """offset + X beta, (n_slots,)."""
    return offset + jnp.matmul(X, beta, precision="highest")
