"""Linear algebra of many tiny matrices at once.

A batch of S x S matrices is stored with the matrix axes first, ``(S, S, ...)``, so that an entry is one long
contiguous vector over the batch. Every routine is a Python loop over S, unrolled when it is traced: what runs
are elementwise operations over the batch, which vectorise on every device, where LAPACK and cuSOLVER would
be called once a matrix. No pivoting, no check: the matrices of a mixed model, I + Lambda' Z'WZ Lambda,
are at least the identity. Plain JAX throughout, hence differentiable to any order, in either mode.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array


def _square(rows: list[list[Array]]) -> Array:
    """The matrix of the given entries; what is missing right of the diagonal is zero."""
    size = len(rows)
    if size == 0:
        raise ValueError("the matrices have no rows; expected the matrix axes to lead, with at least one row")
    zero = jnp.zeros_like(rows[0][0])
    return jnp.stack([jnp.stack([*row, *[zero] * (size - len(row))]) for row in rows])


def cholesky(A: Array) -> Array:
    """Lower Cholesky factor of each matrix.

    Parameters
    ----------
    A : array (S, S, ...)
        Symmetric positive definite matrices; only the lower triangles are read.

    Returns
    -------
    L : array (S, S, ...)
        Lower triangular, L L' = A. NaN where a matrix is not positive definite.
    """
    rows: list[list[Array]] = []
    for i in range(A.shape[0]):
        row: list[Array] = []
        for j in range(i):
            rest = A[i, j] - sum(row[k] * rows[j][k] for k in range(j))
            row.append(rest / rows[j][j])
        row.append(jnp.sqrt(A[i, i] - sum(entry * entry for entry in row)))
        rows.append(row)
    return _square(rows)


def matvec(A: Array, x: Array) -> Array:
    """A x for each matrix and vector: (S, S, ...), (S, ...) -> (S, ...)."""
    return jnp.stack([sum(A[i, j] * x[j] for j in range(x.shape[0])) for i in range(A.shape[0])])


def solve_lower(L: Array, B: Array) -> Array:
    """Solve L x = b.

    Parameters
    ----------
    L : array (S, S, ...)
        Lower triangular.
    B : array (S, ...)
        Right-hand sides. The axes behind the first broadcast against those of L behind its first two: vectors
        are (S, batch), matrices with m columns (S, m, batch).

    Returns
    -------
    x : array (S, ...)
    """
    x: list[Array] = []
    for i in range(L.shape[0]):
        x.append((B[i] - sum(L[i, k] * x[k] for k in range(i))) / L[i, i])
    return jnp.stack(x)


def solve_upper(L: Array, B: Array) -> Array:
    """Solve L' x = b for a lower triangular L; shapes as in :func:`solve_lower`."""
    size = L.shape[0]
    x: dict[int, Array] = {}
    for i in reversed(range(size)):
        x[i] = (B[i] - sum(L[k, i] * x[k] for k in range(i + 1, size))) / L[i, i]
    return jnp.stack([x[i] for i in range(size)])


def cho_solve(L: Array, B: Array) -> Array:
    """Solve L L' x = b; shapes as in :func:`solve_lower`."""
    return solve_upper(L, solve_lower(L, B))


def inverse_lower(L: Array) -> Array:
    """Inverse of each lower triangular matrix, (S, S, ...), again lower triangular."""
    size = L.shape[0]
    rows: list[list[Array]] = []
    for i in range(size):
        pivot = 1 / L[i, i]
        row = [-pivot * sum(L[i, k] * rows[k][j] for k in range(j, i)) for j in range(i)]
        rows.append([*row, pivot])
    return _square(rows)


def log_det(L: Array) -> Array:
    """log det(L L') = 2 sum log L_ii of each lower Cholesky factor, shape (...)."""
    return 2 * jnp.sum(jnp.log(jnp.stack([L[i, i] for i in range(L.shape[0])])), axis=0)


def contract(axes: str, *arrays: Array) -> Array:
    """Sum of products, axes named as in `einsum`, each array's last one the batch's: elementwise over the batch.

    `einsum` itself would make a batch of tiny matrix products of it. An axis that is 1 long in one array is repeated.
    """
    names, out = axes.split("->")
    order = out + "".join(sorted({c for c in names if c.isalpha()} - set(out)))
    product = None
    for name, array in zip(names.split(","), arrays, strict=True):
        present = [c for c in order if c in name]
        v = jnp.transpose(array, [name.index(c) for c in present])
        v = jnp.expand_dims(v, [i for i, c in enumerate(order) if c not in name])
        product = v if product is None else product * v
    return jnp.sum(product, axis=tuple(range(len(out), len(order))))
