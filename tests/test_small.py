"""The unrolled small-matrix algebra against numpy, one matrix at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxglmm.ops import small


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def positive_definite(size: int, batch: tuple[int, ...], seed: int = 0) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(*batch, size, size))
    matrices = root @ np.swapaxes(root, -1, -2) + 0.5 * np.eye(size)
    return np.moveaxis(matrices, (-2, -1), (0, 1)).copy()


def matrix_last(A) -> np.ndarray:
    return np.moveaxis(np.asarray(A), (0, 1), (-2, -1))


@pytest.mark.parametrize("batch", [(), (7,), (3, 5)])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_factor_solve_and_inverse(size, batch):
    A = positive_definite(size, batch, seed=size)
    dense = matrix_last(A)
    b = np.random.default_rng(1).normal(size=(size, *batch))

    @jax.jit
    def everything(A, b):
        L = small.cholesky(A)
        solutions = [solve(L, b) for solve in (small.solve_lower, small.solve_upper, small.cho_solve)]
        return L, small.inverse_lower(L), small.log_det(L), solutions

    L, inverse, log_det, solutions = everything(A, b)
    np.testing.assert_allclose(matrix_last(L), np.linalg.cholesky(dense), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(matrix_last(inverse), np.linalg.inv(matrix_last(L)), atol=1e-11)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(dense)[1], atol=1e-12)
    vectors = np.moveaxis(b, 0, -1)[..., None]
    lower = matrix_last(L)
    for solution, matrix in zip(solutions, (lower, np.swapaxes(lower, -1, -2), dense), strict=True):
        expected = np.moveaxis(np.linalg.solve(matrix, vectors)[..., 0], -1, 0)
        np.testing.assert_allclose(solution, expected, rtol=1e-9, atol=1e-11)


def test_matrix_right_hand_sides_broadcast():
    A = positive_definite(3, (4,))
    L = jax.jit(small.cholesky)(A)
    B = np.random.default_rng(2).normal(size=(3, 5, 4))
    expected = np.stack([np.linalg.solve(A[:, :, g], B[:, :, g]) for g in range(4)], axis=-1)
    np.testing.assert_allclose(jax.jit(small.cho_solve)(L, B), expected, atol=1e-11)


def test_only_the_lower_triangle_is_read():
    A = positive_definite(3, (4,))
    broken = A.copy()
    broken[0, 1] = broken[0, 2] = broken[1, 2] = np.nan
    factor = jax.jit(small.cholesky)
    np.testing.assert_array_equal(factor(broken), factor(A))


def test_derivatives_of_log_det_both_modes_and_second_order():
    A, direction = positive_definite(3, ()), positive_definite(3, (), seed=9)

    def f(t):
        return small.log_det(small.cholesky(A + t * direction))

    inverse = np.linalg.inv(A)
    first = np.trace(inverse @ direction)
    second = -np.trace(inverse @ direction @ inverse @ direction)
    forward, reverse, twice = jax.jit(lambda t: (jax.jacfwd(f)(t), jax.grad(f)(t), jax.hessian(f)(t)))(0.0)
    np.testing.assert_allclose(forward, first, rtol=1e-11)
    np.testing.assert_allclose(reverse, first, rtol=1e-11)
    np.testing.assert_allclose(twice, second, rtol=1e-10)


def test_vmap_and_single_precision():
    A = positive_definite(2, (6,))
    with jax.enable_x64(False):
        L = jax.jit(small.cholesky)(jnp.asarray(A, jnp.float32))
        assert L.dtype == jnp.float32
    each = jax.jit(jax.vmap(small.cholesky, in_axes=2, out_axes=2))(A)
    np.testing.assert_allclose(each, jax.jit(small.cholesky)(A), rtol=1e-14)


def test_no_rows_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        small.cholesky(np.zeros((0, 0, 5)))


def test_contract_is_einsum(x64):
    rng = np.random.default_rng(0)
    A, B, x = rng.standard_normal((2, 3, 7)), rng.standard_normal((3, 2, 2, 7)), rng.standard_normal((2, 7))
    np.testing.assert_allclose(
        small.contract("abr,bcdr,ar->dcr", A, B, x), np.einsum("abr,bcdr,ar->dcr", A, B, x), rtol=1e-14
    )
    np.testing.assert_allclose(small.contract("ar,br->r", x, x), (x.sum(0)) ** 2, rtol=1e-13)
    np.testing.assert_allclose(small.contract("ar,ar->ar", x, x[:, :1]), x * x[:, :1], rtol=1e-15)
