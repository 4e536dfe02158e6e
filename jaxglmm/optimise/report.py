"""From the optimiser's coordinates to the scale of the caller's columns."""

import numpy as np

from jaxglmm.model.covariance import Covariance
from jaxglmm.objectives.evaluate import Moments, evaluate, posterior_moments
from jaxglmm.objectives.marginal import Nodes, gauss_hermite
from jaxglmm.ops import moments as native_moments
from jaxglmm.ops.computing import computing
from jaxglmm.optimise.estimate import Convergence, Estimate, Posterior
from jaxglmm.optimise.node_ladder import padded_nodes


# Nodes of the posterior moments when the fit itself used fewer; and how many weights there may be beyond that.
_POSTERIOR_NODES = {1: 15, 2: 7, 3: 5}
_POSTERIOR_WEIGHTS = 20_000_000


def log_dispersion_name(family):
    return () if family.dispersion_name is None else (f"log_{family.dispersion_name}",)


def inverse_information(hessian: np.ndarray, free: np.ndarray) -> np.ndarray:
    """(-H)^-1 over the free parameters, zero elsewhere."""
    out = np.zeros_like(hessian)
    kept = np.ix_(free, free)
    information = -hessian[kept]
    if not np.isfinite(information).all():
        out[kept] = np.nan
        return out
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(information)), 1e-300))
    inverse = np.linalg.pinv(information * scale[:, None] * scale[None, :], hermitian=True)
    out[kept] = inverse * scale[:, None] * scale[None, :]
    return out


def glm_estimate(problem, glm) -> Estimate:
    """Estimate of a model without random effects."""
    family, scaling = problem.family, problem.scaling
    p = len(problem.frame.names)
    has_phi = family.dispersion_name is not None
    free = np.append(np.ones(p, bool), has_phi and not family.at_limit(glm.x[p]))
    covariance = inverse_information(glm.hessian, free)
    kept = p + has_phi
    return Estimate(
        beta=scaling.beta_to_columns(glm.x[:p]),
        factors=(),
        dispersion=float(np.exp(glm.x[p])) if has_phi else None,
        loglik=glm.value,
        method="glm",
        n_agq=None,
        parameters=problem.frame.names + log_dispersion_name(family),
        covariance=covariance[:kept, :kept],
        boundary=~free[:kept],
        convergence=Convergence(
            converged=glm.converged, decrement=float(glm.decrement), iterations=glm.iterations + 1,
            passes=float(glm.iterations + 1), reason=glm.reason,
        ),
        scaling=scaling,
    )  # fmt: skip


def marginal_estimate(problem, solution, *, joint=False) -> Estimate:
    """Estimate of a model with one grouping factor."""
    frame, family, scaling = problem.frame, problem.family, problem.scaling
    term, covariance = frame.terms[0], problem.design.terms[0].covariance
    p, q = len(frame.names), len(covariance.diagonal)
    has_phi = family.dispersion_name is not None
    psi = solution.psi
    scaled = np.zeros((covariance.n_effects,) * 2)
    scaled[covariance.entries] = psi[p : p + q]
    factor = scaling.factor_to_columns(scaled)
    # psi_out = (beta, log diagonal or scaled entry, log dispersion): a linear map of the inverse information.
    rows, _ = covariance.entries
    J = np.eye(p + q + 1)
    with np.errstate(divide="ignore"):
        slope = np.where(covariance.diagonal, 1 / psi[p : p + q], 1 / scaling.z_scale[rows])
    J[np.arange(p, p + q), np.arange(p, p + q)] = np.where(solution.free[p : p + q], slope, 0.0)
    inverse = J @ inverse_information(solution.hessian, solution.free) @ J.T
    kept = p + q + has_phi
    n_agq = solution.convergence.n_agq
    return Estimate(
        beta=scaling.beta_to_columns(psi[:p]),
        factors=(factor,),
        dispersion=float(np.exp(psi[-1])) if has_phi else None,
        loglik=solution.value,
        method="joint" if joint else "laplace" if n_agq == 1 else "agq",
        n_agq=None if joint else n_agq,
        parameters=marginal_parameters(frame.names, term, family),
        covariance=inverse[:kept, :kept],
        boundary=~solution.free[:kept],
        convergence=solution.convergence,
        scaling=scaling,
    )


def marginal_parameters(names, term, family) -> tuple[str, ...]:
    """Names of psi with one grouping factor."""
    return (*names, *Covariance(term.blocks).names(term.names, term.group), *log_dispersion_name(family))


def marginal_posterior(problem, solution) -> Posterior:
    """Posterior of every level's effects given the estimates."""
    frame, layout, scaling = problem.frame, problem.layout, problem.scaling
    covariance = problem.design.terms[0].covariance
    S, p, q = covariance.n_effects, len(frame.names), len(covariance.diagonal)
    least = _POSTERIOR_NODES.get(S, 1)
    most = int((_POSTERIOR_WEIGHTS / len(layout.counts)) ** (1 / S))
    rule = gauss_hermite(max(least, min(solution.convergence.n_agq or 1, most)), S)
    nodes = Nodes(rule.points, rule.log_weights, np.int32(rule.count))
    scaled = np.zeros((S, S))
    scaled[covariance.entries] = solution.psi[p : p + q]
    factor = scaling.factor_to_columns(scaled)
    with computing():
        moments = _moments_of_levels(problem, solution, nodes)
    root = np.einsum("ab,bcg->gac", factor, moments.root)
    spread = np.einsum("ab,bcg->gac", factor, moments.covariance)
    return Posterior(
        mode=np.einsum("ab,bg->ga", factor, moments.mode),
        covariance=np.einsum("gac,gbc->gab", root, root),
        mean=np.einsum("ab,bg->ga", factor, moments.mean),
        covariance_mean=np.einsum("gac,bc->gab", spread, factor),
        n=layout.counts,
    )


def marginal_modes(problem, solution) -> np.ndarray:
    """Mode (G, S) of every level's effects given the estimates."""
    design, covariance = problem.design, problem.design.terms[0].covariance
    p, S, determinant = len(problem.frame.names), covariance.n_effects, solution.convergence.n_agq is not None
    factor = np.zeros((S, S))
    factor[covariance.entries] = solution.psi[p : p + len(covariance.diagonal)]
    with computing():  # the program of the fit's own evaluations
        found = evaluate(
            problem.family, design, padded_nodes(1, S), solution.psi, solution.modes, determinant=determinant
        )
    u = np.asarray(found.modes)[:, problem.layout.first]
    return (problem.scaling.factor_to_columns(factor) @ u).T


def _moments_of_levels(problem, solution, nodes) -> Moments:
    """Moments of u with the levels, in their order, along the last axis."""
    family, design, first = problem.family, problem.design, problem.layout.first
    if not native_moments.covers(family, design):
        found = posterior_moments(family, design, nodes, solution.psi, solution.modes)
        return Moments(*(np.asarray(v)[..., first] for v in found))
    # With the program of the fit's own evaluations: nothing is compiled for the modes at the very end.
    determinant = solution.convergence.n_agq is not None
    modes = evaluate(family, design, padded_nodes(1, 1), solution.psi, solution.modes, determinant=determinant).modes
    moments, weights = native_moments.group_moments(family, design, nodes, solution.psi, modes, first, keep=False)
    root, mean, variance = np.asarray(moments).T
    return Moments(
        np.asarray(modes)[:, first], root[None, None], mean[None], variance[None, None], np.asarray(weights).T
    )


def gaussian_estimate(problem, fit, *, reml: bool) -> Estimate:
    """Estimate of a Gaussian model from the exact fit on scaled columns (effects' columns are not scaled)."""
    frame, scaling = problem.frame, problem.scaling
    names = [name for term in frame.terms for name in Covariance(term.blocks).names(term.names, term.group)]
    ends = np.cumsum([len(term.names) for term in frame.terms])
    factors = [fit.factor[e - len(t.names) : e, e - len(t.names) : e] for e, t in zip(ends, frame.terms, strict=True)]
    # The restricted likelihood integrates over beta, so that a change of columns changes its unit.
    unit = np.linalg.slogdet(scaling.to_columns())[1] if reml else 0.0
    return Estimate(
        beta=scaling.beta_to_columns(fit.beta),
        factors=tuple(factors),
        dispersion=fit.sigma,
        loglik=fit.loglik + unit,
        method=fit.method,
        n_agq=None,
        parameters=(*frame.names, *names, "log_sigma"),
        covariance=fit.covariance,
        boundary=fit.boundary,
        convergence=Convergence(
            converged=fit.converged,
            decrement=float(max(fit.decrement, 0.0)),
            iterations=fit.iterations,
            passes=1.0,
            singular=fit.singular,
            score_at_zero=fit.score_at_zero,
            reason=fit.reason,
            solver=fit.solver,
        ),
        scaling=scaling,
        vcov_jacobian=fit.vcov_jacobian,
    )


def normal_posterior(mode: np.ndarray, covariance: np.ndarray, counts: np.ndarray) -> Posterior:
    """Posterior of a Gaussian model's effects, which is normal: mode and mean agree."""
    return Posterior(mode=mode, covariance=covariance, mean=mode, covariance_mean=covariance, n=counts)
