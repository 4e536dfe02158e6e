"""Conjugate gradients for a block of right-hand sides, and the Lanczos quadrature that their coefficients give."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array


# Steps after which conjugate gradients give up.
_MOST_STEPS = 1000


class Solved(NamedTuple):
    """Solutions, each column's coefficients (most, k), their number (k,), and whether a negative direction was met."""

    x: tuple[Array, ...]
    alpha: Array
    beta: Array
    steps: Array
    stopped: Array


def conjugate_gradients(apply: Callable, b, tolerance: float | Array, most: int = _MOST_STEPS) -> Solved:
    """Solve apply(x) = b, each column by its own conjugate gradients, products for all at once.

    Parameters
    ----------
    apply : callable
        Symmetric and positive definite, on tuples of arrays (., ., k).
    b : tuple of arrays (., ., k)
    tolerance : float
        Of the residual's length, relative to b's.
    """
    dots = lambda v, w: sum(jnp.einsum("gsk,gsk->k", p, q, precision="highest") for p, q in zip(v, w, strict=True))
    along = lambda v, scale, w: tuple(p + scale * q for p, q in zip(v, w, strict=True))
    k = b[0].shape[2]
    rr = dots(b, b)
    enough = tolerance**2 * rr

    def going(state):
        step, *_, rr, _, _, _, stopped = state
        return (step < most) & jnp.any(rr > enough) & ~stopped

    def body(state):
        step, x, r, d, rr, alphas, betas, steps, _ = state
        active = rr > enough
        Ad = apply(d)
        curvature = dots(d, Ad)
        alpha = jnp.where(active, rr / jnp.where(active, curvature, 1.0), 0.0)
        x, r = along(x, alpha, d), along(r, -alpha, Ad)
        before, rr = rr, jnp.where(active, dots(r, r), rr)
        beta = jnp.where(active, rr / jnp.where(before > 0, before, 1.0), 0.0)
        d = along(r, beta, d)
        stopped = jnp.any(active & ~(curvature > 0))
        return step + 1, x, r, d, rr, alphas.at[step].set(alpha), betas.at[step].set(beta), steps + active, stopped

    zero = tuple(jnp.zeros_like(v) for v in b)
    none = jnp.zeros((most, k), b[0].dtype)
    start = (jnp.int32(0), zero, b, b, rr, none, none, jnp.zeros(k, jnp.int32), jnp.asarray(False))
    _, x, _, _, _, alpha, beta, steps, stopped = lax.while_loop(going, body, start)
    return Solved(x, alpha, beta, steps, stopped)


def lanczos_quadrature(a, b) -> float:
    """z'[log(I - N) + N]z / z'z by Lanczos quadrature, from the coefficients of conjugate gradients."""
    diagonal = 1 / a
    diagonal[1:] += b[:-1] / a[:-1]
    beside = np.sqrt(b[:-1]) / a[:-1]
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return vectors[0] ** 2 @ np.log(values) + 1 - diagonal[0]
