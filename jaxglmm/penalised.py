"""Fits with a penalty or a prior: from a model frame to the estimate."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxglmm.errors import DataError, NotYetError
from jaxglmm.estimation import held_factors, quadrature_rule, tell_of_factors, tell_of_nodes
from jaxglmm.model.penalties import ElasticNet, column_factors
from jaxglmm.model.priors import AbstractPrior
from jaxglmm.modes.choice import choose_solver
from jaxglmm.optimise.estimate import Posteriors
from jaxglmm.optimise.log_prior import LogPrior, PriorTerm
from jaxglmm.optimise.newton import NewtonResult
from jaxglmm.optimise.node_ladder import LAPLACE
from jaxglmm.optimise.null_fit import Likelihood
from jaxglmm.optimise.path_model import Weights
from jaxglmm.optimise.penalised_fit import fit_penalised
from jaxglmm.optimise.report import glm_estimate, marginal_estimate, marginal_posterior
from jaxglmm.optimise.several_penalised import fit_several_penalised
from jaxglmm.optimise.several_report import several_estimate, several_posteriors
from jaxglmm.path_design import lay_out_rows, measure, penalty_unit
from jaxglmm.problem import is_linear


def lay_out(frame, family, penalty: ElasticNet, terms=(), *, estimated: bool, precision="double"):
    """Check the unpenalised columns and lay the rows out; every family's in slots.

    Parameters
    ----------
    frame : ModelFrame
    family : AbstractFamily
    penalty : ElasticNet
        At lam = 0 all columns but those left out are unpenalised.
    terms : tuple of PriorTerm
    estimated : bool
        Whether the covariance of the random effects is estimated.
    precision : {"double", "mixed"}

    Returns
    -------
    Problem, Weights

    Raises
    ------
    DataError, NotYetError
    """
    scaling, found = measure(frame)
    f = column_factors(penalty.factors, frame.names, scaling.intercept)
    if penalty.lam == 0:
        f = np.where(np.isinf(f), np.inf, 0.0)
    # What has a prior is no part of the fit that the penalised one begins with: it may have no maximum of its own.
    informed = np.concatenate([term.at for term in terms if not term.prior.on_sd] or [np.zeros(0, int)])
    if penalty.lam == 0:
        f[informed[np.isfinite(f[informed])]] = 1.0
    owners = np.repeat([term.group for term in frame.terms], [len(term.names) for term in frame.terms])
    groups = {str(owners[at]) for term in terms if term.prior.on_sd for at in term.at}
    problem = lay_out_rows(
        frame, family, scaling, np.flatnonzero(f == 0), estimated=estimated, informed=groups, precision=precision
    )
    unit = penalty_unit(scaling.scale, np.sqrt(found.variance), penalty.standardize)
    return problem, Weights(float(penalty.alpha), f, unit)


def choose_likelihood(frame, family, scaling, *, method, n_agq, theta, log_phi=None) -> Likelihood:
    """Nodes and held parameters, from the arguments of a fit."""
    term = frame.terms[0] if frame.terms else None
    if term is None:
        if theta is not None:
            held_factors(theta, frame, family)  # which there are none of
        return Likelihood(log_phi=log_phi)
    factor = None if theta is None else scaling.factor_from_columns(held_factors(theta, frame, family)[0])
    if is_linear(family):  # Laplace's approximation is exact
        return Likelihood(determinant=method != "joint", factor=factor, log_phi=log_phi)
    nodes, auto = quadrature_rule(method, n_agq, term)
    return Likelihood(nodes, auto, method != "joint", factor, log_phi, check=method != "joint")


def estimate_penalised(
    frame, family, *, penalty=None, prior=None, method="auto", n_agq=None, theta=None, log_phi=None, solver="auto",
    precision="double", tol=1e-11, max_iterations=100,
):  # fmt: skip
    """Fit with a penalty or a prior; `log_phi` holds the log dispersion. Needs x64.

    Raises
    ------
    DataError, NotYetError, SeparationError

    Returns
    -------
    Problem, Estimate, tuple of Posterior
    """
    if penalty is not None and not isinstance(penalty, ElasticNet):
        raise DataError(f"penalty must be jg.ElasticNet(...), jg.Ridge(...) or jg.Lasso(...); found {penalty!r}")
    penalty = ElasticNet(0.0) if penalty is None else penalty
    terms = () if prior is None else prior_terms(prior, frame)
    options = {"estimated": theta is None, "precision": precision}
    problem, weights = lay_out(frame, family, penalty, terms, **options)
    laid: Any = problem.design if problem.rows is None else problem.rows
    log_prior = None
    if terms:
        z_scales = (problem.scaling.z_scale,) if problem.rows is None else tuple(t.z_scale for t in laid.terms)
        loads = tuple(term.basis / scale for term, scale in zip(frame.terms, z_scales, strict=False))
        log_prior = LogPrior(terms, problem.scaling, tuple(t.covariance for t in laid.terms), loads)
    if problem.rows is not None:
        if method == "agq":
            raise NotYetError(
                "penalty= and prior= with several grouping factors take Laplace's approximation: leave method= out"
            )
        solution, found = _solve_several(
            problem, penalty, weights, method, theta, solver, log_prior, max_iterations=max_iterations
        )
        estimate = several_estimate(problem, laid.terms, solution, joint=method == "joint")
        tell_of_factors(
            estimate,
            solution,
            frame.terms,
            laid.order,
            LAPLACE,
            "with a penalty or a prior there is no other for several",
        )
        return problem, _reported(estimate, penalty, prior, weights, found), several_posteriors(problem, solution)
    likelihood = choose_likelihood(
        frame, family, problem.scaling, method=method, n_agq=n_agq, theta=theta, log_phi=log_phi
    )
    solution, found = fit_penalised(
        family, problem.design, problem.scaling, float(penalty.lam), weights, likelihood, names=frame.names,
        prior=log_prior, tol=tol, max_iterations=max_iterations,
    )  # fmt: skip
    if frame.terms:
        estimate = marginal_estimate(problem, solution, joint=method == "joint")
        tell_of_nodes(estimate, solution, frame.terms[0], climbed=likelihood.auto)
        posteriors = Posteriors(lambda: [marginal_posterior(problem, solution)])
    else:
        convergence = solution.convergence
        glm = NewtonResult(
            solution.psi, solution.value, np.zeros(0), solution.hessian, convergence.decrement, convergence.iterations,
            convergence.converged, convergence.reason, np.zeros(0),
        )  # fmt: skip
        estimate, posteriors = glm_estimate(problem, glm), ()
        kept = len(estimate.boundary)
        estimate = dataclasses.replace(estimate, convergence=convergence, boundary=~solution.free[:kept])
    return problem, _reported(estimate, penalty, prior, weights, found), posteriors


def _solve_several(problem, penalty, weights, method, theta, solver, log_prior, **options):
    frame, design = problem.frame, problem.rows
    factors = None
    if theta is not None:
        held = held_factors(theta, frame, problem.family)
        factors = [t.factor_from_columns(f) for t, f in zip(design.terms, held, strict=True)]
    return fit_several_penalised(
        problem.family, design, choose_solver(design, solver), float(penalty.lam), weights,
        intercept=problem.scaling.intercept, names=frame.names, groups=[t.group for t in frame.terms], factors=factors,
        determinant=method != "joint", prior=log_prior, check=not is_linear(problem.family), **options,
    )  # fmt: skip


def _reported(estimate, penalty: ElasticNet, prior, weights: Weights, found: dict):
    """The estimate with what was penalised."""
    covariance = estimate.covariance
    if penalty.lam > 0 and penalty.alpha > 0 and (weights.factors > 0).any():
        # A lasso estimate's distribution is neither normal nor centred; its curvature says nothing of it.
        covariance = np.full_like(covariance, np.nan)
    left_out = int(np.isinf(weights.factors).sum())
    found |= {"text": _described(penalty, left_out), "lam": float(penalty.lam), "alpha": float(penalty.alpha)}
    found["prior"] = None if prior is None else "; ".join(f"{name} ~ {p}" for name, p in prior.items())
    # Group effects are integrated over the sd under its prior, where that is all that was added to the likelihood.
    priors = list(prior.values()) if prior is not None and penalty.lam == 0 and not left_out else []
    found["sd_prior"] = priors[0].to_json() if len(priors) == 1 and priors[0].on_sd else None
    return dataclasses.replace(estimate, covariance=covariance, penalised=found)


def prior_terms(prior, frame) -> tuple[PriorTerm, ...]:
    """The densities of a `prior=` mapping with the parameters that each is of.

    Raises
    ------
    DataError
        For what is no prior, or a name that is no column, no grouping factor and neither "beta" nor "sd".
    """
    if not isinstance(prior, Mapping) or not prior:
        raise DataError(f"prior must map names to priors, such as {{'beta': jg.NormalPrior(2.5)}}; found {prior!r}")
    ends = np.cumsum([len(term.names) for term in frame.terms])
    groups = {t.group: np.arange(end - len(t.names), end) for t, end in zip(frame.terms, ends, strict=True)}
    intercept = [j for j, name in enumerate(frame.names) if name == "Intercept"]
    out = []
    for name, density in prior.items():
        if not isinstance(density, AbstractPrior):
            raise DataError(f"prior[{name!r}] must be a prior such as jg.NormalPrior(2.5); found {density!r}")
        if density.on_sd:
            known = groups if name != "sd" else {"sd": np.concatenate([*groups.values(), np.zeros(0, int)])}
            what, at = "grouping factor", known.get(name, ())
        else:
            mine = [j for j, c in enumerate(frame.names) if c == name or c.startswith(f"{name}[")]
            every = [j for j in range(len(frame.names)) if j not in intercept]
            what, at = "column", every if name == "beta" else mine
        if not len(at):
            known = ", ".join(map(repr, groups if density.on_sd else frame.names)) or "none"
            raise DataError(f"prior: no {what} {name!r} for {density}; there is {known}")
        out.append(PriorTerm(density, np.asarray(at, int)))
    return tuple(out)


def _described(penalty: ElasticNet, left_out: int) -> str:
    if penalty.lam == 0:
        return f"none, with {left_out} columns left out"
    names = {0.0: "ridge", 1.0: "lasso"}
    name = names.get(float(penalty.alpha), f"elastic net (alpha {penalty.alpha:g})")
    return f"{name} with lambda {penalty.lam:g}"
