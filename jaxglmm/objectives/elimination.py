"""Factorisation of a Gaussian model with several grouping factors, one relative factor T at a time.

With A = Z'WZ, C = T T' and V* = W^-1 + Z C Z', everything that the likelihood and its derivatives need is

    log det V* W,    U = Z'V*^-1 R for any R given as F = Z'W R,    and blocks of B = Z'V*^-1 Z.

Factors are eliminated one after the other. A factor whose block D of the matrix that is left is block diagonal, level
by level, gives M = T (T'DT + I)^-1 T' and P = I - M D, and leaves with A_ = its coupling to the factors that remain

    A_rest - A_' M A_    and    F_rest - A_' M F

(Bates, Maechler, Bolker & Walker 2015, J. Stat. Softw. 67(1), section 5; Henderson 1973). What then couples its levels
to each other is a dense matrix K with H = T'KT + I = LL'. On the way back, with E = T H^-1 T' for the remaining factors
and Y = P'A_ the results for the eliminated factor are

    B_gg = D_g P_g - (Y E Y')_gg        U = P'F - Y C U_rest.

T may be singular throughout: nothing is divided by it, but where that costs time and loses nothing.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from jaxglmm.design.factor_products import Couplings, FactorProducts, mirrored


# Below this a diagonal entry of T is not divided by.
_SMALL = 1e-2
# Numbers that a temporary of rows x remaining columns may hold.
_TEMPORARY = 4_000_000


class Elimination:
    """The factorisation at relative factors T, one for each factor.

    Parameters
    ----------
    factors : sequence of (S, S)
        T of each factor in the formula's order, lower triangular.
    products : FactorProducts

    Attributes
    ----------
    log_det : float
        log det V* W.

    Raises
    ------
    numpy.linalg.LinAlgError
        When the matrix that is left is not positive definite to rounding.
    """

    def __init__(self, factors, products: FactorProducts):
        self.products = products
        self.factors = [np.asarray(factors[t], float) for t in products.order]
        self.stages: list[_Stage] = []
        self.log_det = 0.0
        left = products.ztz
        for place in range(products.n_sparse):
            stage = _Stage(self.factors[place], left, products.sizes[place], None if place else products.couplings)
            self.log_det += stage.log_det
            self.stages.append(stage)
            left = stage.schur
        self.rest = None
        if products.n_dense:
            K = left if isinstance(left, np.ndarray) else left.toarray()
            self.rest = _Rest(self.factors[products.n_sparse :], K, products.sizes[products.n_sparse :])
            self.log_det += self.rest.log_det

    def solve(self, F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From F = Z'W R the products U = Z'V*^-1 R, and the sum R'WR - R'V*^-1 R: (q, c) -> (q, c), (c, c)."""
        explained = np.zeros((F.shape[1],) * 2)
        before, own = F, []
        for stage in self.stages:
            F, rest = before[: stage.size], before[stage.size :]
            MF = multiply(stage.M, F)
            explained += F.T @ MF
            own.append(F)
            before = rest - stage.across.T @ MF
        later = np.zeros((0, F.shape[1]))
        loads = later
        if self.rest is not None:
            later, loads = self.rest.solve(before)
            explained += before.T @ loads
        for stage, F in zip(reversed(self.stages), reversed(own), strict=True):
            U = multiply(stage.P, F - stage.across @ loads, transposed=True)
            later = np.concatenate([U, later])
            loads = np.concatenate([multiply(stage.factor @ stage.factor.T, U), loads])
        return later, explained

    def moments(self, products: FactorProducts) -> tuple[np.ndarray, np.ndarray]:
        """U of V and V'V*^-1 V: (q, p + 1), (p + 1, p + 1)."""
        U, explained = self.solve(products.ztv)
        return U, products.vtv - explained

    def traces(self) -> list[np.ndarray]:
        """Sum over levels of the diagonal blocks of B, (S, S), of each factor in the order of elimination."""
        return [totals for totals, _ in self._backward(blocks=False)]

    def covariances(self) -> list[np.ndarray]:
        """Blocks of E = C - C B C, the effects' conditional covariance over sigma^2: (G, S, S) of each factor."""
        return [blocks.transpose(2, 0, 1) for _, blocks in self._backward(blocks=True)]

    def _backward(self, blocks):
        """Sums of blocks of B and, when asked for, blocks of E (S, S, G), in the order of elimination."""
        out = []
        E: Any = None
        if self.rest is not None:
            out = self.rest.results(blocks)
            E = self.rest.E
        for place in reversed(range(len(self.stages))):
            stage = self.stages[place]
            out.insert(0, stage.results(E, blocks))
            if place:  # an earlier factor couples to this one
                E = stage.extend(E)
        return out


class _Stage:
    """A factor that is eliminated level by level, out of the sparse matrix `left` whose first columns are its own.

    What is left, `schur`, is dense where `couplings` are given.
    """

    def __init__(self, factor: np.ndarray, left: Any, size: int, couplings: Couplings | None):
        self.factor, self.size, self.couplings = factor, size, couplings
        S, eye = len(factor), np.eye(len(factor))[:, :, None]
        self.D = D = _diagonal_blocks(left, size, S)
        inverse, log_det = _inverse(np.einsum("ba,bcg,cd->adg", factor, D, factor) + eye)
        self.log_det = float(log_det.sum())
        self.M = np.einsum("ab,bcg,dc->adg", factor, inverse, factor)
        self.P = eye - np.einsum("abg,bcg->acg", self.M, D)
        self.across = left[:size, size:]  # A_
        if couplings is None:
            self.schur = left[size:, size:] - self.across.T.tocsr() @ weighted(self.M, self.across)
        else:
            self.schur = left[size:, size:].toarray() - couplings.outer(self.M[0, 0])

    @cached_property
    def coupled(self):
        """Y = P'A_, sparse."""
        return weighted(self.P.transpose(1, 0, 2), self.across)

    def results(self, E, blocks):
        """Sum of the blocks of B; with `blocks` also the blocks of E = C - C B C, (S, S, G)."""
        S = len(self.factor)
        DP = np.einsum("abg,bcg->acg", self.D, self.P)
        if E is None:
            B = DP
        elif self.couplings is not None and blocks:
            B = DP - np.square(self.P) * self.couplings.quadratic(E)
        elif self.couplings is not None:  # the same summed over levels, at less cost
            return DP.sum(-1) - np.vdot(E, self.couplings.outer(np.square(self.P[0, 0]))), None
        elif blocks:
            B = DP - _row_products(self.coupled, E, S)
        else:
            # Sum over levels of (Y E Y')_gg, as the inner product of E with Y'Y, which is as sparse as what is left.
            total = DP.sum(-1)
            parts = [self.coupled[a::S] for a in range(S)]
            for a in range(S):
                for b in range(a + 1):
                    shared = _inner(E, parts[a].T.tocsr() @ parts[b])
                    total[a, b] -= shared
                    total[b, a] -= shared * (a != b)
            return total, None
        C = self.factor @ self.factor.T
        return B.sum(-1), C[:, :, None] - np.einsum("ab,bcg,cd->adg", C, B, C)

    def extend(self, E):
        """E over this factor and the later ones, where earlier factors couple to them: block diagonal in this one's
        levels, and where its own coupling is not zero."""
        from scipy import sparse

        own = block_matrix(self.results(E, True)[1])
        if E is None:
            return own
        later = E if sparse.issparse(E) else _sampled_entries(E, self.schur)
        reach = self.across.copy()
        reach.data = np.ones_like(reach.data)
        coupling = -(weighted(self.M, self.across) @ later).multiply(reach).tocsr()
        return sparse.csr_array(sparse.block_array([[own, coupling], [coupling.T, later]], format="csr"))


class _Rest:
    """The factors whose levels are coupled: K dense, H = T'KT + I."""

    def __init__(self, factors, K, sizes):
        from scipy.linalg import lapack

        self.factors, self.K, self.sizes = factors, K, sizes
        self.T = _wide(factors, sizes)
        H = np.asfortranarray(self._between(K, self.T.T))
        H[np.diag_indices_from(H)] += 1.0
        self.L, info = lapack.dpotrf(H, lower=1, overwrite_a=1)  # pyright: ignore[reportAttributeAccessIssue]
        if info:
            raise np.linalg.LinAlgError("the cross products of the grouping factors are not positive definite")
        self.log_det = 2 * float(np.log(np.diag(self.L)).sum())

    @cached_property
    def inverse(self) -> np.ndarray:
        """H^-1, (R, R)."""
        from scipy.linalg import lapack

        return mirrored(lapack.dpotri(self.L, lower=1)[0])  # pyright: ignore[reportAttributeAccessIssue]

    @cached_property
    def E(self) -> np.ndarray:
        """T H^-1 T', (R, R)."""
        return self._between(self.inverse, self.T)

    def _between(self, K, T):
        """T K T' of a symmetric dense matrix."""
        if all(len(factor) == 1 for factor in self.factors):
            scale = self.T.diagonal()
            return scale[:, None] * K * scale
        return T @ (T @ K).T

    def solve(self, F):
        """U = Z'V*^-1 R and C U = E F."""
        from scipy import linalg

        loads = self.T @ linalg.cho_solve((self.L, True), self.T.T @ F, check_finite=False)
        return F - self.K @ loads, loads

    def results(self, blocks):
        out, begin = [], 0
        for T, size in zip(self.factors, self.sizes, strict=True):
            part, S = slice(begin, begin + size), len(T)
            begin += size
            if np.abs(np.diag(T)).min() > _SMALL:
                back = np.linalg.inv(T)
                inner = _diagonal_blocks(self.inverse[part, part], size, S)
                B = np.einsum("ba,bcg,cd->adg", back, np.eye(S)[:, :, None] - inner, back)
            else:
                K = self.K[:, part]
                EK = self.E @ K
                B = np.empty((S, S, size // S))
                for a in range(S):
                    for b in range(S):
                        B[a, b] = np.einsum("ij,ij->j", K[:, a::S], EK[:, b::S])
                B = _diagonal_blocks(K[part], size, S) - B
            E = None
            if blocks:
                inner = _diagonal_blocks(self.inverse[part, part], size, S)
                E = np.einsum("ab,bcg,dc->adg", T, inner, T)
            out.append((B.sum(-1), E))
        return out


# --- Blocks of levels --------------------------------------------------------------------------------------


def multiply(blocks: np.ndarray, X: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """Block-diagonal matrix times (G S, c): blocks (S, S, G), or (S, S) for the same in every level."""
    S = len(blocks)
    if S == 1:
        return blocks.reshape(-1, 1) * X
    if blocks.ndim == 2:
        blocks = blocks[:, :, None]
    shaped = X.reshape(len(X) // S, S, X.shape[1])
    subscripts = "bag,gbc->gac" if transposed else "abg,gbc->gac"
    return np.einsum(subscripts, np.broadcast_to(blocks, (S, S, len(shaped))), shaped).reshape(X.shape)


def weighted(blocks: np.ndarray, matrix):
    """Block-diagonal matrix (S, S, G) times a sparse one."""
    if len(blocks) > 1:
        return block_matrix(blocks) @ matrix
    out = matrix.copy()
    out.data = out.data * np.repeat(blocks[0, 0], np.diff(out.indptr))
    return out


def block_matrix(blocks: np.ndarray):
    """The sparse block-diagonal matrix of (S, S, G)."""
    from scipy import sparse

    G = blocks.shape[2]
    return sparse.bsr_array((blocks.transpose(2, 0, 1), np.arange(G), np.arange(G + 1))).tocsr()


def _diagonal_blocks(matrix, size, S) -> np.ndarray:
    """(S, S, G) of the leading `size` columns, of a sparse or a dense matrix."""
    out = np.empty((S, S, size // S))
    for a in range(S):
        for b in range(S):
            # Entry (a, b) of a block lies on the matrix' diagonal number b - a.
            line = matrix.diagonal(b - a)[: size - abs(b - a)]
            out[a, b] = line[min(a, b) :: S]
    return out


def _inverse(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse and log-determinant of positive definite (S, S, G) by the sweep operator (Goodnight 1979)."""
    log_det = np.zeros(A.shape[2])
    for k in range(len(A)):
        pivot = A[k, k].copy()
        log_det += np.log(pivot)
        row, column = A[k] / pivot, A[:, k] / pivot
        A = A - column[:, None] * A[k][None]
        A[k], A[:, k] = row, column
        A[k, k] = -1 / pivot
    return -A, log_det


def _wide(factors, sizes):
    """T of several factors as one sparse matrix: each factor's in every level."""
    from scipy import sparse

    parts = [sparse.kron(sparse.eye_array(size // len(T)), T) for T, size in zip(factors, sizes, strict=True)]
    return sparse.csr_array(sparse.block_diag(parts))


def _row_products(Y, E, S) -> np.ndarray:
    """(Y E Y')_gg of each level, (S, S, G), some rows of Y E at a time."""
    G = Y.shape[0] // S
    out = np.empty((S, S, G))
    step = max(1, _TEMPORARY // (S * max(Y.shape[1], 1)))
    for begin in range(0, G, step):
        rows = slice(begin * S, min(begin + step, G) * S)
        some = Y[rows]
        product = some @ E
        for a in range(S):
            for b in range(S):
                out[a, b, begin : begin + step] = np.ravel(some[b::S].multiply(product[a::S]).sum(1))  # may be (n, 1)
    return out


def _inner(E, pattern) -> float:
    """Sum of the products of entries of E and a sparse matrix."""
    from scipy import sparse

    if sparse.issparse(E):
        return float(E.multiply(pattern).sum())
    return float(_sampled_entries(E, pattern).data @ pattern.data)


def _sampled_entries(E, pattern):
    """E, dense, where a sparse matrix has entries."""
    out = pattern.copy()
    rows = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))
    out.data = E[rows, pattern.indices]
    return out
