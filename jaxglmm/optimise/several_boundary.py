"""Standard deviations at zero: what is as good there is held there, after a look along it for what is better."""

import numpy as np

from jaxglmm.optimise.boundary import HIGHER, MULTIPLES, LinePoint, promising, turned_round, with_values
from jaxglmm.optimise.newton import least_squares
from jaxglmm.optimise.several_search import STEP, Search


# Entries of R below the first are tried at zero, below the second where the fit creeps; see `optimise.marginal_fit`.
_NOTHING, LITTLE = 1e-2, 0.1
# A maximum whose value is estimated is higher than another by more than this.
_ESTIMATED = 0.05


def settle(search: Search, result, groups):
    """Make the diagonals non-negative, and hold at zero what is as good there and no worse than what is further on.

    Returns
    -------
    NewtonResult, free (m,), scores
        `scores`: derivative in the variance at zero of each scalar effect that is held there, by group.
    """
    (result, free), scores = _settled(search, result), {}
    for x in _starts_along(search, result, free):
        rival, held = _settled(search, search.climb(x, search.all_free()))
        if rival.value > result.value + (HIGHER if search.solver.exact else _ESTIMATED):
            result, free = rival, held
    for part, term, group in zip(search.parts, search.design.terms, groups, strict=True):
        if term.n_effects == 1 and not free[part].any():
            scores[group] = _score_at_zero(search, result.x, part, term)
    return result, free, scores


def _settled(search, result):
    free = search.all_free()
    for _ in range(2 * int(search.even.sum())):
        matrices = [
            t.covariance.canonical(R) for t, R in zip(search.design.terms, search.matrices(result.x), strict=True)
        ]
        x = search.with_factors(result.x, matrices)
        rival, held = _best_zero(search, result, matrices, free)
        if rival is not None:
            result, free = rival, held
        elif result.converged and (x == result.x).all():
            break
        else:
            result = search.climb(x, free)
    return result, free


def _starts_along(search, result, free):
    """Where higher maxima may be found from, x each."""
    starts = []
    for part, term in zip(search.parts, search.design.terms, strict=True):
        rows, columns = term.covariance.entries
        places = {(r, c): part.start + k for k, (r, c) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True))}
        for c in range(term.n_effects):
            if not free[places[c, c]]:
                looks = _looks(search, result, free, places[c, c])
                starts += [
                    with_values(result.x, {places[c, c]: size}) for size in promising(looks, result.value)[:2]
                ] + [with_values(result.x, turned) for turned in turned_round(result.x, places, c)]
    return starts


def _looks(search, result, free, j) -> list[LinePoint]:
    """The others profiled by a Newton step with the Hessian at the boundary."""
    others, looks = np.flatnonzero(free), []
    information = -result.hessian[np.ix_(others, others)]
    for size in MULTIPLES:
        e = search.evaluate(with_values(result.x, {j: size}), search.u)
        if np.isfinite(e.value):
            gradient = search.gradient(e)
            gain = 0.5 * gradient[others] @ least_squares(information, gradient[others])
            looks.append(LinePoint(size, e.value + float(gain), float(size * gradient[j])))
    return looks


def _best_zero(search, result, matrices, free):
    """The best fit with one more zero on a diagonal, or None where each is worse than `result`."""
    best, best_free = None, free
    limit = _NOTHING if result.converged else LITTLE
    for i, (part, term) in enumerate(zip(search.parts, search.design.terms, strict=True)):
        _, columns = term.covariance.entries
        size = np.where(free[part][term.covariance.diagonal], np.diag(matrices[i]), np.inf)
        for column in np.flatnonzero(size < (limit if term.n_effects == 1 else 10 * limit)):
            held = free.copy()
            held[part] &= columns != column
            without = term.covariance.without(matrices[i], column)
            x = search.with_factors(result.x, [*matrices[:i], without, *matrices[i + 1 :]])
            rival = search.climb(x, held)
            slack = 1e-10 * (1 + abs(result.value)) if search.solver.exact else 1e-3
            least = result.value - slack if best is None else best.value
            if rival.converged and rival.value >= least:
                best, best_free = rival, held
    return best, best_free


def _score_at_zero(search, x, part, term):
    """dL/d(tau^2) at tau = 0, from the gradient in tau close by: L is even in tau."""
    x = x.copy()
    x[part] = STEP
    tau = search.psi(x)[part][0]
    slope = search.gradient(search.evaluate(x, search.u))[part][0] / search.jacobian[part, part][0, 0]
    return float(slope / (2 * tau) * np.square(term.z_scale[0]))
