"""One penalised fit, or posterior mode, with several grouping factors, by Laplace's approximation."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxglmm.errors import NotYetError
from jaxglmm.optimise.elsewhere import look_elsewhere
from jaxglmm.optimise.estimate import Convergence
from jaxglmm.optimise.growth import check_growth
from jaxglmm.optimise.node_ladder import Place, nodes_above
from jaxglmm.optimise.path_model import Weights
from jaxglmm.optimise.proximal import Curvature, Penalised, lockstep, proximal_newton
from jaxglmm.optimise.several_fit import SeveralSolution, effects_columns, fit_several
from jaxglmm.optimise.several_search import Search


# Standard deviations begin at this at least, so that the penalised fit decides for itself whether they are zero.
_LITTLE = 0.1
# A standard deviation below this is on the boundary.
_NOTHING = 1e-4


def fit_several_penalised(
    family, design, solver, lam: float, weights: Weights, *, intercept, names, groups, factors=None, determinant=True,
    prior=None, check=True, tol=1e-9, max_iterations=200,
) -> tuple[SeveralSolution, dict]:  # fmt: skip
    """Minimise the penalised criterion (see `jaxglmm.model.penalties.ElasticNet`).

    Parameters
    ----------
    design : RowDesign
        With X, centred and scaled.
    solver : AbstractSolver
        An exact one.
    lam : float
    weights : Weights
    intercept : int or None
    names, groups : sequence of str
        Of columns and factors.
    factors : list of (S, S), optional
        Hold each Lambda here.
    determinant : bool
        False for the joint likelihood.
    prior : callable, optional
        (beta, rest, columns) -> (value, gradient, Hessian), added to the log-likelihood.
    check : bool
        Look at the optimum with quadrature nodes.
    tol : float
        KKT residual, relative to the gradient's own scale as in `optimise.path`.

    Returns
    -------
    SeveralSolution
        Its Hessian is that of the penalised log-likelihood.
    dict
        "df", "kkt".

    Raises
    ------
    NotYetError
        For data so large that the likelihood is estimated.
    SeparationError
    """
    if not solver.exact:
        raise NotYetError(
            "penalty= and prior= with several grouping factors need the exact likelihood, which data of this size have "
            "not: leave out a factor, or pass solver='schur'"
        )
    total, p = float(np.sum(design.weights)), len(weights.factors)
    held = {"groups": groups, "factors": factors, "determinant": determinant}
    first = int(np.searchsorted(weights.unpenalised, intercept)) if intercept in weights.unpenalised else None
    null = fit_several(
        family, replace(design, X=design.X[:, weights.unpenalised]), solver, first,
        names=[names[j] for j in weights.unpenalised], tol=1e-6, check=False, **held,
    )  # fmt: skip
    search = Search(family, design, solver, determinant, tol, max_iterations, None)
    free = search.all_free()
    x = np.zeros(search.m)
    x[weights.unpenalised], x[p:] = null.psi[: len(weights.unpenalised)], null.psi[len(weights.unpenalised) :]
    if factors is None:
        x = np.where(search.even, np.maximum(np.abs(x), _LITTLE), x)
    else:
        free[search.varied] = False
        x = search.with_factors(x, factors)
    free[:p] = np.isfinite(weights.factors)
    at, width = np.flatnonzero(free), int(free[:p].sum())

    def full(part):
        out = x.copy()
        out[at] = part
        return out

    def evaluate(asked, second, last):
        psi = full(asked[0])
        e = search.at(psi)
        if not np.isfinite(e.value):
            return {0: (np.inf, np.zeros(len(at)), None)}
        value, gradient, hessian = _with_prior(
            e.value, search.gradient(e), search.hessian(psi) if second else None, psi
        )
        curvature = None if hessian is None else -hessian[np.ix_(at, at)] / total
        return {0: (-value / total, -gradient[at] / total, curvature)}

    def _with_prior(value, gradient, hessian, psi):
        if prior is None:
            return value, gradient, hessian
        extra = prior(psi[:p], psi[p:], np.arange(p))
        return value + extra[0], gradient + extra[1], None if hessian is None else hessian + extra[2]

    extra = len(at) - width
    pad = lambda v, fill: np.append(v[at[:width]], np.full(extra, fill))

    def longest(part):
        out = np.full(len(part), np.inf)
        out[width:] = np.maximum(np.abs(part[width:]), 0.3)
        return out

    information = np.max(-np.diag(null.hessian)[: len(weights.unpenalised)], initial=0.0) / total
    scale = np.full(len(at), np.sqrt(information) if np.isfinite(information) and information > 0 else 1.0)
    if free[-1]:
        scale[-1] = 1.0
    penalised = Penalised(pad(weights.l1(lam), 0.0), pad(weights.l2(lam), 0.0), scale, width, longest)
    steps = proximal_newton(x[at], penalised, Curvature(), tol=tol, max_iterations=max_iterations)
    found = lockstep({0: steps}, evaluate)[0]
    psi = full(found.x)
    e = search.laplace(psi)
    hessian: Any = _with_prior(e.value, search.gradient(e), search.hessian(psi, exact=True), psi)[2]
    hessian = hessian - total * np.diag(np.append(weights.l2(lam), np.zeros(search.m - p)))
    active = np.append((psi[:p] != 0) | (weights.factors == 0), free[p:])
    zero = search.even & free & (np.abs(psi) < _NOTHING)
    active &= ~zero
    A, l2 = -hessian[np.ix_(active, active)], np.append(weights.l2(lam), np.zeros(search.m - p))[active]
    df = float(np.trace(np.linalg.solve(A, A - total * np.diag(l2)))) if l2.any() else float(active.sum())
    convergence = Convergence(
        converged=found.converged, reason="converged" if found.converged else "stalled",
        decrement=float(total * found.kkt**2), iterations=found.iterations, passes=float(search.evaluations),
        n_agq=1 if determinant else None, gap=None, singular=bool(zero.any()),
        solver=f"{solver.name}: {solver.reason}",
    )  # fmt: skip
    seen, above = None, nodes_above(1, design.terms[design.order[0]].n_effects)
    if check and determinant and above is not None:
        seen = search.look(1, above, Place(psi, e.value, hessian), active)
    every = None
    if seen is not None:
        every = look_elsewhere(family, design, psi, active, search.factors(psi), e.u, e.value, hessian, search.gap)
    seen, summed = (seen, False) if every is None else (every, True)
    solution = SeveralSolution(psi, active, hessian, search.factors(psi), e.value, e, convergence, seen, summed=summed)
    if factors is None:
        check_growth(family, solution.factors, effects_columns(design), design, groups, convergence)
    return solution, {"df": df, "kkt": found.kkt}
