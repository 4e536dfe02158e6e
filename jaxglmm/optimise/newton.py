"""Trust-region Newton maximisation of a smooth function of few parameters, driven from the host.

One compiled evaluation (value, gradient, Hessian) a step. The certificate is the Newton decrement
g'(-H)^-1 g with -H positive definite: scale free, twice the predicted gain, and the square of the largest
distance to the optimum in standard errors. (More & Sorensen 1983 for the subproblem; Nocedal & Wright 2006,
chapter 4.)

Scale parameters (diagonals of Cholesky factors) step in their logarithm while they are large, and in themselves
where the function, seen as even in them, is concave and falls towards zero: then zero is an ordinary
stationary point, and the sign of the curvature there decides the boundary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxglmm.optimise.surrogate import correct, error_share, foretold


LONGEST_LOG_STEP = 2.0
# Derivatives whose squares and products would overflow are as good as none.
LARGEST = 1e140
RADIUS_SHRINKS, RADIUS_GROWS = 0.25, 2.0
# A step is taken that gains this share of what the model predicts.
LEAST_GAIN = 1e-4
# A step that is expected to gain less, relative to the value, may be judged by the slopes at its ends (approximate
# condition of Hager & Zhang 2005, SIAM J. Optim. 16, 170): values may differ by rounding, whose size is that of
# the terms that a value is summed of, not its own.
FLAT = 1e-8
# So much, relatively, standard errors may be off where a sample foretells their change.
_SAME_ERRORS = 2e-5


@dataclass(frozen=True)
class NewtonResult:
    """Where the maximiser stopped. Arrays are in the caller's coordinates.

    Attributes
    ----------
    x : (m,)
    value : float
    gradient : (m,)
    hessian : (m, m)
    decrement : float
        g'(-H)^-1 g in the coordinates stepped in; infinite where -H is not positive definite. A bound of it where the
        last point was foretold (`maximise`, part).
    iterations : int
        Evaluations after the first.
    converged : bool
    reason : str
        "converged", "stalled" (no step improves beyond rounding), "limit", "stopped", or "not finite".
    step : (m,)
        The last Newton step tried, in the caller's coordinates: the direction of divergence if there is one.
    extra : tuple
        What `evaluate` returned at x beyond value, gradient and Hessian.
    """

    x: np.ndarray
    value: float
    gradient: np.ndarray
    hessian: np.ndarray
    decrement: float
    iterations: int
    converged: bool
    reason: str
    step: np.ndarray
    extra: tuple = ()


def maximise(
    evaluate: Callable,
    x0: np.ndarray,
    *,
    tol: float = 1e-12,
    max_iterations: int = 100,
    log_coordinates: np.ndarray | None = None,
    logarithms: np.ndarray | None = None,
    callback: Callable | None = None,
    part: Callable | None = None,
    stop: Callable | None = None,
) -> NewtonResult:
    """Maximise a function by trust-region Newton steps.

    Parameters
    ----------
    evaluate : callable
        x (m,) -> (value, gradient (m,), hessian (m, m), ...), in the caller's coordinates.
    x0 : (m,)
    tol : float
        Largest decrement at which to stop.
    max_iterations : int
    log_coordinates : bool (m,), optional
        Parameters of which the function is even, that step in the logarithm of their size.
    logarithms : bool (m,), optional
        Parameters that are logarithms themselves: their steps are no longer.
    callback : callable, optional
        Called with (iteration, value, decrement, x) after each accepted evaluation.
    part : callable, optional
        As `evaluate`, of a sample, for a start near the optimum: full Newton steps are corrected for what it tells of
        higher derivatives (`optimise.surrogate`). Where the error of such a step is foretold to be within `tol`, it is
        taken without a look at its end, which would only confirm it. Value and Hessian are then the surrogate's,
        standard errors from it within 2e-5, the decrement is that bound; gradient and `extra` are those where it began.

    stop : callable, optional
        x (m,) -> bool: where there is no need to go on, "stopped".

    Returns
    -------
    NewtonResult
    """
    x = np.array(x0, float)
    even = np.zeros(x.shape, bool) if log_coordinates is None else np.asarray(log_coordinates, bool)
    any_even, bounded = bool(even.any()), np.zeros(x.shape, bool) if logarithms is None else logarithms
    value, gradient, hessian, extra = _checked(evaluate, x)
    radius, iterations, reason = math.inf, 0, "limit"
    move, correction = np.zeros_like(x), None
    if not math.isfinite(value):
        return NewtonResult(x, value, gradient, hessian, np.inf, 0, False, "not finite", move, extra)
    while True:
        logged = even & ~_falls_to_zero(x, gradient, hessian) if any_even else even
        g, H = _transform(x, gradient, hessian, logged)
        model = _Quadratic(g, H, logged)
        decrement = model.decrement
        if callback is not None:
            callback(iterations, value, decrement, x)
        if decrement <= tol:
            reason = "converged"
            break
        if stop is not None and stop(x):
            reason = "stopped"
            break
        share = math.inf if correction is None else error_share(correction, decrement, hessian)
        correction = None
        if part is not None and math.isinf(radius) and model.definite:
            trial = _moved(x, _shortened(model.step(radius), logged | bounded), logged)
            correction = correct(part, x, (value, gradient, hessian), trial)
        if correction is not None and math.isfinite(share):
            bound, apart = foretold(correction, share, hessian)
            if bound <= tol and apart <= _SAME_ERRORS:
                move, decrement, reason = correction.x - x, bound, "converged"
                x, value, hessian = correction.x, correction.value, correction.hessian
                break
        if iterations >= max_iterations:
            break
        if math.isinf(radius) and not model.definite:
            radius = max(_length(model.scaled_gradient), 1e-8)
        rounding = 1e-14 * (abs(value) + 1.0)
        accepted = False
        while iterations < max_iterations:
            step = _shortened(model.step(radius), logged | bounded)
            predicted = model.gain(step)
            trial = _moved(x, step, logged) if correction is None else correction.x
            move = trial - x
            new = _checked(evaluate, trial)
            iterations += 1
            gain = new[0] - value
            least = LEAST_GAIN * predicted - 8 * rounding
            if math.isfinite(gain) and gain < least and predicted < FLAT * (abs(value) + 1.0):
                gain = 0.5 * (gradient + new[1]) @ move
            if math.isfinite(gain) and gain >= least:
                accepted = True
                break
            if correction is not None:  # misled: the step as the quadratic has it comes first
                correction = None
                continue
            radius = RADIUS_SHRINKS * model.norm(step)
            if predicted <= rounding or radius < 1e-14:
                break
        if not accepted:
            reason = "stalled" if iterations < max_iterations else "limit"
            break
        if gain < 0.25 * predicted - rounding:
            radius = RADIUS_SHRINKS * model.norm(step)
        elif gain > 0.75 * predicted and model.norm(step) > 0.9 * radius:
            radius = RADIUS_GROWS * radius
        x, (value, gradient, hessian, extra) = trial, new
    # At the limit of rounding no step can be seen to improve; a decrement this small is then the answer.
    # So it is where the steps ran out among values that differ by rounding.
    stalled = reason == "stalled" and decrement <= 1e4 * max(tol, np.finfo(float).eps * (1 + abs(value)))
    stalled |= reason == "limit" and decrement <= 1e-14 * (1 + abs(value))
    return NewtonResult(
        x, value, gradient, hessian, decrement, iterations, reason == "converged" or stalled, reason, move, extra
    )


def least_squares(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The shortest solution of A x = b in least squares; NaN where these are not finite, about which LAPACK writes."""
    if not (np.isfinite(A).all() and np.isfinite(b).all()):
        return np.full(A.shape[1], np.nan)
    return np.linalg.lstsq(A, b, rcond=None)[0]


def _checked(evaluate, x):
    value, gradient, hessian, *extra = evaluate(x)
    value, gradient, hessian = float(value), np.asarray(gradient, float), np.asarray(hessian, float)
    if not ((np.abs(gradient) < LARGEST).all() and (np.abs(hessian) < LARGEST).all()):  # NaN is not below it
        value = -math.inf
    return value, gradient, hessian, tuple(extra)


def _moved(x, step, logged):
    out = x + step
    if logged.any():
        out[logged] = x[logged] * np.exp(step[logged])
    return out


def _shortened(step, logged):
    """No parameter changes by more than a factor of e^2."""
    longest = np.max(np.abs(step[logged]), initial=0.0)
    return step * (LONGEST_LOG_STEP / longest) if longest > LONGEST_LOG_STEP else step


def _falls_to_zero(x, gradient, hessian):
    """Where a Newton step in the parameter itself leads into the inner half of its way to zero, or past it."""
    curvature = np.diag(hessian)
    with np.errstate(divide="ignore", invalid="ignore"):
        target = x - gradient / curvature
    return (x == 0) | ((curvature < 0) & (np.abs(target) < 0.5 * np.abs(x)) & (gradient * x < 0))


def _transform(x, gradient, hessian, logged):
    """Gradient and Hessian in the logarithm of the logged parameters."""
    if not logged.any():
        return gradient, 0.5 * (hessian + hessian.T)
    scale = np.where(logged, x, 1.0)
    g = scale * gradient
    H = scale[:, None] * hessian * scale[None, :] + np.diag(np.where(logged, g, 0.0))
    return g, 0.5 * (H + H.T)


def _length(v):
    return math.sqrt(v @ v)  # numpy's own norm takes as long as a whole small evaluation


class _Quadratic:
    """The model g's + s'Hs/2, in coordinates scaled to unit diagonal."""

    def __init__(self, g, H, logged):
        self.g, self.H = g, H
        diagonal = np.abs(H.diagonal())
        # A logarithm has a unit of its own: where its curvature vanishes, as towards zero, it must not take up the
        # whole step. For others a bound keeps the scale above zero.
        largest = max(diagonal.max(initial=0.0), 1e-180)
        floor = np.where(logged, 0.1 * np.abs(g) + 1e-4 * largest, 1e-12 * g * g + 1e-20 * largest)
        self.d = np.sqrt(np.maximum(diagonal, floor))
        scaled = H / -(self.d[:, None] * self.d)
        self.scaled_gradient = g / self.d
        self.eigenvalues, self.vectors = np.linalg.eigh(scaled)
        self.along = self.vectors.T @ self.scaled_gradient
        lowest = self.eigenvalues[0] if len(g) else 1.0
        self.definite = lowest > 1e-13
        self.decrement = float(self.along @ (self.along / self.eigenvalues)) if self.definite else math.inf

    def norm(self, step):
        return _length(step * self.d)

    def gain(self, step):
        return float(self.g @ step + 0.5 * step @ self.H @ step)

    def step(self, radius):
        """Maximiser of the model within `radius` (in scaled coordinates)."""
        solve = lambda shift: self.along / (self.eigenvalues + shift)
        if self.definite:
            plain = solve(0.0)
            if _length(plain) <= radius:
                return (self.vectors @ plain) / self.d
        low = max(0.0, -self.eigenvalues[0]) + 1e-14 * max(1.0, abs(self.eigenvalues[-1]))
        short = solve(low)
        if _length(short) < radius:
            # The hard case: the gradient has no part along the direction of growth; add that direction.
            short[0] += np.sqrt(max(radius**2 - np.sum(short**2), 0.0)) * (1.0 if self.along[0] >= 0 else -1.0)
            return (self.vectors @ short) / self.d
        high = low + _length(self.along) / radius
        for _ in range(100):
            middle = 0.5 * (low + high)
            if _length(solve(middle)) > radius:
                low = middle
            else:
                high = middle
            if high - low <= 1e-10 * high:
                break
        return (self.vectors @ solve(high)) / self.d
