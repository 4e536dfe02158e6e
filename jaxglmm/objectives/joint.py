"""The joint likelihood of fixed effects and random effects: ridge regression on one-hot groups."""

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxglmm.arguments import a_family
from jaxglmm.design.design import Design, only_term
from jaxglmm.model.families import AbstractFamily
from jaxglmm.modes.separable import linear
from jaxglmm.objectives.marginal import loadings
from jaxglmm.objectives.params import Params, check_params
from jaxglmm.ops.group import map_groups


class JointLikelihood(eqx.Module):
    """Joint penalised log-likelihood of (beta, u).

    `JointLikelihood(family)(params, u, design)` is the scalar sum_i l_i(eta_i) - u'u/2 + constants with
    eta = offset + X beta + z'Lambda u[g]. With one random intercept it is L2-penalised regression on one-hot groups
    with penalty (lambda/2) |b|^2, lambda = 1/tau^2.

    Attributes
    ----------
    family : AbstractFamily

    References
    ----------
    Henderson (1950); Lee & Nelder (1996), JRSS B 58, 619 ("h-likelihood").
    """

    family: AbstractFamily

    def __check_init__(self):
        a_family("family", self.family)

    def __call__(self, params: Params, u, design: Design):
        """Value at standardised effects u (S, n_slots), equal in all slots of a group."""
        check_params(params, design)
        design = jax.tree.map(jnp.asarray, design)
        term = only_term(design)
        v = loadings(term.covariance.factor(params.theta), term.z)
        eta = design.offset + jnp.matmul(design.X, params.beta, precision="highest") + linear(v, u)

        def body(total, head, rows, _):
            eta, y, weight, u = rows
            value = jnp.sum(self.family.loglik(eta, y, weight, params.log_dispersion))
            return value - 0.5 * jnp.sum(jnp.where(head, u * u, 0.0)), ()

        return map_groups(body, term.index, (eta, design.y, design.weights, u))[0] + design.constant
