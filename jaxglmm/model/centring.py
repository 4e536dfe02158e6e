"""Effects' columns less their means: the basis in which correlated effects are estimated, and the way out of it.

Where effects covary freely and one of them has a constant column c, the model of the columns z_j is that of z_j - m_j:

    sum_j z_j b_j = sum_j (z_j - m_j) b_j + c b_c',     b_c' = b_c + sum_j m_j b_j / c

so that b = T b' with a T of unit diagonal whatever the covariance of b, which is T Sigma' T'. Uncentred columns whose
means are large beside their standard deviations (a calendar year) are nearly multiples of each other: correlations come
near to +-1, and digits are lost by the square of mean / sd. Centred ones have neither fault.

All that is computed is of the centred columns (a frame has no others); what is shown, and what the caller states, is of
the columns as written. Uncorrelated effects (`||`) stay as they are: there the model itself depends on the origin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from jaxglmm.model.covariance import Covariance  # JAX, which reading a formula does without


# A column of less spread beside its mean than this is rounding about a constant.
_CONSTANT = 1e-13


def centring(z: np.ndarray, blocks, weights: np.ndarray) -> np.ndarray:
    """T (S, S) for columns z (S, n): T'z are the centred ones, b = T b' the effects of the columns as they are.

    Parameters
    ----------
    z : (S, n)
    blocks : tuple of tuples of int
        Effects that covary.
    weights : (n,)
        Of the means; rows of weight 0 do not count.
    """
    T = np.eye(len(z))
    wide = [block for block in blocks if len(block) > 1]
    if not wide:
        return T
    used = weights > 0
    rows = z if used.all() else z[:, used]
    if not rows.shape[1]:
        return T
    low, high = rows.min(1), rows.max(1)
    for block in wide:
        constant = next((k for k in block if low[k] == high[k] != 0), None)
        if constant is None:
            continue
        for a in block:
            mean = low[a] + float(np.mean(rows[a] - low[a]))
            if high[a] - low[a] > _CONSTANT * abs(mean):
                T[constant, a] = -mean / low[constant]
    return T


def centred(z: np.ndarray, T: np.ndarray) -> np.ndarray:
    """T'z, in the array z itself."""
    for constant, a in zip(*np.nonzero(np.triu(T, 1) + np.tril(T, -1)), strict=True):
        z[a] += T[constant, a] * z[constant]
    return z


def factor_to_columns(T: np.ndarray, factor: np.ndarray, covariance: Covariance) -> np.ndarray:
    """Lambda of the columns as they are from that of the centred ones."""
    return factor if is_identity(T) else covariance.canonical(T @ factor)


def factor_from_columns(T: np.ndarray, factor: np.ndarray, covariance: Covariance) -> np.ndarray:
    """Lambda of the centred columns from that of the columns as they are."""
    return factor if is_identity(T) else covariance.canonical(2 * factor - T @ factor)  # T^-1 = 2 I - T


def variances(T: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Variances (G, S) of the effects of the columns as they are from covariances (G, S, S) of the centred ones'."""
    return np.einsum("sa,gab,sb->gs", T, covariance, T, optimize=True)


def is_identity(T: np.ndarray) -> bool:
    return bool((T == np.eye(len(T))).all())
