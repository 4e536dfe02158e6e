"""From a formula and a table to a fitted model: the four stages, one after the other."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxglmm.design.checks import check_frame
from jaxglmm.design.crossproducts import CrossProducts, cross_products
from jaxglmm.design.design import Design, Scaling, column_scaling, make_design
from jaxglmm.design.factor_products import FactorProducts, dense_order, factor_products
from jaxglmm.design.groups import GroupIndex, Layout
from jaxglmm.errors import ConvergenceError, DataError, NotYetError
from jaxglmm.fitted.fit import Fit
from jaxglmm.formula.frame import ModelFrame, model_frame
from jaxglmm.model.covariance import side_by_side
from jaxglmm.model.families import AbstractFamily, get_family
from jaxglmm.modes.solver import DENSE_LIMIT
from jaxglmm.objectives.marginal import MOST_NODES
from jaxglmm.ops import fused
from jaxglmm.ops.columns import Columns
from jaxglmm.optimise.estimate import Estimate, Posterior, Posteriors
from jaxglmm.optimise.gaussian_fit import fit_gaussian, gaussian_modes
from jaxglmm.optimise.marginal_fit import NODE_LADDER, Solution, fit_glm, fit_marginal, padded_nodes
from jaxglmm.optimise.report import (
    gaussian_estimate,
    glm_estimate,
    marginal_estimate,
    marginal_posterior,
    normal_posterior,
)
from jaxglmm.optimise.sample import sampled_start
from jaxglmm.progress import Progress


if TYPE_CHECKING:
    from jaxglmm.design.nesting import NestedDesign
    from jaxglmm.design.rows import RowDesign


# With fewer rows in the median level of the largest of several factors Laplace's approximation is warned of.
_FEW_ROWS = 10
METHODS = ("auto", "laplace", "agq", "joint")
PRECISIONS = ("double", "mixed", "single")
# Newton decrement at which a fit in single precision stops: a three-hundredth of a standard error.
_SINGLE_TOLERANCE = 1e-5
# A design of more bytes is placed on the device once; a smaller one goes there with each evaluation.
_PLACED_BYTES = 1 << 16


@dataclass(frozen=True)
class Problem:
    """A model frame laid out for the optimiser: what a refit starts from.

    A Gaussian model with the identity link has `cross`, from which no evaluation touches a row again; others have
    `design` and `layout`, or, where there are several grouping factors, `nested` if native kernels have their kind and
    `rows` otherwise.
    """

    frame: ModelFrame
    family: AbstractFamily
    scaling: Scaling
    design: Design | None = None
    layout: Layout | None = None
    cross: CrossProducts | FactorProducts | None = None
    rows: "RowDesign | None" = None
    nested: "NestedDesign | None" = None

    @property
    def storage(self) -> tuple[GroupIndex, Layout] | None:
        """Index and layout of the rows, where there are some and one device has them all."""
        if self.design is None or self.layout is None or self.design.index.mesh is not None:
            return None
        return self.design.index, self.layout


def fit(
    formula, data, *, family="gaussian", method="auto", n_agq=None, reml=False, weights=None, offset=None,
    penalty=None, prior=None, theta=None, levels=None, full_rank=True, precision="double",
    solver="auto", devices=None, tol=1e-12, max_iterations=100, progress=None, throw=True,
) -> Fit:  # fmt: skip
    """Fit a generalized linear mixed model.

    Maximises the marginal likelihood of

        eta = offset + X beta + z'b[g],   b[g] ~ N(0, Sigma),   y | eta ~ family

    Parameters
    ----------
    formula : str
        lme4 syntax, such as `"y ~ age + (1 + age | member)"`. Without a bar, a plain generalized linear model.
    data : pandas, polars or pyarrow table, mapping of arrays, or path to CSV(.gz) or Parquet
    family : str or family
        "gaussian", "binomial", "poisson", "negativebinomial", "gamma", "beta", or an object such as
        `Binomial(link="probit")`.
    method : {"auto", "laplace", "agq", "joint"}
        "auto": exact for Gaussian responses; otherwise quadrature with as many nodes as make a difference for one or
        two effects a group, and Laplace's approximation for more and for several grouping factors, where "agq"
        integrates the finest of nested ones. "joint" maximises the joint likelihood of
        (beta, b) at a held `theta`, which is ridge regression on one-hot groups.
    n_agq : int, optional
        Nodes per effect for "agq"; 1 is Laplace.
    reml : bool
        Restricted maximum likelihood (Gaussian only).
    weights : str or array, optional
        Prior weights; for proportions the numbers of trials.
    offset : str or array, optional
        Added to eta.
    penalty : ElasticNet, optional
        Penalty on the fixed effects: `jg.Ridge(lam)`, `jg.Lasso(lam)` or `jg.ElasticNet(lam, alpha)`, which state the
        criterion. Standard errors are then those of the penalised information for ridge (the posterior's under the
        normal prior that ridge is; they leave out the bias), and NaN for a lasso or elastic net. `fit.loglik` is the
        log-likelihood without the penalty, `fit.df` the effective number of parameters.
    prior : dict, optional
        {name: prior}: of a column, or of all fixed effects but the intercept under "beta", a `jg.NormalPrior` or
        `jg.StudentPrior`; of the standard deviations of a grouping factor's effects, or of all under "sd", a
        `jg.HalfStudentPrior`, `jg.HalfCauchyPrior` or `jg.GammaPrior`, which keeps them from zero. The fit is at the
        posterior mode of (beta, sds, dispersion), flat in what has no prior, and standard errors come from the
        curvature there. `fit.loglik` is the log-likelihood alone.
    theta : dict, optional
        Covariance parameters to hold: {group: sd or covariance matrix}, absolute, on the link scale.
    levels : dict, optional
        Column -> list of levels in order, or "categorical".
    full_rank : bool
        False keeps a dummy column for every level.
    precision : {"double", "mixed", "single"}
        "mixed" stores rows in float32, half of the memory, and computes in float64. "single" computes with rows in
        float32 too where there is no native kernel, and stops at a decrement of 1e-5. Gaussian models, and those of
        several grouping factors or with a penalty, compute in float64 always.
    solver : {"auto", "separable", "schur", "krylov"}
        With several grouping factors, how systems with all effects are solved; by default as the data's structure
        calls for, which `fit.convergence.solver` tells.
    devices : sequence of jax.Device, optional
        Spread the groups over these devices (one grouping factor, responses that are not Gaussian).
    tol : float
        Newton decrement at which to stop.
    max_iterations : int
    progress : bool, optional
        Show a progress line; by default on a terminal, when a fit takes long.
    throw : bool
        Raise when the optimiser did not converge; otherwise the fit says so in `fit.convergence`.

    Returns
    -------
    Fit

    Raises
    ------
    FormulaError, DataError
        Naming the column or argument, what was found and what to do.
    SeparationError, ConvergenceError

    References
    ----------
    Bates, Maechler, Bolker & Walker (2015), J. Stat. Softw. 67(1). Pinheiro & Bates (1995), J. Comp. Graph.
    Stat. 4, 12. Breslow & Clayton (1993), JASA 88, 9.
    """
    began = time.perf_counter()
    family = get_family(family)
    check_options(family, method, n_agq, reml, penalty, prior, precision, theta)
    frame = model_frame(
        formula, data, family=family, weights=weights, offset=offset, levels=levels, full_rank=full_rank
    )
    framed = laid_out = time.perf_counter()
    with jax.enable_x64(True), Progress(progress) as line:
        if penalty is not None or prior is not None:
            if devices is not None:
                raise NotYetError("devices= goes with neither penalty= nor prior= yet: leave one of them out")
            from jaxglmm.penalised import estimate_penalised

            problem, estimate, posteriors = estimate_penalised(
                frame, family, penalty=penalty, prior=prior, method=method, n_agq=n_agq, theta=theta,
                max_iterations=max_iterations,
            )  # fmt: skip
        else:
            problem = make_problem(frame, family, estimated=theta is None, precision=precision, devices=devices)
            tol = max(tol, _SINGLE_TOLERANCE) if precision == "single" else tol
            laid_out = time.perf_counter()
            estimate, posteriors = estimate_problem(
                problem, method=method, n_agq=n_agq, reml=reml, theta=theta, solver=solver, tol=tol,
                max_iterations=max_iterations, callback=line.update,
            )  # fmt: skip
    convergence = estimate.convergence
    convergence.trace = line.steps
    convergence.timings["design"] = framed - began
    convergence.timings["layout"] = laid_out - framed
    convergence.timings["fit"] = time.perf_counter() - laid_out
    if throw and not convergence.converged:
        raise ConvergenceError(
            f"the optimiser stopped ({convergence.reason}) after {convergence.iterations} evaluations, with a Newton "
            f"decrement of {convergence.decrement:.2g}. Look for columns that are nearly collinear or "
            "groups whose responses are all alike; raise max_iterations; or pass throw=False to inspect the fit"
        )
    return Fit.from_training(problem, estimate, posteriors)


def check_options(family, method, n_agq, reml, penalty, prior, precision, theta):
    """Refuse options of a fit that are not known or do not go together.

    Raises
    ------
    DataError, NotYetError
    """
    if method not in METHODS:
        raise DataError(f"method must be one of {', '.join(map(repr, METHODS))}; found {method!r}")
    if n_agq is not None and (not isinstance(n_agq, (int, np.integer)) or not 1 <= n_agq <= MOST_NODES):
        raise DataError(f"n_agq must be a whole number of at least 1 and at most {MOST_NODES}; found {n_agq!r}")
    if n_agq is not None and method not in ("agq", "auto"):
        raise DataError(f"n_agq={n_agq} goes with method='agq'; found method={method!r}")
    if reml and (family.name, family.link) != ("gaussian", "identity"):
        raise DataError(f"reml=True is defined for gaussian responses; found family {family.name!r}")
    if precision not in PRECISIONS:
        raise DataError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}; found {precision!r}")
    if precision != "double" and (penalty is not None or prior is not None):
        raise NotYetError(f"penalty= and prior= take precision='double' for now; found {precision!r}")
    if reml and (penalty is not None or prior is not None):
        raise DataError("reml=True integrates over the fixed effects, which penalty= and prior= act on: leave it out")
    if method == "joint" and theta is None:
        raise DataError("method='joint' cannot estimate the covariance: pass theta={group: sd}, or use method='auto'")


def make_problem(
    frame: ModelFrame, family, *, estimated: bool = True, precision: str = "double", devices=None
) -> Problem:
    """Check the columns and lay the rows out.

    Parameters
    ----------
    frame : ModelFrame
    family : AbstractFamily
    estimated : bool
        Whether the covariance of the random effects is to be estimated; some data can only serve one that is held.
    precision : {"double", "mixed", "single"}
        As in `fit`.
    devices : sequence of jax.Device, optional
        To spread the groups over.

    Raises
    ------
    DataError
        When columns are constant or collinear, or a factor does not group.
    """
    X, found = Columns(frame.columns, len(frame.weights)), frame.moments
    check_frame(frame, family, estimated=estimated, found=found)
    linear = _linear(family)
    if devices is not None and (linear or len(frame.terms) != 1):
        raise NotYetError(
            "devices= spreads the groups of one factor, for responses that are not Gaussian; leave it out here"
        )
    if len(frame.terms) > 1 and (not linear or dense_order(frame.terms) > DENSE_LIMIT):
        return _problem_of_factors(frame, family, X, found)
    if len(frame.terms) > 1:
        scaling = column_scaling(X, frame.weights, None, found)
        cross = factor_products(
            frame.y, frame.X, terms=frame.terms, weights=frame.weights, offset=frame.offset, center=scaling.center,
            scale=scaling.scale,
        )  # fmt: skip
        return Problem(frame, family, scaling, cross=cross)
    term = frame.terms[0] if frame.terms else None
    z = None if term is None else term.z
    scaling = column_scaling(X, frame.weights, z, found)
    rows = {"weights": frame.weights, "offset": frame.offset}
    if term is not None:
        rows |= {"codes": term.codes, "n_groups": len(term.levels), "z": z, "blocks": term.blocks}
    if linear:
        cross = cross_products(frame.y, frame.X, center=scaling.center, scale=scaling.scale, **rows)
        return Problem(frame, family, scaling, cross=cross)
    constant = family.constant(frame.y, frame.weights)
    mesh = None if devices is None else jax.sharding.Mesh(np.asarray(devices), ("groups",))
    design, layout = make_design(
        frame.y, X, scaling=scaling, constant=constant, dtype=np.float64 if precision == "double" else np.float32,
        single=precision == "single", mesh=mesh, **rows,
    )  # fmt: skip
    design = replace(design, constant=np.asarray(constant, np.float64))
    if mesh is None and design.X.nbytes > _PLACED_BYTES:
        # The arrays are aligned and nobody else's: JAX takes them over without a copy.
        design = jax.device_put(design, may_alias=True)
    return Problem(frame, family, scaling, design, layout)


def _problem_of_factors(frame, family, X, found) -> Problem:
    from jaxglmm.design.nesting import nested_design

    scaling = column_scaling(X, frame.weights, None, found)
    problem = Problem(frame, family, scaling)
    if fused.covers_family(family) and not _linear(family):
        nested = nested_design(
            frame.y, X, frame.terms, weights=frame.weights, offset=frame.offset, scaling=scaling,
            constant=family.constant(frame.y, frame.weights),
        )  # fmt: skip
        if nested is not None:
            return replace(problem, nested=nested)
    return _with_rows(problem)


def _with_rows(problem: Problem) -> Problem:
    from jaxglmm.design.rows import make_rows

    frame = problem.frame
    rows = make_rows(
        frame.y, frame.X, frame.terms, weights=frame.weights, offset=frame.offset, scaling=problem.scaling,
        constant=problem.family.constant(frame.y, frame.weights),
    )  # fmt: skip
    return replace(problem, rows=rows)


def estimate_problem(
    problem: Problem, *, method="auto", n_agq=None, reml=False, theta=None, solver="auto", tol=1e-12,
    max_iterations=100, callback=None,
) -> tuple[Estimate, Sequence[Posterior]]:  # fmt: skip
    """Choose the objective, maximise it, and report on the scale of the caller's columns. Needs x64."""
    frame, family = problem.frame, problem.family
    term = frame.terms[0] if frame.terms else None
    factors = None if theta is None else held_factors(theta, frame.terms)
    if problem.cross is not None:
        return _estimate_gaussian(
            problem, reml=reml, factors=factors, tol=tol, max_iterations=max_iterations, callback=callback
        )
    if len(frame.terms) > 1:
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
        family, problem.design, glm, groups, n_agq=nodes, auto=auto, near=start.psi, base=start.base,
        passes=start.passes,
        fixed_factor=factor, determinant=method != "joint", tol=tol, max_iterations=max_iterations, callback=callback,
    )  # fmt: skip
    estimate = marginal_estimate(problem, solution, joint=method == "joint")
    return estimate, Posteriors(lambda: [marginal_posterior(problem, solution)])


def quadrature_rule(method, n_agq, term) -> tuple[int, bool]:
    """Nodes per effect to begin with, and whether to climb the ladder from there.

    Raises
    ------
    DataError
        For more effects than quadrature takes.
    """
    n_effects = term.z.shape[0]
    auto = method == "auto" and n_agq is None and n_effects in NODE_LADDER
    nodes = 1 if method in ("laplace", "joint") or n_agq is None else int(n_agq)
    if method == "agq" and n_agq is None:
        nodes = NODE_LADDER.get(n_effects, (9,))[0]
    if nodes > 1 and n_effects > 3:
        raise DataError(
            f"quadrature takes up to 3 effects a group; {term.group!r} has {n_effects}: use method='laplace'"
        )
    return nodes, auto


def _estimate_several(problem, method, n_agq, factors, solver, **options):
    from jaxglmm.modes.solver import choose_solver
    from jaxglmm.optimise.several_fit import fit_several
    from jaxglmm.optimise.several_report import several_estimate, several_posteriors

    exact = _linear(problem.family)  # Laplace's approximation to a normal integral is the integral
    nodes = NODE_LADDER[1][0] if method == "agq" and n_agq is None else int(n_agq or 1)
    nodes = 1 if exact else nodes
    if problem.nested is not None and method != "joint" and solver in ("auto", "separable"):
        return _estimate_nested(problem, factors, nodes, **options)
    problem = problem if problem.rows is not None else _with_rows(problem)
    frame, design = problem.frame, problem.rows
    assert design is not None
    solution = fit_several(
        problem.family, design, choose_solver(design, solver), problem.scaling.intercept, names=frame.names,
        groups=[t.group for t in frame.terms], factors=_scaled_factors(factors, design.terms),
        determinant=method != "joint", quadrature=_nested_quadrature(problem, nodes) if nodes > 1 else None, **options,
    )  # fmt: skip
    if nodes == 1 and method != "joint" and not exact:
        _warn_of_few_rows(solution, frame.terms[design.order[0]], nested=design.nested)
    estimate = several_estimate(problem, design.terms, solution, joint=method == "joint")
    if exact:
        estimate = replace(estimate, method="ml", n_agq=None)
    return estimate, several_posteriors(problem, solution)


def _estimate_nested(problem, factors, nodes, **options):
    from jaxglmm.optimise.nested_fit import fit_nested
    from jaxglmm.optimise.several_report import nested_posteriors, several_estimate

    frame, design = problem.frame, problem.nested
    solution, effects = fit_nested(
        problem.family, design, problem.scaling.intercept, names=frame.names, groups=[t.group for t in frame.terms],
        factors=_scaled_factors(factors, design.terms), nodes=padded_nodes(nodes, 1) if nodes > 1 else None, **options,
    )  # fmt: skip
    if nodes == 1:
        _warn_of_few_rows(solution, frame.terms[design.order[0]], nested=True)
    return several_estimate(problem, design.terms, solution), Posteriors(lambda: nested_posteriors(problem, effects))


def _scaled_factors(factors, terms):
    return None if factors is None else [t.factor_from_columns(f) for t, f in zip(terms, factors, strict=True)]


def _linear(family) -> bool:
    return (family.name, family.link) == ("gaussian", "identity")


def _nested_quadrature(problem, nodes):
    from jaxglmm.objectives.nested_quadrature import NestedQuadrature

    frame, design, scaling = problem.frame, problem.rows, problem.scaling
    finest = design.order[0]
    term = frame.terms[finest]
    tiles, layout = make_design(
        frame.y, frame.X, weights=frame.weights, offset=frame.offset, codes=term.codes, n_groups=len(term.levels),
        z=term.z, blocks=term.blocks, scaling=replace(scaling, z_scale=design.terms[finest].z_scale),
    )  # fmt: skip
    rule = padded_nodes(nodes, 1)
    return NestedQuadrature(problem.family, design, jax.device_put(tiles), layout, term.codes, rule)


def _warn_of_few_rows(solution, term, *, nested):
    median = np.median(np.bincount(term.codes))
    if median < _FEW_ROWS:
        remedy = "method='agq' integrates its effects by quadrature" if nested else "read its variance with care"
        solution.convergence.warnings.append(
            f"{term.group!r} has {median:g} rows in its median level: Laplace's approximation is biased for so few, "
            f"towards small variances; {remedy}"
        )


def _estimate_gaussian(problem, *, reml, factors, **options):
    found = fit_gaussian(problem.cross, reml=reml, factor=side_by_side(factors) if factors else None, **options)
    estimate = gaussian_estimate(problem, found, reml=reml)
    if not problem.frame.terms:
        return estimate, ()
    return estimate, Posteriors(lambda: _gaussian_posteriors(problem, found))


def _gaussian_posteriors(problem, found):
    counts = [np.bincount(term.codes, minlength=len(term.levels)) for term in problem.frame.terms]
    with jax.enable_x64(True):
        modes = found.effects or [gaussian_modes(problem.cross, found)]
    return [normal_posterior(*pair, n) for pair, n in zip(modes, counts, strict=True)]


def held_factors(theta: dict, terms) -> tuple[np.ndarray, ...]:
    """Lambda (S, S) of each term from the caller's {group: sd, sds or covariance matrix}.

    Raises
    ------
    DataError
    """
    if not terms or not isinstance(theta, dict) or set(theta) != {term.group for term in terms}:
        expected = ", ".join(repr(term.group) for term in terms) or "no grouping factor"
        raise DataError(
            f"theta must map every grouping factor to its sd or covariance matrix, {{group: sd}}; found {theta!r}, "
            f"and the formula has {expected}"
        )
    return tuple(_held_factor(theta, term) for term in terms)


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
