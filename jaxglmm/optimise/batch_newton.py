"""Trust-region Newton maximisation of very many functions at once, of few parameters each.

The method of `optimise.newton`, step by step, with a lane for each function: one evaluation of all lanes that have
not finished a round. A lane that has finished costs nothing any more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxglmm.ops import lanes
from jaxglmm.optimise.newton import FLAT, LARGEST, LEAST_GAIN, LONGEST_LOG_STEP, RADIUS_GROWS, RADIUS_SHRINKS


REASONS = ("converged", "stalled", "limit", "not finite", "stopped")
CONVERGED, _STALLED, _LIMIT, _NOT_FINITE, _STOPPED, _RUNNING = range(6)  # kernels/cpu/newton.h has them too


@dataclass
class BatchResult:
    """Where each lane stopped.

    Attributes
    ----------
    x : (B, m)
    value : (B,)
    gradient : (B, m)
    hessian : (B, m, m)
    decrement : (B,)
    step : (B, m)
        The last step tried.
    converged : bool (B,)
    reason : int (B,)
        Index into `REASONS`.
    """

    x: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    decrement: np.ndarray
    step: np.ndarray
    converged: np.ndarray
    reason: np.ndarray


def maximise_many(
    evaluate: Callable,
    x0: np.ndarray,
    *,
    free: np.ndarray,
    even: np.ndarray,
    tol: float = 1e-12,
    max_iterations: int = 100,
    stop: Callable | None = None,
    begun: BatchResult | None = None,
) -> BatchResult:
    """Maximise B functions of m parameters.

    Parameters
    ----------
    evaluate : callable
        (lanes (k,), x (k, m)) -> value (k,), gradient (k, m), hessian (k, m, m).
    x0 : (B, m)
    free : bool (B, m) or (m,)
        Parameters that may move.
    even : bool (m,)
        Parameters of which the functions are even, that step in the logarithm of their size.
    tol : float
        Largest Newton decrement at which to stop.
    max_iterations : int
        Evaluations of a lane after its first.
    stop : callable, optional
        (lanes (k,), x (k, m)) -> bool (k,): lanes that need not go on, "stopped".
    begun : BatchResult, optional
        What another loop has found, which is not evaluated again; lanes go on whose reason there is none of `REASONS`.

    Returns
    -------
    BatchResult
    """
    x = np.array(x0, float)
    B = len(x)
    free = np.broadcast_to(free, x.shape)
    radius = np.full(B, np.inf)
    if begun is None:
        value, gradient, hessian = _checked(evaluate, np.arange(B), x)
        decrement, move = np.full(B, np.inf), np.zeros_like(x)
        reason = np.where(np.isfinite(value), _RUNNING, _NOT_FINITE)
    else:
        x, value, gradient, hessian = begun.x, begun.value, begun.gradient, begun.hessian
        decrement, move, reason = begun.decrement, begun.step, begun.reason
    for iteration in range(max_iterations + 1):
        a = np.flatnonzero(reason == _RUNNING)
        if stop is not None:
            stopped = stop(a, x[a])
            reason[a[stopped]] = _STOPPED
            a = a[~stopped]
        if not len(a):
            break
        logged = even & free[a] & ~_falls_to_zero(x[a], gradient[a], hessian[a])
        model = _Quadratics(*_transform(x[a], gradient[a], hessian[a], logged), logged, free[a])
        decrement[a] = model.decrement
        done = model.decrement <= tol
        reason[a[done]] = CONVERGED
        if iteration == max_iterations:
            reason[a[~done]] = _LIMIT
            break
        a, logged, model = a[~done], logged[~done], model.part(~done)
        if not len(a):
            continue
        start = ~np.isfinite(radius[a]) & ~model.definite
        radius[a[start]] = np.maximum(np.linalg.norm(model.scaled_gradient[start], axis=1), 1e-8)
        step = model.step(radius[a])
        longest = np.max(np.abs(step) * logged, axis=1)
        step *= np.minimum(1.0, LONGEST_LOG_STEP / np.maximum(longest, LONGEST_LOG_STEP))[:, None]
        predicted, length = model.gain(step), model.norm(step)
        trial = np.where(logged, x[a] * np.exp(np.where(logged, step, 0.0)), x[a] + step)
        move[a] = trial - x[a]
        new_value, new_gradient, new_hessian = _checked(evaluate, a, trial)
        rounding = 1e-14 * (np.abs(value[a]) + 1.0)
        gain = new_value - value[a]
        least = LEAST_GAIN * predicted - 8 * rounding
        flat = np.isfinite(gain) & (gain < least) & (predicted < FLAT * (np.abs(value[a]) + 1.0))
        with np.errstate(invalid="ignore", over="ignore"):
            slopes = 0.5 * np.einsum("bi,bi->b", np.where(free[a], gradient[a] + new_gradient, 0.0), move[a])
        gain = np.where(flat, slopes, gain)
        accepted = np.isfinite(gain) & (gain >= least)
        poor = ~accepted | (gain < 0.25 * predicted - rounding)
        good = accepted & (gain > 0.75 * predicted) & (length > 0.9 * radius[a])
        radius[a] = np.where(poor, RADIUS_SHRINKS * length, np.where(good, RADIUS_GROWS * radius[a], radius[a]))
        stuck = ~accepted & ((predicted <= rounding) | (radius[a] < 1e-14))
        reason[a[stuck]] = _STALLED
        kept = a[accepted]
        x[kept], value[kept] = trial[accepted], new_value[accepted]
        gradient[kept], hessian[kept] = new_gradient[accepted], new_hessian[accepted]
    # At the limit of rounding no step can be seen to improve; a decrement this small is then the answer.
    limit = 1e4 * np.maximum(tol, np.finfo(float).eps * (1 + np.abs(value)))
    converged = (reason == CONVERGED) | ((reason == _STALLED) & (decrement <= limit))
    return BatchResult(x, value, gradient, hessian, decrement, move, converged, reason)


def _checked(evaluate, which, x):
    value, gradient, hessian = evaluate(which, x)
    finite = (np.abs(gradient) < LARGEST).all(1) & (np.abs(hessian) < LARGEST).all((1, 2))
    return np.where(finite, value, -np.inf), gradient, hessian


def _falls_to_zero(x, gradient, hessian):
    """As `optimise.newton` has it: where a step in the parameter itself leads to the inner half of its way to zero."""
    curvature = np.einsum("bii->bi", hessian)
    with np.errstate(divide="ignore", invalid="ignore"):
        target = x - gradient / curvature
    return (x == 0) | ((curvature < 0) & (np.abs(target) < 0.5 * np.abs(x)) & (gradient * x < 0))


def _transform(x, gradient, hessian, logged):
    """Gradients and Hessians in the logarithm of the logged parameters."""
    scale = np.where(logged, x, 1.0)
    g = scale * gradient
    H = scale[:, :, None] * hessian * scale[:, None, :]
    at = np.arange(x.shape[1])
    H[:, at, at] += np.where(logged, g, 0.0)
    return g, 0.5 * (H + np.swapaxes(H, 1, 2))


class _Quadratics:
    """The models g's + s'Hs/2, in coordinates scaled to unit diagonal; held parameters are apart and do not move."""

    def __init__(self, g, H, logged, free):
        both = free[:, :, None] & free[:, None, :]
        self.g, self.H = np.where(free, g, 0.0), np.where(both, H, 0.0)
        diagonal = np.abs(np.einsum("bii->bi", self.H))
        largest = np.max(diagonal, axis=1, initial=1e-180)[:, None]
        floor = np.where(logged, 0.1 * np.abs(g) + 1e-4 * largest, 1e-12 * g * g + 1e-20 * largest)
        self.d = np.where(free, np.sqrt(np.maximum(diagonal, floor)), 1.0)
        self.scaled = -self.H / self.d[:, :, None] / self.d[:, None, :]
        at = np.arange(g.shape[1])
        self.scaled[:, at, at] += ~free
        self.scaled_gradient = self.g / self.d
        L = lanes.cholesky(lanes.lanes_last(self.scaled), least=1e-13)
        self.plain = lanes.cho_solve(L, lanes.lanes_last(self.scaled_gradient)).T
        self.definite = np.asarray(np.isfinite(self.plain).all(1))
        self.decrement = np.where(self.definite, np.sum(self.plain * self.scaled_gradient, 1), np.inf)

    def part(self, kept):
        """The models of some lanes."""
        out = object.__new__(_Quadratics)
        vars(out).update({name: array[kept] for name, array in vars(self).items()})
        return out

    def norm(self, step):
        return np.linalg.norm(step * self.d, axis=1)

    def gain(self, step):
        return np.sum(self.g * step, 1) + 0.5 * np.einsum("bi,bij,bj->b", step, self.H, step)

    def step(self, radius):
        """Maximisers of the models within `radius` (in scaled coordinates)."""
        out = np.where(self.definite[:, None], self.plain, 0.0)
        beyond = np.flatnonzero(~self.definite | (np.linalg.norm(out, axis=1) > radius))
        if len(beyond):
            out[beyond] = self._on_the_boundary(beyond, radius[beyond])
        return out / self.d

    def _on_the_boundary(self, which, radius):
        """Steps of length `radius`: the shift of the eigenvalues by bisection (More & Sorensen 1983)."""
        scaled: np.ndarray = self.scaled[which]
        eigenvalues, vectors = np.linalg.eigh(scaled)
        along = np.einsum("bij,bi->bj", vectors, self.scaled_gradient[which])
        solve = lambda shift: along / (eigenvalues + shift[:, None])
        size = lambda v: np.sqrt(np.sum(v * v, 1))
        low = np.maximum(0.0, -eigenvalues[:, 0]) + 1e-14 * np.maximum(1.0, np.abs(eigenvalues[:, -1]))
        short = solve(low)
        # The hard case: the gradient has no part along the direction of growth; add that direction.
        hard = size(short) < radius
        missing = np.sqrt(np.maximum(radius**2 - np.sum(short**2, 1), 0.0))
        short[:, 0] += np.where(along[:, 0] >= 0, 1.0, -1.0) * np.where(hard, missing, 0.0)
        high = low + size(along) / radius
        for _ in range(60):
            middle = 0.5 * (low + high)
            outside = size(solve(middle)) > radius
            low, high = np.where(outside, middle, low), np.where(outside, high, middle)
        return np.einsum("bij,bj->bi", vectors, np.where(hard[:, None], short, solve(high)))
