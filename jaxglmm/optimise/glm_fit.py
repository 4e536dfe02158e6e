"""The fit without random effects: where searches with them begin, and a fit of its own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.objectives.evaluate import evaluate, evaluate_glm
from jaxglmm.ops import fused
from jaxglmm.ops.memory import aligned_zeros
from jaxglmm.optimise.dispersion import dispersion_limit
from jaxglmm.optimise.free_parameters import maximise_free
from jaxglmm.optimise.growth import BOUNDED_LINKS
from jaxglmm.optimise.node_ladder import padded_nodes
from jaxglmm.optimise.separation import check_separation, may_diverge


# Offsets further apart than this are no shift of the mean: most means are at their bounds.
_WIDE = 20.0


def fit_glm(family, design, intercept: int | None, *, names, start=None, tol=1e-12, callback=None):
    """Fit without random effects, from `start` (p + 1,) where there is one.

    Returns
    -------
    NewtonResult, groups
        In (beta, log dispersion); `groups` is (score, spread, level) of `glm_evaluate` at the optimum.

    Raises
    ------
    SeparationError
        When a direction in the columns predicts the response perfectly.
    """
    p = design.X.shape[1]
    free = np.append(np.ones(p, bool), family.dispersion_name is not None)
    eta0, log_phi0 = family.start(np.asarray(design.y), np.asarray(design.weights))
    x0 = np.zeros(p + 1)
    if intercept is not None:
        x0[intercept] = eta0 - mean_offset(family, design.y, design.offset, design.weights)
    elif family.link in ("inverse", "sqrt") and p:
        x0[:p] = np.linalg.lstsq(np.asarray(design.X), np.full(design.X.shape[0], eta0), rcond=None)[0]
    x0[p] = log_phi0

    def plain(x):
        value, gradient, hessian, groups = evaluate_glm(family, design, x)
        return float(value), np.asarray(gradient), np.asarray(hessian), groups

    at = _without_effects(family, design) if fused.covers(family, design) else plain
    x0 = x0 if start is None else start
    limit = dispersion_limit(family, design.y, design.weights)
    result = maximise_free(at, x0, free, np.zeros(p + 1, bool), limit=limit, tol=tol, callback=callback)
    if not result.converged or may_diverge(-result.hessian[:p, :p], len(design.y), tol):
        check_separation(family, design, result.x[:p], names=names, intercept=intercept)
    (groups,) = result.extra or (evaluate_glm(family, design, result.x, second=False)[3],)
    return result, tuple(np.asarray(v) for v in groups)


def mean_offset(family, y, offset, weights) -> float:
    """By what the intercept lies below the predictor of the mean response, about; exactly for a log link."""
    y, offset, weights = np.asarray(y), np.asarray(offset), np.asarray(weights)
    if family.link != "log" and family.link in BOUNDED_LINKS and np.ptp(offset) > _WIDE:
        eta0, log_phi = family.start(y, weights)
        return eta0 - float(_balanced(family, y, offset, weights, eta0, log_phi))
    if family.link != "log" or not np.sum(weights) > 0 or not np.ptp(offset):
        return float(np.average(offset, weights=weights))
    used = weights > 0
    y, offset, weights = y[used], offset[used], weights[used]
    if family.name == "gamma":  # sum w (y / mean - 1) = 0
        return float(np.log(np.average(y, weights=weights))) - _log_mean_exp(np.log(y) - offset, weights)
    return _log_mean_exp(offset, weights)


@eqx.filter_jit
def _balanced(family, y, offset, weights, eta0, log_phi):
    """The intercept at which the score of an intercept alone is zero, by bisection."""

    def halve(_, ends):
        low, high = ends
        b = 0.5 * (low + high)
        up = jnp.sum(family.derivatives(offset + b, y, weights, log_phi).s) > 0
        return jnp.where(up, b, low), jnp.where(up, high, b)

    ends = eta0 - jnp.max(offset) - _WIDE, eta0 - jnp.min(offset) + _WIDE
    return jax.lax.fori_loop(0, 50, halve, ends)[0]


def _log_mean_exp(v, weights) -> float:
    return float(v.max() + np.log(np.average(np.exp(v - v.max()), weights=weights)))


def _without_effects(family, design):
    """Value, gradient and Hessian in (beta, log dispersion) by the native pass of the fit itself, at Lambda = 0."""
    term, p = design.terms[0], design.X.shape[1]
    nodes = padded_nodes(1, term.covariance.n_effects)
    modes = jax.device_put(aligned_zeros(term.z.shape, term.z.dtype), may_alias=True)
    place = np.append(np.arange(p), p + len(term.covariance.diagonal))

    def at(x):
        psi = np.zeros(place[-1] + 1)
        psi[place] = x
        value, gradient, hessian, _ = evaluate(family, design, nodes, psi, modes)
        return float(value), np.asarray(gradient)[place], np.asarray(hessian)[np.ix_(place, place)]

    return at
