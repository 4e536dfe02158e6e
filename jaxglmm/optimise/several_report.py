"""From the optimiser's coordinates to the scale of the caller's columns, several grouping factors."""

import numpy as np

from jaxglmm.modes.blocks import Blocks
from jaxglmm.objectives.several import covariance_pattern
from jaxglmm.ops.computing import computing
from jaxglmm.optimise.estimate import Estimate, Posterior
from jaxglmm.optimise.report import inverse_information, log_dispersion_name, normal_posterior


def several_estimate(problem, terms, solution, *, joint=False) -> Estimate:
    """Estimate of a model with several grouping factors, `terms` those of its design."""
    frame, family, scaling = problem.frame, problem.family, problem.scaling
    p, psi, n_agq = len(frame.names), solution.psi, solution.convergence.n_agq
    J = np.eye(len(psi))
    names, at = frame.names, p
    # psi_out = (beta, log diagonal or scaled entry, log dispersion): a linear map of the inverse information.
    for term, of in zip(terms, frame.terms, strict=True):
        covariance = term.covariance
        rows, _ = covariance.entries
        part = np.arange(at, at + len(rows))
        with np.errstate(divide="ignore"):
            slope = np.where(covariance.diagonal, 1 / psi[part], 1 / term.z_scale[rows])
        J[part, part] = np.where(solution.free[part], slope, 0.0)
        names, at = names + covariance.names(of.names, of.group), at + len(rows)
    inverse = J @ inverse_information(solution.hessian, solution.free) @ J.T
    kept = at + (family.dispersion_name is not None)
    return Estimate(
        beta=scaling.beta_to_columns(psi[:p]),
        factors=tuple(t.factor_to_columns(f) for t, f in zip(terms, solution.factors, strict=True)),
        dispersion=None if family.dispersion_name is None else float(np.exp(psi[-1])),
        loglik=solution.value,
        method="joint" if joint else "laplace" if n_agq == 1 else "agq",
        n_agq=n_agq,
        parameters=names + log_dispersion_name(family),
        covariance=inverse[:kept, :kept],
        boundary=~solution.free[:kept],
        convergence=solution.convergence,
        scaling=scaling,
    )


def nested_posteriors(problem, effects) -> tuple[Posterior, ...]:
    """As `several_posteriors`, from the effects that `optimise.nested_fit` works out; they are on the link scale."""
    with computing():
        terms = zip(problem.frame.terms, problem.nested.terms, *effects(), strict=True)
    return tuple(
        normal_posterior(
            mode[:, None] / made.z_scale, (variance / made.z_scale**2)[:, None, None],
            np.bincount(term.codes, minlength=made.n_levels),
        )
        for term, made, mode, variance in terms
    )  # fmt: skip


def several_posteriors(problem, solution) -> tuple[Posterior, ...]:
    """Posterior of every factor's effects given the estimates: normal around the mode, as Laplace has it."""
    design, H = problem.rows, solution.evaluation.H
    posteriors = []
    with computing():
        diagonal = None if H is None else H.diagonal
    factors = [t.factor_to_columns(f) for t, f in zip(design.terms, solution.factors, strict=True)]
    parts = design.split(solution.evaluation.u)
    for t, (term, factor, u) in enumerate(zip(design.terms, factors, parts, strict=True)):
        spread = np.zeros((term.n_levels, *factor.shape))
        if diagonal is not None:
            spread[...] = covariance_pattern([factor], Blocks([diagonal[t]], {})).diagonal[0]
        counts = np.bincount(term.codes, minlength=term.n_levels)
        posteriors.append(normal_posterior(u @ factor.T, spread, counts))
    return tuple(posteriors)
