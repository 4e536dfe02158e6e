"""Sparse products over pairs of levels, natively and in plain JAX, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxglmm.design.groups import round_up
from jaxglmm.design.pairs import find_pairs, level_order, padded
from jaxglmm.ops.pairs import pair_outer, pair_product, row_sums, sampled_product


S, R, LEVELS, OTHERS = 2, 3, 41, 10


@pytest.fixture(params=[pytest.param("native", marks=pytest.mark.native), "plain"], autouse=True)
def kernels(request, monkeypatch):
    monkeypatch.setenv("JAXGLMM_KERNELS", request.param)
    with jax.enable_x64(True):
        yield request.param


@pytest.fixture(scope="module")
def pairs():
    """Level counts that follow a power law; one level of each factor meets none."""
    rng = np.random.default_rng(2)
    draw = lambda levels: np.minimum(rng.zipf(1.4, 400) - 1, levels - 2)
    return find_pairs(draw(LEVELS), LEVELS, draw(OTHERS), OTHERS)


def blocks(pairs, shape=(S, R), seed=0):
    """Values of a matrix, and the matrix (levels, S, others, R)."""
    values = np.random.default_rng(seed).standard_normal((len(pairs), *shape))
    dense = np.zeros((LEVELS, shape[0], OTHERS, shape[1]))
    dense[pairs.first, :, pairs.second, :] = values
    return jnp.asarray(padded(values, len(pairs.index.first), np.nan)), dense


def columns(like, effects, k, seed=1):
    """A block of vectors, padded as the index's levels are."""
    x = np.random.default_rng(seed).standard_normal((like, effects, k))
    return x, jnp.asarray(padded(x, round_up(like)))


@pytest.mark.parametrize("k", [1, 3, 8, 20, 33])
@pytest.mark.parametrize("shape", [(1, 1), (S, R)])
def test_products_are_those_of_the_dense_matrix(pairs, k, shape):
    values, A = blocks(pairs, shape)
    x, px = columns(OTHERS, shape[1], k)
    y, py = columns(LEVELS, shape[0], k)
    forward, back = pair_product(values, pairs.index, px), pair_product(values, pairs.index, py, adjoint=True)
    np.testing.assert_allclose(forward[:LEVELS], np.einsum("gshr,hrk->gsk", A, x), atol=1e-12)
    np.testing.assert_allclose(back[:OTHERS], np.einsum("gshr,gsk->hrk", A, y), atol=1e-12)
    outer = pair_outer(pairs.index, py, px)[: len(pairs)]
    np.testing.assert_allclose(outer, np.einsum("psk,prk->psr", y[pairs.first], x[pairs.second]), atol=1e-12)


def test_derivatives_of_any_order_in_reverse(pairs):
    values, _ = blocks(pairs)
    values = jnp.nan_to_num(values)
    _, px = columns(OTHERS, R, 4)

    def length(values, x):
        y = pair_product(values, pairs.index, x)
        return jnp.sum(pair_product(values, pairs.index, y, adjoint=True) ** 2) / 2

    def dense(values, x):
        A = jnp.zeros((LEVELS, S, OTHERS, R)).at[pairs.first, :, pairs.second, :].set(values[: len(pairs)])
        y = jnp.einsum("gshr,hrk->gsk", A, x[:OTHERS])
        return jnp.sum(jnp.einsum("gshr,gsk->hrk", A, y) ** 2) / 2

    for of in (0, 1):
        found, want = (jax.grad(f, of)(values, px) for f in (length, dense))
        np.testing.assert_allclose(found, want, rtol=1e-10, atol=1e-9)
    along = lambda f: jax.grad(lambda v: jnp.sum(jnp.sin(jax.grad(f, 1)(v, px))))(values)
    np.testing.assert_allclose(along(length), along(dense), rtol=1e-9, atol=1e-8)


def test_a_batch_of_products_is_one_after_the_other(pairs):
    values, _ = blocks(pairs)
    several = jnp.stack([values, 2 * values, -values])
    _, px = columns(OTHERS, R, 5)
    found = jax.vmap(lambda v: pair_product(v, pairs.index, px))(several)
    np.testing.assert_allclose(found, [pair_product(v, pairs.index, px) for v in several], rtol=1e-14)
    both = jax.vmap(lambda v, x: pair_product(v, pairs.index, x, adjoint=True), (0, 0))
    _, py = columns(LEVELS, S, 5)
    ys = jnp.stack([py, py + 1, py * 2])
    want = [pair_product(v, pairs.index, y, adjoint=True) for v, y in zip(several, ys, strict=True)]
    np.testing.assert_allclose(both(several, ys), want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("right", [True, False])
def test_sums_over_rows(right):
    rng = np.random.default_rng(3)
    codes, n = rng.integers(0, 9, 300), 300
    left, other = rng.standard_normal((S, n)), rng.standard_normal((R, n)) if right else np.ones((1, n))
    order = level_order(codes, 11)
    indices = lambda v: jnp.asarray(v, jnp.int32)
    want = np.zeros((11, S, len(other)))
    np.add.at(want, codes, np.moveaxis(left[:, None] * other[None], -1, 0))
    given = jnp.asarray(other) if right else None
    found = row_sums(jnp.asarray(left), given, indices(order.start), indices(order.rows))
    np.testing.assert_allclose(found, want, atol=1e-12)
    sort = order.rows  # rows that are sorted already need no permutation
    found = row_sums(jnp.asarray(left[:, sort]), jnp.asarray(other[:, sort]) if right else None, indices(order.start))
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_entries_of_a_product_with_a_symmetric_matrix(pairs):
    rng = np.random.default_rng(4)
    full = rng.standard_normal((OTHERS, OTHERS))
    full += full.T
    values, E = blocks(pairs, (1, 1))
    want = (E[:, 0, :, 0] @ full)[pairs.first, pairs.second]
    given = np.triu(full) + np.tril(np.full_like(full, np.nan), -1)
    index = pairs.index
    found = sampled_product(jnp.asarray(values)[:, 0, 0], index.start, index.second, jnp.asarray(given))
    np.testing.assert_allclose(found[: len(pairs)], want, atol=1e-12)


def test_the_same_bits_for_any_number_of_threads(kernels, run_python):
    """Levels are cut into chunks by the data alone."""
    if kernels == "plain":
        pytest.skip("of the native kernels")
    code = """
import os, jax, hashlib, numpy as np
from jaxglmm.design.groups import round_up
from jaxglmm.design.pairs import find_pairs
from jaxglmm.ops.pairs import pair_product
rng = np.random.default_rng(0)
pairs = find_pairs(rng.integers(0, 3000, 30000), 3000, rng.integers(0, 700, 30000), 700)
with jax.enable_x64(True):
    values = rng.standard_normal((len(pairs.index.first), 1, 1))
    x = rng.standard_normal((704, 1, 8))
    print(hashlib.sha256(np.asarray(pair_product(values, pairs.index, x)).tobytes()).hexdigest())
"""
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    assert run_python(code) == run_python(one + code)


def test_wrong_indices_are_named(kernels, pairs):
    if kernels == "plain":
        pytest.skip("of the native kernels")
    values, _ = blocks(pairs)
    _, px = columns(OTHERS, R, 2)
    errors = ValueError, jax.errors.JaxRuntimeError
    wrong = pairs.index._replace(second=pairs.index.second.at[3].set(-1))
    with pytest.raises(errors, match="pair_product: an index is not in"):
        pair_product(values, wrong, px).block_until_ready()
    with pytest.raises(errors, match="start must rise"):
        pair_product(values, pairs.index._replace(start=pairs.index.start[::-1]), px).block_until_ready()
    with pytest.raises(errors, match="found x"):
        pair_product(values, pairs.index, px[:, :2]).block_until_ready()
