"""Distribution functions and quantiles of densities that are known on a lattice.

A density whose spectrum ends before the lattice's Nyquist frequency is the sum of sinc functions of its values, and its
distribution function that of their integrals (Stenger 1993):

    F(x) = sum_k weights_k K((x - x_k) / step),     K(t) = 1/2 + Si(pi t) / pi

Posteriors of group effects are entire or have poles at a distance of about pi; on their lattices the error is below
1e-8.
"""

import functools

import numpy as np

from jaxglmm.ops import lattices, native


_NEIGHBOURS = 8  # nodes of the polynomial that inverts a distribution function
_TINY = 1e-15


def kernel(t: np.ndarray) -> np.ndarray:
    """K(t) = 1/2 + Si(pi t) / pi, the distribution function of a unit mass at 0 on the lattice of whole numbers."""
    from scipy.special import sici

    return 0.5 + sici(np.pi * np.asarray(t, float))[0] / np.pi


@functools.lru_cache(8)
def _kernel_matrix(n: int) -> np.ndarray:
    at = np.arange(1.0 - n, n)
    values = kernel(at)
    return values[(np.arange(n)[None, :] - np.arange(n)[:, None]) + n - 1]


@functools.lru_cache(8)
def _fine_kernel(n: int) -> np.ndarray:
    return lattices.fine_kernel(kernel, n)


def quantiles(first: np.ndarray, step: np.ndarray, weights: np.ndarray, probabilities) -> np.ndarray:
    """Quantiles (g, Q) of g densities on lattices of their own.

    Without the native library the distribution function is turned into normal quantiles, which for a normal density
    are a straight line, and the inverse is read off the polynomial through the eight nearest points.

    Parameters
    ----------
    first, step : (g,)
        The points are (first + k) step.
    weights : (K, g)
    probabilities : (Q,)
        Each within (0, 1).
    """
    if native.use_native():
        return lattices.quantiles(weights.T, first, step, _fine_kernel(len(weights)), probabilities)
    from scipy.special import ndtri

    K = len(weights)
    F = np.clip(weights.T @ _kernel_matrix(K), _TINY, 1 - _TINY)
    line = ndtri(F)
    out = np.empty((len(first), len(probabilities)))
    near = np.arange(_NEIGHBOURS) - (_NEIGHBOURS // 2 - 1)
    for q, p in enumerate(probabilities):
        below = np.argmax(F > p, axis=1) - 1  # the last point at or below, F rises
        at = np.clip(below[:, None], _NEIGHBOURS // 2 - 1, K - 1 - _NEIGHBOURS // 2) + near
        nodes = np.take_along_axis(line, at, 1) - ndtri(p)
        # Lagrange at 0 of k as a function of the line.
        k = np.zeros(len(first))
        for a in range(_NEIGHBOURS):
            others = np.delete(np.arange(_NEIGHBOURS), a)
            k += at[:, a] * np.prod(nodes[:, others] / (nodes[:, others] - nodes[:, [a]]), axis=1)
        out[:, q] = (first + k) * step
    return out
