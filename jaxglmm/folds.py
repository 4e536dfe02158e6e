"""Effects of one grouping factor under several weightings of the same rows: what features out of fold are made of.

A fold is a weight vector that is zero in the rows held out. Rows, columns and groups stay where they are: nothing is
sorted or copied anew, every fold runs the program that the first one compiled, and begins where the fit of all rows
ended.
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.crossproducts import cross_products
from jaxglmm.estimation import estimate_problem
from jaxglmm.fitted.history import Prior, history_of, moments
from jaxglmm.fitted.leave_one_out import without_each_row
from jaxglmm.ops.computing import computing
from jaxglmm.ops.threads import calm
from jaxglmm.optimise.estimate import Estimate
from jaxglmm.optimise.refit import refit_marginal
from jaxglmm.optimise.report import marginal_estimate
from jaxglmm.problem import Problem


@dataclass(frozen=True)
class GroupEffects:
    """Posterior of each level's intercept given the parameters, link scale.

    As `Fit.ranef` and `Fit.predict` have it.

    Attributes
    ----------
    mean, sd : (G,)
        0 and tau for a level without a row.
    reliability : (G,)
        1 - sd^2/tau^2 within [0, 1]; 0 where tau = 0.
    n : (G,)
        Rows of positive weight.
    tau : float
        Standard deviation between levels.
    estimate : Estimate or None
        None where nothing was fitted.
    """

    mean: np.ndarray
    sd: np.ndarray
    reliability: np.ndarray
    n: np.ndarray
    tau: float
    estimate: Estimate | None = None


def reweighted(problem: Problem, weights: np.ndarray) -> Problem:
    """The same rows with other prior weights (n,); columns are scaled as before.

    Parameters
    ----------
    problem : Problem
        Of at most one grouping factor.
    weights : (n,)
        In the order of the frame's rows; 0 leaves a row out.
    """
    frame = replace(problem.frame, weights=weights)
    if problem.cross is not None:
        term, scaling = frame.terms[0], problem.scaling
        cross = cross_products(
            frame.y, frame.X, weights=weights, offset=frame.offset, codes=term.codes, z=term.z, blocks=term.blocks,
            n_groups=len(term.levels), center=scaling.center, scale=scaling.scale,
        )  # fmt: skip
        return replace(problem, frame=frame, cross=cross)
    assert problem.design is not None and problem.layout is not None  # what is not cross products has both
    used = weights > 0
    constant = problem.family.constant(frame.y[used], weights[used])
    stored = problem.layout.scatter(weights, dtype=problem.design.weights.dtype)
    design = eqx.tree_at(
        lambda d: (d.weights, d.constant), problem.design, (jnp.asarray(stored), jnp.asarray(constant, stored.dtype))
    )
    return replace(problem, frame=frame, design=design)


def group_effects(problem: Problem, weights: np.ndarray | None = None, **options) -> GroupEffects:
    """Fit and return the posterior of each level's intercept.

    Parameters
    ----------
    problem : Problem
        With one grouping factor that has an intercept.
    weights : (n,), optional
        Instead of the problem's own.
    **options
        Of `estimate_problem`.
    """
    with computing(), calm():
        if weights is not None:
            problem = reweighted(problem, weights)
        estimate, _ = estimate_problem(problem, **options)
    return _effects(problem, estimate)


def effects_near(problem: Problem, weights: np.ndarray, near: Estimate | None, *, held: bool) -> GroupEffects | None:
    """`group_effects` from where the fit of all rows ended; None where that is no place to begin.

    Parameters
    ----------
    problem : Problem
    weights : (n,)
    near : Estimate or None
        Of all rows.
    held : bool
        Whether the standard deviation stays what it is there.
    """
    if near is None or problem.design is None:
        return None
    with computing(), calm():
        problem = reweighted(problem, weights)
        solution = refit_marginal(problem, near, held=held)
        if solution is None:
            return None
        return _effects(problem, marginal_estimate(problem, solution))


def _effects(problem: Problem, estimate: Estimate) -> GroupEffects:
    tau, frame = float(estimate.factors[0][0, 0]), problem.frame
    counts = np.bincount(frame.terms[0].codes[frame.weights > 0], minlength=len(frame.terms[0].levels))
    history, prior = history_of(frame, 0, estimate.beta), Prior(np.zeros(1), estimate.factors[0])
    mean, covariance = moments(problem.family, _log_dispersion(estimate), history, prior, layout=problem.storage)
    variance = covariance[:, 0, 0]
    reliability = np.clip(1 - variance / tau**2, 0.0, 1.0) if tau > 0 else np.zeros_like(variance)
    return GroupEffects(mean[:, 0], np.sqrt(variance), reliability, counts, abs(tau), estimate)


def _log_dispersion(estimate: Estimate) -> float:
    return 0.0 if estimate.dispersion is None else float(np.log(estimate.dispersion))


def effects_without_each_row(problem: Problem, estimate: Estimate) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and sd, (n,) each, of a row's level given the level's other rows and the parameters.

    Parameters
    ----------
    problem : Problem
        With one grouping factor that has an intercept only.
    estimate : Estimate

    Raises
    ------
    NotYetError
        For levels of more than 2,000 rows.
    """
    frame = problem.frame
    mean, sd = np.zeros(len(frame.y)), np.zeros(len(frame.y))
    prior = Prior(np.zeros(1), estimate.factors[0])
    if prior.factor.any():
        for rows, without in without_each_row(history_of(frame, 0, estimate.beta)):
            found, covariance = moments(problem.family, _log_dispersion(estimate), without, prior)
            mean[rows], sd[rows] = found[:, 0], np.sqrt(covariance[:, 0, 0])
    return mean, sd
