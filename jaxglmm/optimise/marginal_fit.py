"""Maximise a marginal likelihood of one grouping factor: start, boundary, number of nodes.

Everything here is in the coordinates of the design (scaled columns) with raw factor entries:
psi = (beta, free entries of Lambda, log dispersion).
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxglmm.errors import SeparationError
from jaxglmm.objectives.evaluate import evaluate, evaluate_glm
from jaxglmm.objectives.marginal import Nodes, gauss_hermite
from jaxglmm.ops import fused
from jaxglmm.optimise.estimate import Convergence
from jaxglmm.optimise.newton import NewtonResult, maximise


# Nodes per effect that method="auto" tries in turn, by number of effects.
NODE_LADDER = {1: (9, 19, 39, 79, 101), 2: (9, 19, 25)}
# One program serves every rule up to this many points.
_CAPACITIES = (128, 1024, 8192, 65536, 262144)
# A factor's diagonal below this, in units of 1 / sqrt(mean information), is zero.
_NOTHING = 1e-4


@dataclass(frozen=True)
class Solution:
    """Optimum in the design's coordinates.

    Attributes
    ----------
    psi : (m,)
        (beta, free entries of Lambda, log dispersion).
    free : bool (m,)
        Which were estimated: neither held, nor absent, nor on the boundary.
    hessian : (m, m)
        Exact, of the value maximised.
    value : float
    modes : (S, n_slots) or None
    """

    psi: np.ndarray
    free: np.ndarray
    hessian: np.ndarray
    value: float
    modes: np.ndarray | None
    convergence: Convergence


def padded_nodes(n_agq: int, n_effects: int) -> Nodes:
    """Nodes whose number is a traced integer, so that all rules of a capacity share one program."""
    capacity = next(c for c in _CAPACITIES if c >= n_agq**n_effects)
    nodes = gauss_hermite(n_agq, n_effects, capacity=capacity)
    return Nodes(jnp.asarray(nodes.points), jnp.asarray(nodes.log_weights), jnp.int32(nodes.count))


def fit_glm(family, design, intercept: int | None, *, names, start=None, tol=1e-12, callback=None):
    """Fit without random effects, from `start` (p + 1,) where there is one.

    Returns
    -------
    NewtonResult, groups
        In (beta, log dispersion); `groups` is (score, spread, level) of `glm_evaluate` at the optimum.

    Raises
    ------
    SeparationError
        When a direction in the columns predicts the response perfectly.
    """
    p = design.X.shape[1]
    free = np.append(np.ones(p, bool), family.dispersion_name is not None)
    eta0, log_phi0 = family.start(np.asarray(design.y), np.asarray(design.weights))
    x0 = np.zeros(p + 1)
    if intercept is not None:
        x0[intercept] = eta0 - np.average(design.offset, weights=design.weights)
    elif family.link in ("inverse", "sqrt") and p:
        x0[:p] = np.linalg.lstsq(np.asarray(design.X), np.full(design.X.shape[0], eta0), rcond=None)[0]
    x0[p] = log_phi0
    groups = None

    def at(x):
        nonlocal groups
        value, gradient, hessian, groups = evaluate_glm(family, design, jnp.asarray(x))
        return value, np.asarray(gradient), np.asarray(hessian)

    at = _Remembered(at)
    x0 = x0 if start is None else start
    result = _maximise_free(at, x0, free, np.zeros(p + 1, bool), tol=tol, callback=callback)
    _check_separation(design, result, names)
    at(result.x)
    return result, tuple(np.asarray(v) for v in groups)


class _Remembered:
    """A function that is not evaluated twice in a row at the same point: a pass over all rows is not for nothing."""

    def __init__(self, function):
        self.function, self.point, self.result = function, None, None

    def __call__(self, x):
        if self.point is None or not np.array_equal(self.point, x):
            self.point, self.result = np.array(x), self.function(x)
        return self.result


def _maximise_free(at, x0, free, even, **options) -> NewtonResult:
    """Maximise over the free coordinates, the others held; the result is about all of them."""
    base = np.array(x0, float)
    last = None

    def restricted(x):
        nonlocal last
        base[free] = x
        value, gradient, hessian = at(base)
        last = gradient, hessian
        return value, gradient[free], hessian[np.ix_(free, free)]

    r = maximise(restricted, base[free], log_coordinates=even[free], **options)
    full = base.copy()
    full[free] = r.x
    move = np.zeros_like(full)
    move[free] = r.step
    value, gradient, hessian = at(full)
    return NewtonResult(
        full, float(value), np.asarray(gradient), np.asarray(hessian), r.decrement, r.iterations, r.converged,
        r.reason, move,
    )  # fmt: skip


def _check_separation(design, result, names):
    """A last step along which no row is contradicted is a direction to infinity: name its columns."""
    p = design.X.shape[1]
    X, y, rows = np.asarray(design.X), np.asarray(design.y), np.asarray(design.weights) > 0
    eta = X @ result.x[:p]
    direction = result.step[:p]
    size = np.max(np.abs(direction), initial=0.0)
    if np.max(np.abs(eta[rows]), initial=0.0) < 12 or size == 0:
        return
    along = (X[rows] @ direction) / max(np.max(np.abs(X[rows] @ direction)), 1e-300)
    y = y[rows]
    lowest, highest = y == 0, y == 1
    if not (lowest | highest).all():
        highest = np.zeros_like(lowest)
    slack = 1e-4
    held = ~(lowest | highest)
    agrees = (along[lowest] <= slack).all() and (along[highest] >= -slack).all()
    if agrees and (np.abs(along[held]) <= slack).all():
        culprits = [names[j] for j in np.flatnonzero(np.abs(direction) > 1e-2 * size)]
        raise SeparationError(
            f"complete separation: {', '.join(repr(c) for c in culprits)} "
            f"predict{'s' if len(culprits) == 1 else ''} the response of some rows perfectly, so the estimate is "
            "infinite; drop or merge these columns or levels, or collect rows that contradict them"
        )


def fit_marginal(
    family, design, glm: NewtonResult, groups, *, n_agq=1, auto=False, fixed_factor=None, determinant=True,
    start=None, passes=0.0, tol=1e-12, max_iterations=100, callback=None,
) -> Solution:  # fmt: skip
    """Maximise the marginal likelihood from a fit without random effects.

    Parameters
    ----------
    n_agq : int
        Nodes per effect; 1 is Laplace.
    auto : bool
        Climb `NODE_LADDER` until more nodes make no difference.
    fixed_factor : (S, S), optional
        Hold Lambda here.
    determinant : bool
        False for the joint likelihood.
    start : (m,), optional
        Where to begin instead, near the optimum with as many nodes as `n_agq` or the ladder's first step says.
    passes : float
        Passes over the rows that led here, but for those of `glm`.
    """
    term = design.terms[0]
    covariance, S = term.covariance, term.covariance.n_effects
    p, q = design.X.shape[1], len(covariance.diagonal)
    even = np.concatenate([np.zeros(p, bool), covariance.diagonal, [False]])
    free = np.ones(p + q + 1, bool)
    free[-1] = family.dispersion_name is not None
    score, spread, level = groups
    rows = float(np.sum(np.asarray(design.weights) > 0))
    unit = np.sqrt(rows / np.maximum(level, 1e-300))  # 1 / sqrt(mean information) of each effect's column
    psi = np.concatenate([glm.x[:p], np.zeros(q), glm.x[p:]])
    if fixed_factor is not None:
        psi[p : p + q] = covariance.raw(fixed_factor)
        free[p : p + q] = False
    else:
        first = np.sqrt(np.maximum(2 * score / np.maximum(spread, 1e-300), 0.0))
        psi[p : p + q] = covariance.raw(np.diag(np.clip(first, 0.1 * unit, 1.0 * unit)))
    if start is not None:
        psi = start.copy()
    state = _State(family, design, determinant, callback, free, even, tol, max_iterations)
    nodes, used = padded_nodes(1 if auto else n_agq, S), 1 if auto else n_agq
    convergence = Convergence(
        score_at_zero=float(score[0]) if S == 1 else None,
        kernels="native" if fused.covers(family, design) else "plain",
    )
    nothing = _NOTHING * np.min(unit)

    if not auto:
        result = state.climb(psi, nodes)
    else:
        if start is None:
            psi = state.climb(psi, nodes, loose=True).x
        ladder = NODE_LADDER[S]
        for here, above in zip(ladder, (*ladder[1:], None), strict=True):
            nodes, used = padded_nodes(here, S), here
            result = state.climb(psi, nodes)
            psi = result.x
            if above is None or state.agrees(result, padded_nodes(above, S)):
                break
    result, free = state.settle(result, nodes, nothing, covariance, p, q)
    # With a zero variance the fit without random effects is a competitor that an interior start may not reach.
    if fixed_factor is None and glm.value > result.value + 1e-9 * abs(glm.value):
        at_zero = np.concatenate([glm.x[:p], np.zeros(q), glm.x[p:]])
        free = free & ~np.concatenate([np.zeros(p, bool), np.ones(q, bool), [False]])
        result = state.climb(at_zero, nodes, free=free)
    held = np.zeros(p + q + 1, bool)
    held[p : p + q] = ~free[p : p + q]
    convergence.singular = fixed_factor is None and bool(held.any())
    convergence.converged = result.converged
    convergence.reason = result.reason
    convergence.decrement = float(max(result.decrement, 0.0))
    convergence.n_agq = used if determinant else None
    if determinant and used > 1:
        laplace = state.at(result.x, padded_nodes(1, S))
        convergence.gap = float(result.value - laplace[0])
    convergence.iterations = state.evaluations
    convergence.passes = float(state.evaluations + glm.iterations + 1 + passes)
    return Solution(result.x, free, result.hessian, result.value, np.asarray(state.modes), convergence)


class _State:
    """Evaluations with warm-started modes, and the steps made of them."""

    def __init__(self, family, design, determinant, callback, free, even, tol, max_iterations):
        self.family, self.design, self.determinant, self.callback = family, design, determinant, callback
        self.free, self.even, self.tol, self.max_iterations = free, even, tol, max_iterations
        self.modes = jnp.zeros_like(design.terms[0].z)
        self.evaluations = 0

    def at(self, psi, nodes):
        e = evaluate(self.family, self.design, nodes, jnp.asarray(psi), self.modes, determinant=self.determinant)
        self.evaluations += 1
        value = float(e.value)
        if np.isfinite(value):
            self.modes = e.modes
        return value, np.asarray(e.gradient), np.asarray(e.hessian)

    def climb(self, psi, nodes, *, loose=False, free=None):
        free = self.free if free is None else free
        return _maximise_free(
            _Remembered(lambda psi: self.at(psi, nodes)), psi, free, self.even,
            tol=1e-4 if loose else self.tol, max_iterations=self.max_iterations, callback=self.callback,
        )  # fmt: skip

    def agrees(self, result, nodes):
        """More nodes change the log-likelihood by less than 1e-3 and no parameter by 0.01 standard errors."""
        value, gradient, hessian = self.at(result.x, nodes)
        kept = self.free & ~(self.even & (np.abs(result.x) < 1e-6))
        inverse = np.linalg.pinv(-hessian[np.ix_(kept, kept)])
        step = inverse @ gradient[kept]
        errors = np.sqrt(np.maximum(np.diag(inverse), 1e-300))
        return abs(value - result.value) < 1e-3 and np.max(np.abs(step) / errors, initial=0.0) < 0.01

    def settle(self, result, nodes, nothing, covariance, p, q):
        """Make the factor's diagonal non-negative, put what is as good as zero at zero, and hold it there."""
        free = self.free.copy()
        if not free[p : p + q].any():
            return result, free
        rows, columns = covariance.entries
        for _ in range(3):
            factor = covariance.canonical(np.asarray(covariance.raw_factor(jnp.asarray(result.x[p : p + q]))))
            diagonal = np.diag(factor)
            zero = diagonal < nothing
            if not zero.any() and (diagonal == np.diag(_square(result.x[p : p + q], covariance))).all():
                return result, free
            psi = result.x.copy()
            factor[np.diag_indices_from(factor)] = np.where(zero, 0.0, diagonal)
            psi[p : p + q] = covariance.raw(factor)
            # Below a zero on the diagonal a column is a rotation of later ones: hold all of it.
            held = np.array([zero[c] for c in columns])
            psi[p : p + q][held & (rows != columns)] = 0.0
            free = self.free.copy()
            free[p : p + q] &= ~held
            result = self.climb(psi, nodes, free=free)
        return result, free


def _square(raw, covariance):
    factor = np.zeros((covariance.n_effects,) * 2)
    factor[covariance.entries] = raw
    return factor
