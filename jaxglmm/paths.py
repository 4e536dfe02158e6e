"""Paths of penalised fits over lambda, with cross-validation by groups."""

import time
from dataclasses import replace

import numpy as np

from jaxglmm.arguments import (
    choice,
    flag,
    names,
    number,
    numbers,
    optional,
    seed as seeds,
    share,
    takes,
    whole,
)
from jaxglmm.design.sizes import what_stands_out
from jaxglmm.errors import ConvergenceError, DataError
from jaxglmm.estimation import tell_of_path
from jaxglmm.fitting import PRECISIONS, RULES, check_options
from jaxglmm.formula.frame import model_frame
from jaxglmm.model.families import get_family
from jaxglmm.model.penalties import ElasticNet, check_alpha
from jaxglmm.ops.computing import anywhere, computing
from jaxglmm.ops.threads import calm
from jaxglmm.optimise.cross_validation import fold_design, summarise_folds
from jaxglmm.optimise.null_fit import Likelihood, fit_null
from jaxglmm.optimise.path import PathSolver
from jaxglmm.optimise.path_nodes import PathRun, looks_along
from jaxglmm.path_design import fold_labels, lay_out_path
from jaxglmm.path_result import Path, Refit, along
from jaxglmm.penalised import choose_likelihood
from jaxglmm.progress import Progress


@takes(
    **RULES,
    lambdas=optional(numbers),
    n_lambdas=whole(1),
    lambda_min_ratio=optional(share(1e-4)),
    standardize=flag,
    X_names=optional(names),
    dummies=names,
    cv_by=choice("groups", "rows"),
    seed=seeds,
    scale=choice("likelihood", "rss"),
    precision=choice(*PRECISIONS),
    gamma=number(0),
    throw=flag,
)
def fit_path(
    formula, data, *, family="gaussian", alpha=1.0, lambdas=None, n_lambdas=100, lambda_min_ratio=None, factors=None,
    standardize=True, X=None, X_names=None, dummies=(), cv=None, cv_by="groups", seed=0, method="auto", n_agq=None,
    theta=None, scale="likelihood", weights=None, offset=None, levels=None, full_rank=True, precision="double",
    gamma=0.5, tol=1e-9, max_iterations=200, progress=None, throw=True,
) -> Path:  # fmt: skip
    """Fit a penalised mixed model, or generalized linear model, along a path of lambda.

    The criterion is that of `ElasticNet`; covariance parameters and dispersion are estimated anew at each lambda.

    Parameters
    ----------
    formula, data, family, method, n_agq, weights, offset, levels, full_rank, precision
        As in `jaxglmm.fit`. With "auto" the whole path takes as many nodes as make a difference at any of the
        lambdas that are looked at.
    alpha : float
        1 is the lasso, 0 ridge.
    lambdas : array, optional
        The path's lambdas; they are put in falling order.
    n_lambdas : int
        Otherwise so many, evenly spaced in their logarithm, from the smallest lambda at which every penalised
        coefficient is zero (for alpha below 0.001, that of 0.001).
    lambda_min_ratio : float, optional
        Last lambda over the first; 1e-4, or 1e-2 where there are fewer rows than columns.
    factors
        As in `ElasticNet`.
    standardize : bool
        Penalise the coefficients of standardised columns. Coefficients are reported for the columns as they are.
    X : array or scipy.sparse matrix (rows of the table, k), optional
        Further columns. What is sparse stays so: only active columns are ever made dense.
    X_names : sequence of str, optional
    dummies : sequence of str
        Columns of the table: each a categorical all of whose levels get a column, kept as one number a row. Factors may
        be given by the categorical's name.
    cv : int or array, optional
        Number of folds, or the fold of each row of the table.
    cv_by : {"groups", "rows"}
        Whether folds hold whole groups, of which then nothing is known when they are predicted, or single rows.
    seed : int or numpy.random.Generator
        Of the folds.
    theta : dict, optional
        Covariance parameters to hold.
    scale : {"likelihood", "rss"}
        "rss", for Gaussian responses without random effects: -L/N is RSS/(2N), so that lambda is glmnet's. Otherwise
        the residual variance is estimated, and glmnet's lambda is this one times it.
    gamma : float
        Of the extended BIC.
    tol : float
        Residual of the optimality conditions at which to stop, relative to the gradient's own scale (`Path.kkt`).
    max_iterations : int
        Evaluations at each lambda.
    progress : bool, optional
    throw : bool
        Raise when some lambda's fit did not converge; otherwise `Path.converged` tells.

    Returns
    -------
    Path

    Raises
    ------
    FormulaError, DataError, SeparationError, ConvergenceError

    References
    ----------
    Friedman, Hastie & Tibshirani (2010), J. Stat. Softw. 33(1). Groll & Tutz (2014), Stat. Comput. 24, 137.
    """
    began = time.perf_counter()
    family = get_family(family)
    check_alpha(alpha)
    check_options(family, method, n_agq, False, ElasticNet(0.0), None, precision, theta)
    _check_scale(scale, family)
    frame = model_frame(
        formula, data, family=family, weights=weights, offset=offset, levels=levels, full_rank=full_rank
    )
    if scale == "rss" and frame.terms:
        raise DataError("scale='rss' is for models without random effects: leave it out, or the bar")
    fold = fold_labels(frame, cv, cv_by, seed, frame.total)
    with computing(), calm(), anywhere(), Progress(progress) as line:
        laid = lay_out_path(
            frame, family, data, alpha=alpha, factors=factors, standardize=standardize, X=X, X_names=X_names,
            dummies=dummies, estimated=theta is None, precision=precision,
            bare=lambdas is not None and np.min(lambdas, initial=1) == 0,
        )  # fmt: skip
        likelihood = choose_likelihood(
            frame, family, laid.scaling, method=method, n_agq=n_agq, theta=theta,
            log_phi=0.0 if scale == "rss" else None,
        )  # fmt: skip

        def solve(likelihood):
            """The whole path, and what more nodes say of it."""
            solver, n_agq, sizes = _begin(frame, family, laid, likelihood, fold, tol, max_iterations)
            grid = _lambdas(lambdas, n_lambdas, lambda_min_ratio, solver, len(frame.y))
            found, scores = [], []
            for step, lam in enumerate(grid):
                solutions = solver.solve(lam)
                found.append(solutions[0])
                scores.append(solver.held_out())
                if lam == 0:
                    solver.check_separation(0, laid.names, laid.scaling.intercept)
                line.update(step, solutions[0].loglik, solutions[0].kkt, None)
                bad = next((s for s in solutions if not s.converged), None)
                if bad is not None and throw:
                    raise ConvergenceError(
                        f"at lambda {lam:.4g} (number {step}) the optimiser stopped after {bad.iterations} evaluations "
                        f"with a KKT residual of {bad.kkt:.2g}: {what_stands_out(frame)}. Look for values on another "
                        "scale than the model's; use fewer or larger lambdas (lambda_min_ratio=), raise "
                        "max_iterations, or pass throw=False"
                    )
            seen = looks_along(solver, found, grid, n_agq) if likelihood.check else {}
            return PathRun(n_agq, grid, found, scores, sizes, seen, float(sum(p.passes for p in solver.points)))

        run = solve(likelihood)
        passes = run.passes
        while likelihood.auto and (above := run.wants(len(frame.terms[0].names))) is not None:
            run = solve(replace(likelihood, n_agq=above, auto=False))
            passes += run.passes
    grid, found, scores, sizes = run.grid, run.found, run.scores, run.sizes
    told = ()
    if frame.terms:
        told = tell_of_path(run, laid.names, frame.terms[0], family, climbed=likelihood.auto)
    validation = None
    if fold is not None:
        validation = summarise_folds(grid, np.array(scores) / sizes, np.array(sizes))
    options = {
        "family": family, "method": method, "n_agq": n_agq, "theta": theta, "weights": weights, "offset": offset,
        "levels": levels, "full_rank": full_rank, "precision": precision,
    }  # fmt: skip
    refit = Refit(formula, data, options, tuple(frame.names), laid.further, frame.rows)
    report = along(frame, family, laid, found, gamma, scale)
    return Path(
        formula=formula, names=laid.names, lambdas=grid, alpha=float(alpha), n=len(frame.y), n_agq=run.n_agq,
        cv=validation, passes=passes, seconds=time.perf_counter() - began, warnings=told, refit_with=refit, **report,
    )  # fmt: skip


def _check_scale(scale, family):
    if scale not in ("likelihood", "rss"):
        raise DataError(f"scale must be 'likelihood' or 'rss'; found {scale!r}")
    if scale == "rss" and (family.name, family.link) != ("gaussian", "identity"):
        raise DataError(f"scale='rss' is for gaussian responses with the identity link; found family {family.name!r}")


def _begin(frame, family, laid, likelihood: Likelihood, fold, tol, max_iterations):
    """What solves for all rows and for the folds, its nodes, and the weights of the folds."""
    begin = lambda design, likelihood: fit_null(
        family, design, laid.columns, laid.weights.unpenalised, laid.scaling.intercept, likelihood, names=laid.names
    )
    null = begin(laid.design, likelihood)
    models, points, sizes = [null.model], [null.point], []
    for k in range(0 if fold is None else int(fold.max()) + 1):
        design = fold_design(family, laid.design, laid.layout, frame.y, frame.weights, fold == k)
        start = begin(design, _with_nodes(likelihood, null.n_agq))
        models.append(start.model)
        points.append(start.point)
        sizes.append(frame.weights[fold == k].sum())
    return (
        PathSolver(laid.columns, laid.weights, models, points, tol=tol, max_iterations=max_iterations),
        null.n_agq,
        sizes,
    )


def _with_nodes(likelihood: Likelihood, n_agq) -> Likelihood:
    """The same with a number of nodes that is settled."""
    return replace(likelihood, n_agq=n_agq or 1, auto=False)


def _lambdas(lambdas, n_lambdas, ratio, solver, n) -> np.ndarray:
    if lambdas is not None:
        grid = np.sort(np.asarray(lambdas, float).ravel())[::-1]
        if not len(grid) or not np.isfinite(grid).all() or grid[-1] < 0:
            raise DataError(f"lambdas must be finite numbers of at least 0; found {lambdas!r:.80}")
        return np.ascontiguousarray(grid)
    if not isinstance(n_lambdas, (int, np.integer)) or n_lambdas < 1:
        raise DataError(f"n_lambdas must be a whole number of at least 1; found {n_lambdas!r}")
    p = len(solver.weights.factors)
    ratio = (1e-4 if n > p else 1e-2) if ratio is None else ratio
    if not 0 < ratio < 1:
        raise DataError(f"lambda_min_ratio must lie between 0 and 1; found {ratio!r}")
    largest = solver.weights.largest_lambda(solver.points[0].gradient[:p])
    if largest == 0:
        raise DataError("there is nothing to penalise: every column is unpenalised, left out, or unrelated to y")
    if solver.weights.alpha >= 1e-3:  # below there is no lambda at which ridge's coefficients are zero
        # The first fit is not as near to its optimum as the path's are: the gradient is that of a fit that is.
        solver.solve(1.001 * largest)
        largest = solver.weights.largest_lambda(solver.points[0].gradient[:p])
    return largest * ratio ** np.linspace(0, 1, n_lambdas)
