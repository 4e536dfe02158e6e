"""The dense part of an exact solver: Cholesky of a matrix over factors' effects, and entries of its inverse."""

import numpy as np
from scipy.linalg import get_lapack_funcs

from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, matrix
from jaxglmm.ops.memory import aligned_zeros


# Above this share of entries, and below this size, a sparse matrix is multiplied as a dense one.
_DENSE_SHARE, _DENSE_SIZE = 0.05, 50_000_000


class DenseCholesky:
    """Cholesky factor of a symmetric positive definite matrix.

    Parameters
    ----------
    matrix : (r, r)
        In Fortran's order, its lower triangle; overwritten.

    Attributes
    ----------
    log_det : float

    Raises
    ------
    numpy.linalg.LinAlgError
        Where it is not positive definite.
    """

    def __init__(self, matrix: np.ndarray):
        potrf, self._potrs, self._potri = get_lapack_funcs(("potrf", "potrs", "potri"), dtype=matrix.dtype)
        self._factor, failed = potrf(matrix, lower=1, overwrite_a=1, clean=0)
        if failed:
            raise np.linalg.LinAlgError("not positive definite")
        self.log_det = 2 * float(np.sum(np.log(np.diag(self._factor).astype(np.float64))))

    def solve(self, b: np.ndarray) -> np.ndarray:
        """(r, k) -> (r, k), in float64."""
        x, _ = self._potrs(self._factor, b, lower=1)
        return x.astype(np.float64, copy=False)

    def inverse(self) -> np.ndarray:
        """In float64 and Fortran's order, its lower triangle alone."""
        R = aligned_zeros(self._factor.shape, self._factor.dtype).T
        R[...] = self._factor
        R, _ = self._potri(R, lower=1, overwrite_c=1)
        if R.dtype == np.float64:
            return R
        wide = aligned_zeros(R.shape, np.float64).T
        wide[...] = R
        return wide


def transposed_product(left, right) -> tuple[tuple, np.ndarray]:
    """left'right of sparse matrices (G, r): where its entries are, as an index, and these."""
    size = left.shape[0] * left.shape[1]
    if left.nnz > _DENSE_SHARE * size and size < _DENSE_SIZE:
        return (slice(None), slice(None)), left.toarray().T @ right.toarray()
    product = (left.T @ right).tocoo()
    return product.coords, product.data


def add_blocks(rest: np.ndarray, design: RowDesign, begins: dict[int, int], H: Blocks):
    """Add the blocks of the terms that begin at these places of a dense matrix."""
    for t, begin in begins.items():
        term = design.terms[t]
        each = begin + np.arange(term.n_levels) * term.n_effects
        for a in range(term.n_effects):
            for b in range(term.n_effects):
                rest[each + a, each + b] += H.diagonal[t][:, a, b]
    for (t, u), C in H.cross.items():
        if t in begins and u in begins:
            between = matrix(design, (t, u), C).tocoo()
            i, j = between.coords
            rest[begins[t] + i, begins[u] + j] += between.data
            rest[begins[u] + j, begins[t] + i] += between.data


def blocks_of(R: np.ndarray, design: RowDesign, begins: dict[int, int]) -> Blocks:
    """The entries, where levels meet in the data, of a symmetric matrix of which the lower triangle is stored.

    Parameters
    ----------
    begins : dict of int to int
        First row of each term that is in the matrix; others have None for their blocks.
    """
    entries = lambda i, j: R[np.maximum(i, j), np.minimum(i, j)]

    def places(t, levels):
        S = design.terms[t].n_effects
        return begins[t] + levels[:, None] * S + np.arange(S)

    diagonal: list = [None] * len(design.terms)
    for t in begins:
        each = places(t, np.arange(design.terms[t].n_levels))
        diagonal[t] = entries(each[:, :, None], each[:, None, :])
    cross = {}
    for (t, u), pairs in design.pairs.items():
        if t in begins and u in begins:
            one, other = places(t, pairs.first), places(u, pairs.second)
            cross[t, u] = entries(one[:, :, None], other[:, None, :])
    return Blocks(diagonal, cross)
