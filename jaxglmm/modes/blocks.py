"""Symmetric matrices over all levels of several factors, kept only where levels meet in the data.

H = I + Lambda' Z'WZ Lambda has a block (S, S) for each level and a block (S, S') for each pair of levels of two
factors that share a row. Its inverse is full, but the derivatives of log det H use no other entries of it than these.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import bsr_array, csr_array

from jaxglmm.design.rows import RowDesign


@dataclass(frozen=True)
class Blocks:
    """Blocks of a symmetric matrix.

    Attributes
    ----------
    diagonal : list of (G, S, S)
        One array a term, in formula order.
    cross : dict of (int, int) to (P, S, S')
        For the pairs of `RowDesign.pairs`.
    """

    diagonal: list[np.ndarray]
    cross: dict[tuple[int, int], np.ndarray]


def normal_equations(design: RowDesign, w: np.ndarray) -> Blocks:
    """Z'WZ of scaled z: sums of w_i z_i z_i' over the rows of each level and each pair."""
    diagonal, cross = [], {}
    for term in design.terms:
        diagonal.append(_pair_sums(w, term.codes, term.n_levels, term.z, term.z))
    for (t, u), pairs in design.pairs.items():
        a, b = design.terms[t], design.terms[u]
        if pairs.row is a.codes and all(len(x.z) == 1 and x.z[0] is None for x in (a, b)):
            cross[t, u] = diagonal[t]  # each level has one parent, and both have an intercept only
        else:
            cross[t, u] = _pair_sums(w, pairs.row, len(pairs), a.z, b.z)
    return Blocks(diagonal, cross)


def _pair_sums(w, codes, count, z, others):
    out = np.empty((count, len(z), len(others)))
    for a, left in enumerate(z):
        wz = w if left is None else w * left
        for b, right in enumerate(others):
            if others is z and b < a:
                out[:, a, b] = out[:, b, a]
            else:
                out[:, a, b] = np.bincount(codes, wz if right is None else wz * right, count)
    return out


def standardised(normal: Blocks, factors) -> Blocks:
    """H = I + Lambda' Z'WZ Lambda from Z'WZ and each term's Lambda."""
    diagonal = [
        np.eye(len(factor)) + product(product(factor.T, A), factor)
        for factor, A in zip(factors, normal.diagonal, strict=True)
    ]
    cross = {(t, u): product(product(factors[t].T, A), factors[u]) for (t, u), A in normal.cross.items()}
    return Blocks(diagonal, cross)


def matrix(design: RowDesign, which: tuple[int, int], values: np.ndarray):
    """The block of two terms as a sparse matrix (G S, G' S'), its pattern shared with the design."""
    pairs, (a, b) = design.pairs[which], (design.terms[t] for t in which)
    shape = (a.n_levels * a.n_effects, b.n_levels * b.n_effects)
    if values.shape[1:] == (1, 1):
        return csr_array((values.ravel(), pairs.second, pairs.start), shape=shape)
    return bsr_array((values, pairs.second, pairs.start), shape=shape)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b over leading axes, without a call a matrix where these are scalars."""
    if a.shape[-2:] == (1, 1):
        return a * b
    return a * b if b.shape[-2:] == (1, 1) and a.shape[-1] == 1 else a @ b


def inverse(D: np.ndarray) -> np.ndarray:
    """Inverse of each matrix (G, S, S)."""
    return 1 / D if D.shape[-1] == 1 else np.linalg.inv(D)


def log_det(D: np.ndarray) -> float:
    """Sum over matrices (G, S, S) of log det; NaN where one is not positive definite."""
    if D.shape[-1] == 1:
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.sum(np.log(D)))
    try:
        return 2 * float(np.sum(np.log(np.diagonal(np.linalg.cholesky(D), axis1=1, axis2=2))))
    except np.linalg.LinAlgError:
        return np.nan


def transposed(a: np.ndarray) -> np.ndarray:
    return np.swapaxes(a, -1, -2)


def sum_by(codes: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Sum of values (P, ...) by code: (count, ...)."""
    flat = values.reshape(len(values), -1)
    sums = [np.bincount(codes, flat[:, j], count) for j in range(flat.shape[1])]
    return np.stack(sums, axis=1).reshape(count, *values.shape[1:])
