"""The block storage of groups: totals against numpy, in both forms, for any sizes of groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxglmm.design.groups import SIZES, build_index, round_up
from jaxglmm.ops.group import map_groups


def group_sizes(kind, rng):
    if kind == "ones":
        return np.ones(700, int)
    if kind == "small":
        return 1 + rng.negative_binomial(2, 0.5, size=300)
    if kind == "every size":
        return np.repeat(np.arange(1, 41), 3)
    if kind == "one large":
        return np.array([5000])
    if kind == "empty groups":
        return np.array([0, 3, 0, 40, 1, 0])
    return np.minimum(rng.zipf(1.4, size=200), 20_000)  # power law


@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("kind", ["ones", "small", "every size", "one large", "empty groups", "power law"])
def test_totals_match_bincount(kind, blocked):
    rng = np.random.default_rng(3)
    counts = group_sizes(kind, rng)
    codes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    values = rng.standard_normal((2, len(codes)))
    index, layout = build_index(codes, len(counts), blocked=blocked)
    with jax.enable_x64(True):
        body = lambda total, head, rows, _: (jnp.sum(head * total(rows)[0]), total(rows))
        sums, out = jax.jit(lambda v: map_groups(body, index, v))(jnp.asarray(layout.scatter(values)))
    expected = np.stack([np.bincount(codes, v, len(counts)) for v in values])
    np.testing.assert_allclose(np.asarray(out)[:, layout.slot], expected[:, codes], rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.asarray(out)[:, layout.first], expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(sums, values[0].sum(), atol=1e-9)
    np.testing.assert_array_equal(layout.counts, counts)
    # Slots of a group hold the same bits: decisions taken slot by slot agree within a group.
    for v in np.asarray(out):
        low, high = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
        np.minimum.at(low, codes, v[layout.slot])
        np.maximum.at(high, codes, v[layout.slot])
        assert (low[counts > 0] == high[counts > 0]).all()


@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("kind", ["ones", "small", "every size", "one large", "empty groups"])
def test_products_with_columns_match_dense_ones(x64, kind, blocked):
    rng = np.random.default_rng(4)
    counts = group_sizes(kind, rng)
    codes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    X = rng.standard_normal((len(codes), 3))
    diagonal, *rows = rng.standard_normal((6, len(codes)))
    index, layout = build_index(codes, len(counts), blocked=blocked)
    in_slots = jnp.asarray(layout.scatter(np.stack([diagonal, *rows])))

    def body(total, head, v, _):
        pairs = total.add_pairs(total.add_pairs(total.no_pairs(v.dtype), v[1], v[1]), 2.0 * v[2], v[2])
        return (total.outer(v[0], v[1:3], v[3:5]), total.outer_pairs(pairs), total.columns(v)), ()

    matrix = jnp.asarray(layout.scatter(np.ascontiguousarray(X.T)).T)
    outer, squares, columns = jax.jit(lambda v, X: map_groups(body, index, v, X)[0])(in_slots, matrix)
    same = lambda a, b: (codes[:, None] == codes) * np.outer(a, b)
    a, b, c, d, _ = rows
    np.testing.assert_allclose(columns, np.stack([diagonal, *rows]) @ X, rtol=1e-11, atol=1e-11)
    V = np.diag(diagonal) + sum(same(left, right) + same(right, left) for left, right in ((a, c), (b, d)))
    np.testing.assert_allclose(outer, X.T @ V @ X, rtol=1e-11, atol=1e-10)
    np.testing.assert_allclose(squares, X.T @ (same(a, a) + 2 * same(b, b)) @ X, rtol=1e-11, atol=1e-10)


def test_every_row_has_a_slot_of_its_own():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 400, 5000)
    index, layout = build_index(codes)
    assert len(np.unique(layout.slot)) == len(codes)
    assert layout.slot.max() < layout.n_slots == index.n_slots


def test_storage_is_linear_and_shapes_are_few():
    rng = np.random.default_rng(1)
    shapes, waste = set(), []
    for _ in range(20):
        n = rng.integers(9000, 9900)
        counts = 1 + rng.negative_binomial(2, 0.5, size=n // 3)
        index, layout = build_index(np.repeat(np.arange(len(counts)), counts))
        shapes.add((index.block, index.n_short, index.n_long))
        waste.append(layout.n_slots / counts.sum())
    assert len(shapes) <= 3
    counts = 1 + rng.negative_binomial(2, 0.5, size=200_000)
    _, layout = build_index(np.repeat(np.arange(len(counts)), counts))
    assert layout.n_slots < 1.2 * counts.sum()
    assert len(SIZES) <= 12


def test_round_up_is_monotone_and_close():
    previous = 0
    for count in range(1, 5000):
        rounded = round_up(count)
        assert count <= rounded <= max(1.5 * count, count + 1) and rounded >= previous
        assert round_up(rounded) == rounded
        previous = rounded


def test_codes_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"0\.\.2; found -1\.\.2"):
        build_index(np.array([0, -1, 2]), 3)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("blocked", [True, False])
def test_lowers_for_accelerators(platform, blocked):
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(60), rng.integers(1, 50, 60))
    index, layout = build_index(codes, blocked=blocked)
    body = lambda total, head, rows, _: (jnp.sum(total(rows)), total(rows))
    exported = jax.export.export(jax.jit(lambda v: map_groups(body, index, v)), platforms=[platform])(
        jax.ShapeDtypeStruct((layout.n_slots,), jnp.float32)
    )
    assert exported.platforms == (platform,)
    if not blocked:
        # Dense reductions: a scatter only where the pieces of long groups are joined, once for each total.
        assert exported.mlir_module().count('"stablehlo.scatter"(') == 2
