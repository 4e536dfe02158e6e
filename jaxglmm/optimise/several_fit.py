"""Maximise Laplace's approximation to the likelihood of several grouping factors.

The unknowns are x = (beta, free entries of each term's R, log dispersion) with Lambda = Lambda_0 R as for one factor
(`optimise.marginal_fit`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from jaxglmm.design.rows import RowDesign
from jaxglmm.errors import SeparationError
from jaxglmm.modes.solver import AbstractSolver
from jaxglmm.objectives.factor_quadrature import FactorQuadrature
from jaxglmm.objectives.several import SeveralEvaluation
from jaxglmm.optimise.elsewhere import look_elsewhere
from jaxglmm.optimise.estimate import Convergence
from jaxglmm.optimise.growth import check_growth
from jaxglmm.optimise.node_ladder import LAPLACE, NODE_LADDER, Look, Rule, climb_ladder, nodes_above
from jaxglmm.optimise.separation import check_separation, may_diverge
from jaxglmm.optimise.several_boundary import LITTLE, settle
from jaxglmm.optimise.several_sample import sample_levels
from jaxglmm.optimise.several_search import Search
from jaxglmm.optimise.several_start import fit_glm, start


_FIRST_STEPS = 40
_SAMPLE_TOLERANCE = 1e-3
# Pairs of levels times nodes where more nodes are tried: what is held for each is several numbers.
_MOST_PAIR_NODES = 50_000_000


@dataclass(frozen=True)
class SeveralSolution:
    """Optimum in the design's coordinates.

    Attributes
    ----------
    psi : (m,)
        (beta, free entries of each Lambda, log dispersion).
    free : bool (m,)
        Which were estimated: neither held, nor absent, nor on the boundary.
    hessian : (m, m)
        Of the value, in psi.
    factors : list of (S, S)
        Lambda of each term, for scaled z.
    value : float
    evaluation : SeveralEvaluation or None
        By Laplace's approximation, whatever was maximised; None from `optimise.nested_fit`.
    convergence : Convergence
    look : Look or None
        What more nodes say at the optimum; by Laplace's approximation, those of the other factors too.
    elsewhere : Look or None
        Where the largest factor is integrated: what nodes for the others say.
    summed : bool
        Whether `look` is about all factors.
    """

    psi: np.ndarray
    free: np.ndarray
    hessian: np.ndarray
    factors: list[np.ndarray]
    value: float
    evaluation: SeveralEvaluation | None
    convergence: Convergence
    look: Look | None = None
    elsewhere: Look | None = None
    summed: bool = False


def fit_several(
    family, design: RowDesign, solver: AbstractSolver, intercept, *, names, groups, factors=None, determinant=True,
    rule=LAPLACE, quadrature: Callable[[int], FactorQuadrature] | None = None, check=True, tol=1e-12,
    max_iterations=100, callback=None,
) -> SeveralSolution:  # fmt: skip
    """Fit by Laplace's approximation, or with quadrature over the largest factor's effects.

    Parameters
    ----------
    intercept : int or None
        The column of ones.
    names : sequence of str
        Of the columns, for messages.
    groups : sequence of str
        Of the terms.
    factors : sequence of (S, S), optional
        Hold each Lambda (for scaled z) here.
    determinant : bool
        False for the joint likelihood.
    rule : Rule
    quadrature : callable, optional
        Makes the likelihood with so many nodes; None where it is not possible.
    check : bool
        Look at the optimum with more nodes.

    Raises
    ------
    SeparationError
        When a direction in the columns predicts the response perfectly.
    """
    search = Search(family, design, solver.cheap, determinant, tol, max_iterations, callback)
    free, scores = search.all_free(), {}
    x = _sampled_start(search, intercept, names) if factors is None and determinant else None
    if factors is not None:
        free[search.varied] = False
        x = search.with_factors(fit_glm(search, intercept, names).x, factors)
    elif x is None:
        x = start(search, fit_glm(search, intercept, names))
    steps = min(_FIRST_STEPS, max_iterations)
    result = search.climb(x, free, steps=steps)
    seen, used, largest = None, 1, design.terms[design.order[0]].n_effects
    if rule.first == 1 or rule.doubts:
        if factors is None:
            result, free, scores = settle(search, result, groups)
        above = nodes_above(1, largest)
        if check and above is not None:
            seen = search.look(1, above, result, free)
    if quadrature is not None and (seen is not None and seen.doubtful if rule.doubts else rule.first > 1):
        other = lambda: start(search, fit_glm(search, intercept, names)) if factors is None else x
        result, free, scores, used, seen = _with_nodes(
            search, result.x, rule, quadrature, solver, groups, other, held=free if factors is not None else None,
            steps=steps, check=check,
        )  # fmt: skip
    hessian = search.final_hessian(result.x, free)
    if solver.cheap is not solver and used == 1:
        search.refine_with(solver.approximate)
        result = replace(result, x=search.newton_step(result.x, hessian, free))
        search.refine_with(solver)
    result = search.certify(result, hessian, free)
    value, e = search.at(result.x).value, search.laplace(result.x)
    convergence = Convergence(
        converged=result.converged,
        reason=result.reason,
        decrement=float(max(result.decrement, 0.0)),
        iterations=search.evaluations,
        passes=float(search.evaluations),
        n_agq=used if determinant else None,
        gap=None if used == 1 else value - e.value,
        singular=factors is None and not free[search.varied].all(),
        solver=f"{solver.name}: {solver.reason}",
        loglik_se=e.value_se,
        scores_at_zero=scores,
    )
    psi, back = search.psi(result.x), np.linalg.inv(search.jacobian)
    free[-1] &= not family.at_limit(psi[-1])
    hessian = back.T @ hessian @ back
    found, elsewhere = search.factors(result.x), None
    if check and determinant:
        plus = search.gap if used == 1 and seen is not None else None
        elsewhere = look_elsewhere(family, design, psi, free, found, e.u, value, hessian, plus)
    summed = elsewhere is not None and used == 1 and seen is not None
    if summed:
        seen, elsewhere = elsewhere, None
    solution = SeveralSolution(psi, free, hessian, found, value, e, convergence, seen, elsewhere, summed)
    if not result.converged or may_diverge(-hessian[: search.p, : search.p], len(design.y), tol):
        check_separation(family, design, psi[: search.p], names=names, intercept=intercept)
    if factors is None:
        check_growth(family, solution.factors, effects_columns(design), design, groups, convergence)
    return solution


def _with_nodes(search, x, rule: Rule, quadrature, solver, groups, other, *, held, steps, check):
    """Maximise by quadrature from x on; `held` is what is free where covariances are held.

    Returns
    -------
    NewtonResult, free (m,), scores, nodes, Look
    """
    free = search.all_free() if held is None else held
    x = search.use_quadrature(quadrature(rule.first), solver, x, free, other)
    used, seen, scores = rule.first, None, {}

    def climb(nodes):
        nonlocal x, used
        if nodes != used:
            search.more_nodes(quadrature(nodes))
        result, used = search.climb(x, free, steps=steps), nodes
        x = result.x
        return result

    if rule.climbs:
        pairs = sum(len(search.design.pairs[search.quadrature.largest, t]) for t in search.quadrature.others)
        ladder = [n for n in NODE_LADDER[1] if n == used or n * pairs <= _MOST_PAIR_NODES]
        result, used, seen = climb_ladder(ladder, 1, climb, lambda n, result: search.look(used, n, result, free))
    else:
        result = climb(used)
    looked_at, above = result.x, nodes_above(used, 1)
    if held is None:
        result, free, scores = settle(search, result, groups)
    if check and above is not None and not (seen is not None and np.array_equal(looked_at, result.x)):
        seen = search.look(used, above, result, free)
    return result, free, scores, used, seen


def _sampled_start(search, intercept, names):
    """The estimate from a sample, whose Hessian serves the first steps; None where there is no sample, or none good."""
    sample = sample_levels(search.design)
    if sample is None:
        return None
    part = Search(search.family, sample, search.solver, True, _SAMPLE_TOLERANCE, search.max_iterations, None)
    try:
        glm = fit_glm(part, intercept, names)
    except SeparationError:  # in the sample, which says nothing of all rows
        return None
    free = part.all_free()
    result = part.climb(start(part, glm), free)
    if not result.converged or np.abs(result.x[search.even]).min() < LITTLE:
        return None
    search.jacobian = part.jacobian
    return search.begin(result.x, part.hessian(result.x) * len(search.design.y) / len(sample.y))


def effects_columns(design: RowDesign) -> list[list[np.ndarray]]:
    """Of each term the columns of its effects, in the coordinates of Lambda; ones are stored once."""
    ones = np.broadcast_to(1.0, len(design.y))
    return [[ones if v is None else v for v in term.z] for term in design.terms]
