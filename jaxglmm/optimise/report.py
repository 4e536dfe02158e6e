"""From the optimiser's coordinates to the scale of the caller's columns."""

import numpy as np

from jaxglmm.model.covariance import Covariance
from jaxglmm.objectives.evaluate import posterior_moments
from jaxglmm.objectives.marginal import Nodes, gauss_hermite
from jaxglmm.optimise.estimate import Convergence, Estimate, Posterior


# Nodes of the stored posterior rule when the fit itself used fewer; and how many weights it may hold beyond that.
_POSTERIOR_NODES = {1: 15, 2: 7, 3: 5}
_POSTERIOR_WEIGHTS = 20_000_000


def log_dispersion_name(family):
    return () if family.dispersion_name is None else (f"log_{family.dispersion_name}",)


def inverse_information(hessian: np.ndarray, free: np.ndarray) -> np.ndarray:
    """(-H)^-1 over the free parameters, zero elsewhere."""
    out = np.zeros_like(hessian)
    kept = np.ix_(free, free)
    information = -hessian[kept]
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(information)), 1e-300))
    inverse = np.linalg.pinv(information * scale[:, None] * scale[None, :], hermitian=True)
    out[kept] = inverse * scale[:, None] * scale[None, :]
    return out


def glm_estimate(problem, glm) -> Estimate:
    """Estimate of a model without random effects."""
    family, scaling = problem.family, problem.scaling
    p = len(problem.frame.names)
    has_phi = family.dispersion_name is not None
    T = np.eye(p + 1)
    T[:p, :p] = scaling.to_columns()
    free = np.append(np.ones(p, bool), has_phi)
    covariance = T @ inverse_information(glm.hessian, free) @ T.T
    kept = p + has_phi
    return Estimate(
        beta=T[:p, :p] @ glm.x[:p],
        factors=(),
        dispersion=float(np.exp(glm.x[p])) if has_phi else None,
        loglik=glm.value,
        method="glm",
        n_agq=None,
        parameters=problem.frame.names + log_dispersion_name(family),
        covariance=covariance[:kept, :kept],
        boundary=np.zeros(kept, bool),
        convergence=Convergence(
            converged=glm.converged, decrement=float(glm.decrement), iterations=glm.iterations + 1,
            passes=float(glm.iterations + 1), reason=glm.reason,
        ),
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
    # psi_out = (T beta, log diagonal or scaled entry, log dispersion): a linear map of the inverse information.
    rows, _ = covariance.entries
    J = np.eye(p + q + 1)
    J[:p, :p] = scaling.to_columns()
    with np.errstate(divide="ignore"):
        slope = np.where(covariance.diagonal, 1 / psi[p : p + q], 1 / scaling.z_scale[rows])
    J[np.arange(p, p + q), np.arange(p, p + q)] = np.where(solution.free[p : p + q], slope, 0.0)
    inverse = J @ inverse_information(solution.hessian, solution.free) @ J.T
    kept = p + q + has_phi
    n_agq = solution.convergence.n_agq
    return Estimate(
        beta=J[:p, :p] @ psi[:p],
        factors=(factor,),
        dispersion=float(np.exp(psi[-1])) if has_phi else None,
        loglik=solution.value,
        method="joint" if joint else "laplace" if n_agq == 1 else "agq",
        n_agq=None if joint else n_agq,
        parameters=frame.names + covariance.names(term.names, term.group) + log_dispersion_name(family),
        covariance=inverse[:kept, :kept],
        boundary=~solution.free[:kept],
        convergence=solution.convergence,
    )


def marginal_posterior(problem, solution) -> Posterior:
    """Posterior of every level's effects given the estimates."""
    frame, layout, scaling = problem.frame, problem.layout, problem.scaling
    covariance = problem.design.terms[0].covariance
    S, p, q = covariance.n_effects, len(frame.names), len(covariance.diagonal)
    least = _POSTERIOR_NODES.get(S, 1)
    most = int((_POSTERIOR_WEIGHTS / len(layout.counts)) ** (1 / S))
    rule = gauss_hermite(max(least, min(solution.convergence.n_agq or 1, most)), S)
    nodes = Nodes(rule.points, rule.log_weights, np.int32(rule.count))
    moments = posterior_moments(problem.family, problem.design, nodes, solution.psi, solution.modes)
    first = layout.first
    scaled = np.zeros((S, S))
    scaled[covariance.entries] = solution.psi[p : p + q]
    factor = scaling.factor_to_columns(scaled)
    per_level = lambda v: np.moveaxis(np.asarray(v)[..., first], -1, 0)
    root = factor @ per_level(moments.root)
    return Posterior(
        mode=per_level(moments.mode) @ factor.T,
        covariance=root @ np.swapaxes(root, 1, 2),
        mean=per_level(moments.mean) @ factor.T,
        covariance_mean=factor @ per_level(moments.covariance) @ factor.T,
        n=layout.counts,
        points=rule.points,
        weights=per_level(moments.weights),
        root=root,
    )


def gaussian_estimate(problem, fit, *, reml: bool) -> Estimate:
    """Estimate of a Gaussian model from the exact fit on scaled columns (effects' columns are not scaled)."""
    frame, T = problem.frame, problem.scaling.to_columns()
    p = len(frame.names)
    q = len(fit.boundary) - p - 1
    term = frame.terms[0] if frame.terms else None
    names = Covariance(term.blocks).names(term.names, term.group) if term else ()
    J = np.eye(p + q + 1)
    J[:p, :p] = T
    # The restricted likelihood integrates over beta, so that a change of columns changes its unit.
    unit = np.linalg.slogdet(T)[1] if reml else 0.0
    return Estimate(
        beta=T @ fit.beta,
        factors=() if fit.factor is None else (fit.factor,),
        dispersion=fit.sigma,
        loglik=fit.loglik + unit,
        method=fit.method,
        n_agq=None,
        parameters=(*frame.names, *names, "log_sigma"),
        covariance=J @ fit.covariance @ J.T,
        boundary=fit.boundary,
        convergence=Convergence(
            converged=fit.converged,
            decrement=float(max(fit.decrement, 0.0)),
            iterations=fit.iterations,
            passes=1.0,
            singular=fit.singular,
            score_at_zero=fit.score_at_zero,
            reason=fit.reason,
        ),
        vcov_jacobian=T @ fit.vcov_jacobian @ T.T,
    )


def normal_posterior(mode: np.ndarray, covariance: np.ndarray, counts: np.ndarray) -> Posterior:
    """Posterior of a Gaussian model's effects, which is normal: mode and mean agree."""
    return Posterior(mode=mode, covariance=covariance, mean=mode, covariance_mean=covariance, n=counts)
