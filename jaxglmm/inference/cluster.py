"""Cluster-robust covariance: what the groups' scores say about the spread of the estimates.

    V = G/(G - 1) B (sum_g s_g s_g') B

with s_g the derivative of group g's log-likelihood in all parameters and B the inverse observed information, for the
fixed effects' part. For Gaussian models scores and B are those of beta given the variance parameters (the two kinds of
parameter are independent to first order): B = sigma^2 (X'V^-1X)^-1 and s_g = X_g'V_g^-1 (y_g - X_g beta).

References
----------
White (1982), Econometrica 50, 1. Liang & Zeger (1986), Biometrika 73, 13.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.errors import DataError, NotYetError
from jaxglmm.inference.coordinates import coordinates, raw_covariance, to_scaled
from jaxglmm.inference.wald import satterthwaite
from jaxglmm.objectives.marginal import group_gradient
from jaxglmm.ops.computing import computing
from jaxglmm.ops.group import map_groups
from jaxglmm.optimise.node_ladder import padded_nodes


def cluster_vcov(state, problem) -> np.ndarray:
    """Cluster-robust covariance of the fixed effects (p, p).

    Clusters are the levels of the grouping factor; of several factors, those of the one in which all others are nested.

    Raises
    ------
    DataError
        Without a grouping factor, with one level, or with crossed factors.
    NotYetError
        For several factors and a response that is not Gaussian.
    """
    if not state.terms:
        raise DataError("kind='cluster' needs a grouping factor: this model has none; use kind='model'")
    outer = _outermost(problem.frame.terms)
    groups, p = len(state.terms[outer].levels), len(state.estimate.beta)
    if groups < 2:
        raise DataError(f"kind='cluster' needs at least two levels of {state.terms[outer].group!r}; found {groups}")
    gaussian = satterthwaite(state)
    if gaussian is not None:
        bread, meat = gaussian.vcov, _gaussian_meat(state, problem.frame, outer)
    elif len(state.terms) > 1:
        raise NotYetError("kind='cluster' takes one grouping factor unless the response is Gaussian; use kind='model'")
    else:
        at = coordinates(state)
        a = to_scaled(problem.scaling.z_scale, at)
        nodes = padded_nodes(state.estimate.n_agq or 1, len(state.terms[0].names))
        with computing():
            inner = _meat(
                problem.family, problem.design, nodes, jnp.asarray(a * at.x), state.estimate.method != "joint"
            )
        bread, meat = raw_covariance(state), np.asarray(inner) * np.outer(a, a)
    T = state.estimate.scaling.to_columns()
    return groups / (groups - 1) * T @ (bread @ meat @ bread)[:p, :p] @ T.T


def _outermost(terms) -> int:
    """Position of the factor in which all others are nested.

    Raises
    ------
    DataError
        When there is none: then rows of different clusters share levels of another factor.
    """
    outer = min(range(len(terms)), key=lambda t: len(terms[t].levels))
    of_row = terms[outer].codes
    for term in terms:
        first = np.zeros(len(term.levels), of_row.dtype)
        first[term.codes] = of_row  # of some row of the level
        if (first[term.codes] != of_row).any():
            raise DataError(
                f"kind='cluster' needs independent clusters, and levels of {terms[outer].group!r} share levels of "
                f"{term.group!r}: with crossed factors there are none; use kind='model'"
            )
    return outer


@functools.partial(jax.jit, static_argnames=("family", "determinant"))
def _meat(family, design, nodes, psi, determinant):
    """sum_g s_g s_g' (m, m) in the design's coordinates.

    Row by row of the result: sum_g s_gj s_gk = sum_i c_ij (group total of c_k)_i, so that no group's score is stored.
    """
    term = design.terms[0]
    at_row, at_column = term.covariance.entries

    def body(total, head, rows, X):
        y, weight, offset, z = rows
        p, q = X.shape[1], len(at_row)
        eta = offset + jnp.matmul(X, psi[:p], precision="highest")
        factor = term.covariance.raw_factor(psi[p : p + q])
        start = jnp.zeros_like(z)
        g = group_gradient(total, head, family, eta, z, factor, psi[-1], y, weight, nodes, start, determinant)
        others = jnp.concatenate([z[at_row] * g.loadings[at_column], g.log_phi[None]])

        def against(sums):
            """sum_i c_i sums_i over all parameters."""
            return jnp.concatenate(
                [
                    jnp.matmul(X.T, g.eta * sums, precision="highest"),
                    jnp.matmul(others, sums, precision="highest"),
                ]
            )

        of_beta = jax.lax.map(lambda j: against(total(X[:, j] * g.eta)), jnp.arange(p))
        of_others = jax.lax.map(lambda c: against(total(c)), others)
        return jnp.concatenate([of_beta, of_others]), ()

    rows = (design.y, design.weights, design.offset, term.z)
    return map_groups(body, design.index, rows, design.X)[0]


def _gaussian_meat(state, frame, outer):
    """sum_g s_g s_g' (p, p), of the columns in use.

    X_g'V_g^-1 e_g = (X_g'W e_g - X_g'W Z_g m_g)/sigma^2, m_g the conditional modes.
    """
    estimate, cluster = state.estimate, frame.terms[outer]
    residual = frame.y - frame.offset - frame.X @ estimate.beta
    for term, posterior in zip(frame.terms, state.posteriors, strict=True):
        residual = residual - np.einsum("sm,ms->m", term.z, posterior.mode[term.codes])
    weighted = frame.weights * residual / estimate.dispersion**2
    count = len(cluster.levels)
    columns = zip(frame.X.T, estimate.scaling.center, estimate.scaling.scale, strict=True)
    scores = [np.bincount(cluster.codes, (x - c) / s * weighted, minlength=count) for x, c, s in columns]
    scores = np.array(scores).reshape(-1, count)  # of no columns too
    return scores @ scores.T
