"""Effects of one grouping factor under several weightings of the same rows: what features out of fold are made of.

A fold is a weight vector that is zero in the rows held out. Rows, columns and groups stay where they are: nothing is
sorted or copied anew, and every fold runs the program that the first one compiled.
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.crossproducts import cross_products
from jaxglmm.fitting import Problem, estimate_problem


@dataclass(frozen=True)
class GroupEffects:
    """Posterior of each level's intercept given the parameters, link scale.

    By the fit's own quadrature rule, of at least 15 nodes, which leaves about 1e-5 of a posterior standard deviation;
    `Fit.ranef` integrates further.

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
    """

    mean: np.ndarray
    sd: np.ndarray
    reliability: np.ndarray
    n: np.ndarray
    tau: float


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
    with jax.enable_x64(True):
        if weights is not None:
            problem = reweighted(problem, weights)
        estimate, (posterior,) = estimate_problem(problem, **options)
    tau = float(estimate.factors[0][0, 0])
    frame = problem.frame
    counts = np.bincount(frame.terms[0].codes[frame.weights > 0], minlength=len(posterior.n))
    variance = posterior.covariance_mean[:, 0, 0]
    reliability = np.clip(1 - variance / tau**2, 0.0, 1.0) if tau > 0 else np.zeros_like(variance)
    return GroupEffects(posterior.mean[:, 0], np.sqrt(variance), reliability, counts, abs(tau))
