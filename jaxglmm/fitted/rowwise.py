"""A family's row functions on numpy arrays of any length, without a compilation for each length."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.groups import round_up
from jaxglmm.ops.computing import computing


# Rows of a block in `average`: with 100 nodes its weights take about 13 MB.
_BLOCK = 16384
# Numbers of points are rounded up to multiples of this, which share a program.
_POINTS = 32


@functools.partial(jax.jit, static_argnames=("family", "name"))
def _apply(family, name, *arguments):
    return getattr(family, name)(*arguments)


def rowwise(family, name: str, *arguments) -> np.ndarray:
    """`family.name(*arguments)` in float64; arrays (n,) are padded to a size that programs are shared for."""
    n = max(np.size(v) for v in arguments)
    if n == 0:
        return np.zeros(0)
    extra = round_up(n) - n
    padded = [np.pad(np.asarray(v, float), (0, extra), mode="edge") if np.ndim(v) else float(v) for v in arguments]
    with computing():
        return np.asarray(_apply(family, name, *padded))[:n].copy()  # which the caller may write to


@functools.partial(jax.jit, static_argnames=("family",))
def _average(family, base, slopes, points, weights):
    def add(k, total):
        eta = base + sum(slopes[a] * points[a, k] for a in range(slopes.shape[0]))
        return total + jnp.where(weights[:, k] > 0, weights[:, k] * family.mean(eta), 0.0)

    return jax.lax.fori_loop(0, points.shape[1], add, jnp.zeros_like(base))


def average(family, base, slopes, points, weights, codes=None) -> np.ndarray:
    """sum_k weights_k mu(base_i + slopes_i' points_k) of each row.

    Parameters
    ----------
    base : (n,)
    slopes : (S, n)
    points : (S, K)
    weights : (K,), or (G, K) with `codes` (n,) that say which row of it to use
    """
    n = len(base)
    out = np.empty(n)
    more = -points.shape[1] % _POINTS
    points = np.pad(points, [(0, 0), (0, more)], mode="edge")
    block = min(round_up(n), _BLOCK) if n else 0
    for begin in range(0, n, max(block, 1)):
        rows = slice(begin, min(begin + block, n))
        extra = block - (rows.stop - begin)
        mass = weights[None] if codes is None else weights[codes[rows]]
        pad = lambda v, extra=extra: np.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, extra)], mode="edge")
        mass = np.pad(mass, [(0, 0 if codes is None else extra), (0, 0)], mode="edge")
        mass = np.pad(mass, [(0, 0), (0, more)])
        with computing():
            out[rows] = np.asarray(_average(family, pad(base[rows]), pad(slopes[:, rows]), points, mass))[
                : rows.stop - begin
            ]
    return out


def normal_average(family, eta, variance) -> np.ndarray:
    """E mu(eta_i + e) for e ~ N(0, variance_i), elementwise: (n,), (n,) -> (n,).

    In closed form where there is one. Otherwise by the trapezoid rule, which for a normal density converges
    geometrically and, unlike Gauss-Hermite nodes, also with the poles of a logistic curve nearby: 201 points on +-9 sd
    leave less than 1e-12 at sd 10 with the logit link.
    """
    if family.link == "identity":
        return np.array(eta, float)
    if family.link == "log":
        return rowwise(family, "mean", eta + 0.5 * variance)
    if family.link == "sqrt":
        return np.square(eta) + variance
    if family.link == "probit":
        return rowwise(family, "mean", eta / np.sqrt(1 + variance))
    points = np.linspace(-9.0, 9.0, 201)
    weights = np.exp(-0.5 * points**2)
    return average(family, eta, np.sqrt(variance)[None], points[None], weights / weights.sum())
