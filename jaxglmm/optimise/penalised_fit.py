"""One penalised fit: from the unpenalised columns' fit to the estimate at one lambda, or to a posterior mode."""

import numpy as np

from jaxglmm.design.wide import DensePart, WideColumns
from jaxglmm.ops import fused
from jaxglmm.optimise.estimate import Convergence
from jaxglmm.optimise.marginal_fit import Solution
from jaxglmm.optimise.node_ladder import NODE_LADDER, climb_ladder, nodes_above, nothing_to_see, padded_nodes
from jaxglmm.optimise.null_fit import Likelihood, fit_null
from jaxglmm.optimise.path import PathSolver
from jaxglmm.optimise.path_model import Weights


def fit_penalised(
    family, design, scaling, lam: float, weights: Weights, likelihood: Likelihood, *, names, prior=None,
    tol=1e-11, max_iterations=200,
) -> tuple[Solution, dict]:  # fmt: skip
    """Minimise the penalised criterion (see `jaxglmm.model.penalties.ElasticNet`).

    Parameters
    ----------
    design : Design
        With X, centred and scaled.
    scaling : Scaling
    lam : float
    weights : Weights
    likelihood : Likelihood
    names : sequence of str
    prior : callable, optional
        psi, columns -> (value, gradient, Hessian) in the design's coordinates, added to the log-likelihood.
    tol : float
        KKT residual, relative to the gradient's own scale as in `optimise.path`.

    Returns
    -------
    Solution
        Its Hessian is that of the penalised log-likelihood, in psi; free are the coefficients that are not zero by the
        penalty, and what is estimated of theta and dispersion.
    dict
        "df", "kkt".
    """
    columns = WideColumns((DensePart(design.X),), np.zeros(0, int), design.X.shape[0])
    null = fit_null(
        family, design, columns, weights.unpenalised, scaling.intercept, likelihood, names=names, prior=prior,
        max_iterations=max_iterations,
    )  # fmt: skip
    model, n_agq = null.model, null.n_agq
    solver = PathSolver(columns, weights, [model], [null.point], tol=tol, max_iterations=max_iterations)
    n_effects = design.terms[0].covariance.n_effects if design.terms else 0
    iterations, gap, seen = 0, None, None

    def climb(nodes):
        nonlocal iterations
        if nodes != n_agq:
            solver.use_nodes(padded_nodes(nodes, n_effects))
        (found,) = solver.solve(lam)
        iterations += found.iterations
        return found

    if likelihood.auto:
        ladder = [nodes for nodes in NODE_LADDER[n_effects] if nodes >= n_agq]
        found, n_agq, seen = climb_ladder(ladder, n_effects, climb, lambda n, found: solver.look(n, found, lam))
    else:
        found, above = climb(n_agq), nodes_above(n_agq, n_effects) if n_effects and likelihood.check else None
        seen = None if above is None else solver.look(above, found, lam)
    solver.restart(0)
    point = solver.points[0]
    psi = np.append(found.beta, found.rest)
    p, active = len(found.beta), (found.beta != 0) | (weights.factors == 0)
    hessian, decrement = solver.penalised_hessian(0, lam), solver.decrement(0, lam)
    if model.nodes is not None and model.determinant and n_agq != 1:
        model.nodes = padded_nodes(1, n_effects)
        solver.restart(0)
        gap = found.loglik - solver.loglik(0)
    reason = "converged" if found.converged else "limit" if found.iterations >= max_iterations else "stalled"
    if not found.converged and model.free[-1] and len(weights.usable) >= np.count_nonzero(np.asarray(design.weights)):
        reason = (
            f"with as many columns as rows, the likelihood has no maximum where the fit is perfect and the "
            f"{family.dispersion_name} at its bound: raise lambda, or hold it as fit_path(scale='rss') does"
        )
    convergence = Convergence(
        converged=found.converged,
        reason=reason,
        decrement=decrement,
        iterations=iterations + 1,
        passes=float(point.passes),
        n_agq=n_agq if model.determinant else None,
        gap=gap,
        kernels="native" if fused.covers(family, design) else "plain",
    )
    free = np.append(active, model.free)
    if model.nodes is not None and model.free[0]:
        q = len(model.free) - 1
        covariance = design.terms[0].covariance
        factor = np.zeros((covariance.n_effects,) * 2)
        factor[covariance.entries] = psi[p : p + q]
        psi[p : p + q] = covariance.raw(covariance.canonical(factor))
        zero = np.abs(psi[p : p + q]) < 1e-4 * np.maximum(solver.spread[0][:q], 1e-300)
        convergence.singular = bool(zero[covariance.diagonal].any())
        free[p : p + q] &= ~zero
        psi[p : p + q][zero] = 0.0
        if seen is not None and not psi[p : p + q].any():
            seen = nothing_to_see(seen.nodes)
    modes = None if point.modes is None else np.asarray(point.modes)
    solution = Solution(psi, free, hessian, found.loglik, modes, convergence, seen)
    return solution, {"df": found.df, "kkt": found.kkt}
