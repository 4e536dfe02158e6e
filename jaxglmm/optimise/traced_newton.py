"""Trust-region Newton maximisation as one traced loop, for fits inside of larger programs.

The method of `optimise.newton`, whose constants it shares, in `lax.while_loop`: one evaluation a turn, whether its step
is accepted or not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxglmm.optimise.newton import LEAST_GAIN, LONGEST_LOG_STEP, RADIUS_GROWS, RADIUS_SHRINKS


_HALVINGS = 60  # of the interval of the shift: below rounding


class Maximum(NamedTuple):
    """Where the loop stopped.

    Attributes
    ----------
    x : (m,)
    value : ()
    decrement : ()
        g'(-H)^-1 g; infinite where -H is not positive definite.
    converged : bool ()
    iterations : int ()
        Evaluations after the first.
    """

    x: Array
    value: Array
    decrement: Array
    converged: Array
    iterations: Array


class _Quadratic(NamedTuple):
    """The model g's + s'Hs/2, in coordinates scaled to unit diagonal, in which -H has these eigenvalues."""

    logged: Array
    g: Array
    H: Array
    d: Array
    eigenvalues: Array
    vectors: Array
    along: Array
    definite: Array
    decrement: Array


class _State(NamedTuple):
    x: Array
    value: Array
    model: _Quadratic
    radius: Array
    stalled: Array
    iterations: Array
    extra: Any


def maximise_traced(evaluate: Callable, x0, extra, *, even, tol, max_iterations: int) -> Maximum:
    """Maximise a smooth function of few parameters.

    Parameters
    ----------
    evaluate : callable
        (x (m,), extra) -> (value (), gradient (m,), hessian (m, m), extra). `extra` is what one evaluation hands to the
        next, such as the modes where the next search begins.
    x0 : (m,)
    even : bool (m,)
        Parameters of which the function is even, that step in the logarithm of their size.
    tol : float
        Largest Newton decrement at which to stop.
    max_iterations : int

    Returns
    -------
    Maximum
    """
    eps = jnp.finfo(x0.dtype).eps

    def at(x, extra):
        value, gradient, hessian, extra = evaluate(x, extra)
        finite = jnp.isfinite(value) & jnp.isfinite(gradient).all() & jnp.isfinite(hessian).all()
        return finite, value, gradient, hessian, extra

    def running(s):
        unfinished = ~(s.model.decrement <= tol) & ~s.stalled & (s.iterations < max_iterations)
        return unfinished & jnp.isfinite(s.value)

    def turn(s):
        model = s.model
        radius = jnp.where(
            jnp.isinf(s.radius) & ~model.definite, jnp.maximum(jnp.linalg.norm(model.along), 1e-8), s.radius
        )
        step = _step(model, radius)
        longest = jnp.max(jnp.abs(step) * model.logged, initial=0.0)
        step = step * jnp.minimum(1.0, LONGEST_LOG_STEP / jnp.maximum(longest, LONGEST_LOG_STEP))
        length = jnp.linalg.norm(step * model.d)
        predicted = _dot(model.g, step) + 0.5 * _dot(step, _dot(model.H, step))
        x = jnp.where(model.logged, s.x * jnp.exp(jnp.where(model.logged, step, 0.0)), s.x + step)
        finite, value, gradient, hessian, extra = at(x, s.extra)
        gain, rounding = value - s.value, 50 * eps * (jnp.abs(s.value) + 1)
        accepted = finite & (gain >= LEAST_GAIN * predicted - 8 * rounding)
        poor = ~accepted | (gain < 0.25 * predicted - rounding)
        good = accepted & (gain > 0.75 * predicted) & (length > 0.9 * radius)
        radius = jnp.where(poor, RADIUS_SHRINKS * length, jnp.where(good, RADIUS_GROWS * radius, radius))
        stalled = ~accepted & ((predicted <= rounding) | (radius < 1e-14))
        keep = lambda new, old: jnp.where(accepted, new, old)
        model = _Quadratic(*map(keep, _quadratic(x, gradient, hessian, even), model))
        extra = tuple(map(keep, extra, s.extra))
        return _State(keep(x, s.x), keep(value, s.value), model, radius, stalled, s.iterations + 1, extra)

    finite, value, gradient, hessian, extra = at(x0, extra)
    value = jnp.where(finite, value, -jnp.inf)
    infinite = jnp.asarray(jnp.inf, x0.dtype)
    model = _quadratic(x0, gradient, hessian, even)
    s = lax.while_loop(running, turn, _State(x0, value, model, infinite, jnp.asarray(False), jnp.asarray(0), extra))
    # At the limit of rounding no step can be seen to improve; a decrement this small is then the answer.
    decrement, limit = s.model.decrement, 1e4 * jnp.maximum(tol, eps * (1 + jnp.abs(s.value)))
    converged = jnp.isfinite(s.value) & ((decrement <= tol) | (s.stalled & (decrement <= limit)))
    return Maximum(s.x, s.value, decrement, converged, s.iterations)


def _dot(a, b):
    return jnp.matmul(a, b, precision="highest")


def _quadratic(x, gradient, hessian, even) -> _Quadratic:
    """The model at x, in the logarithm of even parameters but where they fall to zero (see `optimise.newton`)."""
    curvature = jnp.diagonal(hessian)
    target = x - gradient / jnp.where(curvature < 0, curvature, -1.0)
    falls = (x == 0) | ((curvature < 0) & (jnp.abs(target) < 0.5 * jnp.abs(x)) & (gradient * x < 0))
    logged = even & ~falls
    scale = jnp.where(logged, x, 1.0)
    g = scale * gradient
    H = scale[:, None] * hessian * scale[None, :] + jnp.diag(jnp.where(logged, g, 0.0))
    H = 0.5 * (H + H.T)
    diagonal = jnp.abs(jnp.diagonal(H))
    tiny = jnp.finfo(x.dtype).tiny
    largest = jnp.max(diagonal, initial=1e4 * tiny)
    floor = jnp.where(logged, 0.1 * jnp.abs(g) + 1e-4 * largest, 1e-12 * g * g + 1e-20 * largest)
    d = jnp.sqrt(jnp.maximum(diagonal, jnp.maximum(floor, tiny)))
    eigenvalues, vectors = jnp.linalg.eigh(H / -(d[:, None] * d))
    along = _dot(vectors.T, g / d)
    definite = eigenvalues[0] > 50 * jnp.finfo(x.dtype).eps
    decrement = jnp.where(definite, _dot(along, along / jnp.where(definite, eigenvalues, 1.0)), jnp.inf)
    return _Quadratic(logged, g, H, d, eigenvalues, vectors, along, definite, decrement)


def _step(model: _Quadratic, radius):
    """Maximiser of the model within `radius` (in scaled coordinates; More & Sorensen 1983)."""
    lowest, largest = model.eigenvalues[0], jnp.abs(model.eigenvalues[-1])
    solve = lambda shift: model.along / (model.eigenvalues + shift)
    low = jnp.maximum(0.0, -lowest) + 50 * jnp.finfo(radius.dtype).eps * jnp.maximum(1.0, largest)
    short = solve(low)
    missing = jnp.sqrt(jnp.maximum(radius**2 - jnp.sum(short**2), 0.0))
    # The hard case: the gradient has no part along the direction of growth; add that direction.
    hard = short.at[0].add(jnp.where(model.along[0] >= 0, 1.0, -1.0) * missing)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        outside = jnp.linalg.norm(solve(middle)) > radius
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    _, high = lax.fori_loop(0, _HALVINGS, halve, (low, low + jnp.linalg.norm(model.along) / radius))
    beyond = jnp.where(jnp.linalg.norm(short) < radius, hard, solve(high))
    plain = solve(0.0)
    inside = model.definite & (jnp.linalg.norm(plain) <= radius)
    return _dot(model.vectors, jnp.where(inside, plain, beyond)) / model.d
