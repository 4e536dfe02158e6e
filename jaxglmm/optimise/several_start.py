"""Where the search with several grouping factors begins: without random effects, then with effects of a likely size."""

import numpy as np

from jaxglmm.objectives.several import fixed_hessian
from jaxglmm.optimise.effect_units import base_factor
from jaxglmm.optimise.free_parameters import maximise_free
from jaxglmm.optimise.glm_fit import mean_offset
from jaxglmm.optimise.newton import NewtonResult
from jaxglmm.optimise.separation import check_separation, may_diverge
from jaxglmm.optimise.several_search import STEP, Search


def fit_glm(search: Search, intercept, names) -> NewtonResult:
    """The fit without random effects: every Lambda at zero."""
    design = search.design
    eta0, log_phi0 = search.family.start(design.y, design.weights)
    x = np.zeros(search.m)
    if intercept is not None:
        x[intercept] = eta0 - mean_offset(search.family, design.y, design.offset, design.weights)
    elif search.family.link in ("inverse", "sqrt") and search.p:
        x[: search.p] = np.linalg.lstsq(design.X, np.full(len(design.y), eta0), rcond=None)[0]
    x[-1] = log_phi0
    free = search.all_free()
    free[search.varied] = False

    def at(x):
        e = search.at(x)
        if not np.isfinite(e.value):
            return e.value, np.zeros(search.m), np.zeros((search.m, search.m))
        return e.value, search.gradient(e), _glm_hessian(search, x, e)

    glm = maximise_free(
        at, x, free, np.zeros(search.m, bool), limit=search.limit, tol=search.tol, callback=search.callback
    )
    if not glm.converged or may_diverge(-glm.hessian[: search.p, : search.p], len(design.y), search.tol):
        check_separation(search.family, design, glm.x[: search.p], names=names, intercept=intercept)
    return glm


def _glm_hessian(search, x, e):
    H = np.zeros((search.m, search.m))
    H[: search.p, : search.p] = fixed_hessian(search.design, e, search.factors(x), trace=False)
    if e.rows.phi is not None:
        move = np.zeros(search.m)
        move[-1] = STEP
        H[:, -1] = sum(sign * search.gradient(search.evaluate(x + sign * move, e.u)) for sign in (1, -1)) / (2 * STEP)
        H[-1] = H[:, -1]
    return H


def start(search: Search, glm):
    """Independent effects, each factor's of the size that its own score at zero suggests."""
    d = search.at(glm.x).rows
    assert d is not None
    bases, matrices = [], []
    used = search.design.weights > 0
    for term in search.design.terms:
        scores = term.sums(d.s)
        ones = np.ones(len(used))
        z = np.stack([ones if v is None else v for v in term.z])
        squares = np.stack([np.bincount(term.codes, d.w * v * v, term.n_levels) for v in z], axis=1)
        base = base_factor(term.covariance, z[:, used], squares.sum(0))
        score = 0.5 * (np.square(scores).sum(0) - squares.sum(0))
        first = np.sqrt(np.maximum(2 * score / np.maximum(np.square(squares).sum(0), 1e-300), 0))
        bases.append(base)
        matrices.append(np.diag(np.clip(first / np.sqrt(np.square(base).sum(1)), 0.1, 1.0)))
    search.set_bases(bases)
    search.forget()
    return search.with_factors(glm.x, matrices)
