"""Linear algebra of very many small matrices on the host, one matrix a lane.

Lanes lie on the last axis, so that each line below is one operation on vectors over all lanes: for matrices of a few
rows this is some hundred times faster than a library call for each of them.
"""

import numpy as np


def lanes_last(matrices: np.ndarray) -> np.ndarray:
    """(B, ...) to a contiguous (..., B)."""
    return np.ascontiguousarray(np.moveaxis(matrices, 0, -1))


def cholesky(A: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Lower Cholesky factors.

    Parameters
    ----------
    A : (m, m, B)
        Symmetric; only the lower triangles are read.
    least : float
        Pivots up to this size count as zero.

    Returns
    -------
    (m, m, B)
        NaN, from the pivot that failed on, where a matrix is not positive definite.
    """
    m = A.shape[0]
    L = np.zeros_like(A)
    for j in range(m):
        rest = A[j:, j] - np.einsum("ikb,kb->ib", L[j:, :j], L[j, :j])
        with np.errstate(invalid="ignore"):
            pivot = np.sqrt(np.where(rest[0] > least, rest[0], np.nan))
        L[j:, j] = rest / pivot
    return L


def solve_lower(L: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Solve L x = b: (m, m, B) and (m, B) or (m, k, B)."""
    x = np.zeros_like(b)
    for i in range(len(b)):
        x[i] = (b[i] - np.einsum("kb,k...b->...b", L[i, :i], x[:i])) / L[i, i]
    return x


def solve_upper(L: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Solve L'x = b; shapes as in `solve_lower`."""
    x = np.zeros_like(b)
    for i in reversed(range(len(b))):
        x[i] = (b[i] - np.einsum("kb,k...b->...b", L[i + 1 :, i], x[i + 1 :])) / L[i, i]
    return x


def cho_solve(L: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Solve L L'x = b; shapes as in `solve_lower`."""
    return solve_upper(L, solve_lower(L, b))


def inverse(A: np.ndarray) -> np.ndarray:
    """Inverses (m, m, B) of positive definite matrices of mixed units; NaN where one is not."""
    diagonal = np.einsum("iib->ib", A)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = 1 / np.sqrt(diagonal)
        L = cholesky(A * scale[:, None] * scale[None, :], least=1e-15)
        unit = np.broadcast_to(np.eye(len(A))[:, :, None], A.shape)
        return cho_solve(L, np.ascontiguousarray(unit)) * scale[:, None] * scale[None, :]
