"""From a problem to its estimate: the objective that fits it is chosen and maximised."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxglmm.design.factor_products import dense_order
from jaxglmm.design.sizes import check_held
from jaxglmm.design.within import check_within
from jaxglmm.errors import DataError, NotYetError
from jaxglmm.model.centring import factor_from_columns
from jaxglmm.model.covariance import Covariance, side_by_side
from jaxglmm.modes.choice import DENSE_LIMIT, SOLVERS
from jaxglmm.objectives.marginal import gauss_hermite
from jaxglmm.ops.computing import computing
from jaxglmm.ops.threads import calm
from jaxglmm.optimise.elsewhere import MOST_ROWS, look_elsewhere
from jaxglmm.optimise.estimate import Estimate, Posterior, Posteriors
from jaxglmm.optimise.gaussian_fit import fit_gaussian, gaussian_modes
from jaxglmm.optimise.glm_fit import fit_glm
from jaxglmm.optimise.marginal_fit import Solution, fit_marginal
from jaxglmm.optimise.node_ladder import LAPLACE, NODE_LADDER, Rule, tell, warning
from jaxglmm.optimise.report import (
    gaussian_estimate,
    glm_estimate,
    marginal_estimate,
    marginal_modes,
    marginal_parameters,
    marginal_posterior,
    normal_posterior,
)
from jaxglmm.optimise.sample import sampled_start
from jaxglmm.problem import Problem, is_linear, with_rows


# Effects a group for which method="auto" takes quadrature.
_UNASKED = 2


def estimate_problem(
    problem: Problem, *, method="auto", n_agq=None, reml=False, theta=None, solver="auto", tol=1e-12,
    max_iterations=100, callback=None,
) -> tuple[Estimate, Sequence[Posterior]]:  # fmt: skip
    """Choose the objective, maximise it, and report on the scale of the caller's columns. Needs x64."""
    if solver not in SOLVERS:
        raise DataError(f"solver must be one of {', '.join(map(repr, SOLVERS))}; found {solver!r}")
    frame, family = problem.frame, problem.family
    term = frame.terms[0] if frame.terms else None
    factors = None if theta is None else held_factors(theta, frame, family)
    by_rows = len(frame.terms) > 1 and solver not in ("auto", _way_of(problem.cross))
    if problem.cross is not None and not by_rows:
        return _estimate_gaussian(
            problem, reml=reml, factors=factors, tol=tol, max_iterations=max_iterations, callback=callback
        )
    if len(frame.terms) > 1:
        if reml and problem.cross is not None:
            raise DataError(f"REML is computed by solver={_way_of(problem.cross)!r} here; found solver={solver!r}")
        if reml:
            raise NotYetError(
                f"REML is computed from a dense matrix of order {DENSE_LIMIT:,} at most, and beside the factor with "
                f"most levels there are {dense_order(frame.terms):,} effects: use reml=False"
            )
        return _estimate_several(
            problem, method, n_agq, factors, solver, tol=tol, max_iterations=max_iterations, callback=callback
        )
    factor = factors[0] if factors else None
    intercept = problem.scaling.intercept
    if term is None:
        glm, _ = fit_glm(family, problem.design, intercept, names=frame.names, tol=tol, callback=callback)
        return glm_estimate(problem, glm), ()
    nodes, auto = quadrature_rule(method, n_agq, term)
    factor = None if factor is None else problem.scaling.factor_from_columns(factor)
    held = {"factor": factor, "determinant": method != "joint"}
    start = sampled_start(family, problem.design, intercept, names=frame.names, n_agq=nodes, auto=auto, **held)
    glm = groups = None
    if start.base is None:
        # Inside of the parameter space the fit without random effects only shows that a variance is worth having.
        glm_tol = tol if start.psi is None else max(tol, 1e-2)
        glm, groups = fit_glm(
            family, problem.design, intercept, names=frame.names, start=start.glm, tol=glm_tol, callback=callback
        )
    solution: Solution = fit_marginal(
        family, problem.design, glm, groups, n_agq=nodes, auto=auto, near=start.psi, part=start.part,
        base=start.base, passes=start.passes, check=method != "joint", few=start.few, names=frame.names,
        intercept=intercept,
        fixed_factor=factor, determinant=method != "joint", tol=tol, max_iterations=max_iterations, callback=callback,
    )  # fmt: skip
    estimate = marginal_estimate(problem, solution, joint=method == "joint")
    tell_of_nodes(estimate, solution, term, climbed=auto)
    return estimate, Posteriors(
        lambda: [marginal_posterior(problem, solution)], lambda: [marginal_modes(problem, solution)]
    )


def quadrature_rule(method, n_agq, term) -> tuple[int, bool]:
    """Nodes per effect to begin with, and whether to climb the ladder from there.

    Raises
    ------
    DataError
        For more effects than quadrature takes.
    """
    n_effects = term.z.shape[0]
    wanted = method == "agq" if n_agq is None else n_agq > 1
    if wanted and n_effects not in NODE_LADDER:
        raise DataError(
            f"quadrature takes up to {max(NODE_LADDER)} effects a group; {term.group!r} has {n_effects}: use "
            "method='laplace'"
        )
    if n_agq is not None:
        return int(n_agq), False
    return 1, wanted or (method == "auto" and n_effects <= _UNASKED)


def tell_of_nodes(estimate, solution, term, *, climbed):
    """Keep with a fit of one factor what more nodes say, and warn where it matters."""
    tell(estimate.convergence, solution.look, estimate.parameters, climbed=climbed, **_words_of(term))


def tell_of_lanes(solution, names, term, family, *, climbed):
    """Warn of each fit of a batch, where its nodes are too few, as of a fit alone.

    Parameters
    ----------
    solution : BatchSolution
    names : sequence of str
        Of the columns.
    """
    every = marginal_parameters(names, term, family)
    for i in np.flatnonzero(solution.checked_nodes):
        seen, failed = solution.look(i), solution.reasons[i] is not None
        text = None if failed else warning(int(solution.n_agq[i]), seen, every, climbed=climbed, **_words_of(term))
        if text is not None:
            solution.warnings[i].append(text)


def tell_of_path(run, names, term, family, *, climbed) -> tuple[str, ...]:
    """One warning that names the lambdas of a path, a `PathRun`, where its nodes are too few; none where they are not.

    Parameters
    ----------
    names : sequence of str
        Of the columns.
    """
    every, words = marginal_parameters(names, term, family), _words_of(term)
    texts = {k: warning(run.n_agq, seen, every, climbed=climbed, **words) for k, seen in run.seen.items()}
    bad = [k for k, text in texts.items() if text is not None]
    if not bad:
        return ()
    worst = max(bad, key=lambda k: abs(run.seen[k].move))
    where = f"at lambda {run.grid[bad[0]]:.3g}" + (f" to {run.grid[bad[-1]]:.3g}" if len(bad) > 1 else "")
    found = f"{where} ({len(bad)} of the {len(texts)} lambdas that were looked at; most at {run.grid[worst]:.3g})"
    return (f"{found}: {texts[worst]}",)


def _words_of(term) -> dict[str, str]:
    remedy = "method='agq' takes as many as make a difference"
    if len(term.names) not in NODE_LADDER:
        remedy = f"quadrature takes up to {max(NODE_LADDER)} effects a group: read the standard deviations with care"
    return {"effects": repr(term.group), "remedy": remedy}


def _estimate_several(problem, method, n_agq, factors, solver, **options):
    from jaxglmm.modes.choice import choose_solver
    from jaxglmm.optimise.several_fit import fit_several
    from jaxglmm.optimise.several_report import several_estimate, several_posteriors

    exact = is_linear(problem.family)  # Laplace's approximation to a normal integral is the integral
    rule = LAPLACE if exact else _several_rule(method, n_agq)
    if problem.nested is not None and method != "joint" and solver in ("auto", "separable"):
        with calm():
            return _estimate_nested(problem, factors, rule, check=not exact, **options)
    problem = with_rows(problem)
    frame, design = problem.frame, problem.rows
    assert design is not None
    way = choose_solver(design, solver)
    quadrature, why_not = _factor_quadrature(problem, way)
    if quadrature is None and rule.first > 1 and not rule.doubts:
        raise DataError(f"{why_not}: use method='laplace'")
    sizes = sorted(t.n_levels * t.n_effects for t in design.terms)
    with calm(sum(sizes[:-1]) if way.name == "schur" else 0.0):
        solution = fit_several(
            problem.family, design, way, problem.scaling.intercept, names=frame.names,
            groups=[t.group for t in frame.terms], factors=_scaled_factors(factors, design.terms),
            determinant=method != "joint", rule=rule, quadrature=quadrature, check=not exact and method != "joint",
            **options,
        )  # fmt: skip
    estimate = several_estimate(problem, design.terms, solution, joint=method == "joint")
    tell_of_factors(estimate, solution, frame.terms, design.order, rule, why_not)
    if exact:
        estimate = replace(estimate, method="ml", n_agq=None)
    return estimate, Posteriors(lambda: several_posteriors(problem, solution))


def _several_rule(method, n_agq) -> Rule:
    """Quadrature over the largest of several factors: as asked for, or where it makes a difference."""
    if n_agq is not None:
        return Rule(int(n_agq))
    return {"auto": Rule(1, True, True), "agq": Rule(1, True)}.get(method, LAPLACE)


def tell_of_factors(estimate, solution, terms, order, rule: Rule, why_not=""):
    """Keep with a fit of several factors what more nodes say, and warn where it matters.

    Parameters
    ----------
    terms : sequence of TermFrame
    order : sequence of int
        The largest first.
    """
    names, convergence = estimate.parameters, estimate.convergence
    largest, *others = [repr(terms[t].group) for t in order]
    apart = ", each with the others at their modes,"
    every = " and ".join([largest, *others]) + apart if convergence.n_agq == 1 and solution.summed else largest
    care = f"{why_not}: read the standard deviations with care"
    remedy = care if why_not else "method='agq' integrates those of the largest factor by quadrature"
    tell(convergence, solution.look, names, every, climbed=rule.climbs, remedy=remedy)
    if solution.elsewhere is not None:
        care = "quadrature is over the factor with most levels: read these standard deviations with care"
        text = warning(1, solution.elsewhere, names, " and ".join(others) + apart, climbed=False, remedy=care)
        convergence.warnings += [] if text is None else [text]


def _estimate_nested(problem, factors, rule, **options):
    from jaxglmm.optimise.nested_fit import fit_nested
    from jaxglmm.optimise.several_report import nested_posteriors, several_estimate

    frame, design = problem.frame, problem.nested
    solution, effects = fit_nested(
        problem.family, design, problem.scaling.intercept, names=frame.names, groups=[t.group for t in frame.terms],
        factors=_scaled_factors(factors, design.terms), rule=rule, **options,
    )  # fmt: skip
    estimate = several_estimate(problem, design.terms, solution)
    if options["check"] and len(frame.y) <= MOST_ROWS and solution.look is not None:
        solution = replace(solution, elsewhere=_look_at_parents(problem, solution, effects()))
    tell_of_factors(estimate, solution, frame.terms, design.order, rule)
    return estimate, Posteriors(lambda: nested_posteriors(problem, effects))


def _look_at_parents(problem, solution, effects):
    """What nodes for the coarser of two nested factors say, the finer one's effects at their modes."""
    rows = with_rows(problem).rows
    u = [mode.ravel() / max(float(f[0, 0]), 1e-300) for mode, f in zip(effects.modes, solution.factors, strict=True)]
    return look_elsewhere(
        problem.family, rows, solution.psi, solution.free, solution.factors, np.concatenate(u), solution.value,
        solution.hessian,
    )  # fmt: skip


def _way_of(cross) -> str:
    """The solver that a Gaussian likelihood from cross products of several factors comes to."""
    return "separable" if cross is None or not cross.n_dense else "schur"


def _scaled_factors(factors, terms):
    return None if factors is None else [t.factor_from_columns(f) for t, f in zip(terms, factors, strict=True)]


def _factor_quadrature(problem, way):
    """What makes quadrature over the largest factor's effects, or None and why it is not possible, with numbers."""
    from jaxglmm.objectives.factor_quadrature import FactorQuadrature

    design, terms = problem.rows, problem.frame.terms
    largest, *others = design.order
    group, count = terms[largest].group, design.terms[largest].n_effects
    if count > 1:
        return None, (
            f"quadrature with several grouping factors is over the effects of the one with most levels, one a level; "
            f"{group!r} has {count}"
        )
    if way.name == "krylov":
        rest = sum(design.terms[t].n_levels * design.terms[t].n_effects for t in others)
        return None, (
            f"quadrature over {group!r} solves for the {rest:,} effects of the other factors by dense Cholesky, of "
            f"order {DENSE_LIMIT:,} at most and without solver='krylov'"
        )
    make = lambda nodes: FactorQuadrature(
        problem.family, design, gauss_hermite(nodes, 1), nested=way.name == "separable"
    )
    return make, ""


def _estimate_gaussian(problem, *, reml, factors, **options):
    frame = problem.frame
    check_within(problem.cross, frame.spec.response_text, [term.group for term in frame.terms])
    found = fit_gaussian(problem.cross, reml=reml, factor=side_by_side(factors) if factors else None, **options)
    estimate = gaussian_estimate(problem, found, reml=reml)
    if not problem.frame.terms:
        return estimate, ()
    return estimate, Posteriors(lambda: _gaussian_posteriors(problem, found))


def _gaussian_posteriors(problem, found):
    counts = [np.bincount(term.codes, minlength=len(term.levels)) for term in problem.frame.terms]
    with computing():
        modes = found.effects() if found.effects else [gaussian_modes(problem.cross, found)]
    return [normal_posterior(*pair, n) for pair, n in zip(modes, counts, strict=True)]


def held_factors(theta: dict, frame, family) -> tuple[np.ndarray, ...]:
    """Lambda (S, S) of each term's centred columns from the caller's {group: sd, sds or covariance matrix}.

    Raises
    ------
    DataError
    """
    terms = frame.terms
    if not terms or not isinstance(theta, dict) or set(theta) != {term.group for term in terms}:
        expected = ", ".join(repr(term.group) for term in terms) or "no grouping factor"
        raise DataError(
            f"theta must map every grouping factor to its sd or covariance matrix, {{group: sd}}; found {theta!r}, "
            f"and the formula has {expected}"
        )
    factors = [factor_from_columns(term.basis, _held_factor(theta, term), Covariance(term.blocks)) for term in terms]
    check_held(frame, family, factors)
    return tuple(factors)


def _held_factor(theta, term):
    try:
        value = np.asarray(theta[term.group], float)
    except (TypeError, ValueError):
        value = np.full(0, np.nan)
    S = term.z.shape[0]
    if value.ndim == 0 and S == 1:
        value = np.square(value)[None, None] if value >= 0 else np.full((1, 1), np.nan)
    elif value.ndim == 1 and value.shape == (S,):
        value = np.diag(np.where(value >= 0, value, np.nan) ** 2)
    if value.shape != (S, S) or not np.isfinite(value).all() or np.abs(value - value.T).max() > 1e-12:
        raise DataError(
            f"theta[{term.group!r}] must be {S} non-negative standard deviation(s) or a symmetric ({S}, {S}) "
            f"covariance matrix on the link scale; found {theta[term.group]!r}"
        )
    try:
        return np.linalg.cholesky(value) if value.any() else value
    except np.linalg.LinAlgError:
        raise DataError(f"theta[{term.group!r}] is not positive definite: {value.tolist()}") from None
