"""Rows on their way into tile storage: columns that lie anywhere, their moments, native copying against NumPy's."""

import numpy as np
import pytest

from jaxglmm.design.columns import PIECE, Columns, moments
from jaxglmm.design.design import make_design
from jaxglmm.design.groups import build_index
from jaxglmm.ops import layout, native


RNG = np.random.default_rng(3)
N = 2 * PIECE + 77
TABLE = [
    np.broadcast_to(2.5, N),  # stored once
    RNG.standard_normal(N) + 1e6,
    np.ascontiguousarray(RNG.standard_normal((N, 2)).astype(np.float32))[:, 1],  # not contiguous
    RNG.integers(-5, 9, N),
    RNG.random(N) < 0.3,
    RNG.integers(0, 200, N).astype(np.int16),
]
MATRIX = np.column_stack([column.astype(float) for column in TABLE])


def test_columns_are_a_matrix_by_another_name():
    columns = Columns(TABLE, N)
    assert columns.shape == MATRIX.shape and len(columns) == N
    np.testing.assert_array_equal(columns[7 : PIECE + 9], MATRIX[7 : PIECE + 9])
    np.testing.assert_array_equal(np.concatenate(list(columns.pieces())), MATRIX)
    used = RNG.random(N) < 0.5
    np.testing.assert_array_equal(np.concatenate(list(columns.pieces(used))), MATRIX[used])


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_those_of_the_rows_that_count(weighted):
    weights = np.where(RNG.random(N) < 0.2, 0.0, RNG.random(N)) if weighted else None
    if weights is not None:
        weights[:PIECE] = 0.0  # a whole piece does not count
    used = np.full(N, True) if weights is None else weights > 0
    found = moments(Columns(TABLE, N), weights)
    np.testing.assert_array_equal(found.low, MATRIX[used].min(0))
    np.testing.assert_array_equal(found.high, MATRIX[used].max(0))
    mean = np.average(MATRIX, axis=0, weights=weights)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-13)
    variance = np.average(np.square(MATRIX - mean), axis=0, weights=weights)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-9, atol=1e-20)
    assert found.constant.tolist() == [True] + [False] * 5


@pytest.mark.native
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_native_copying_is_that_of_numpy_to_the_last_bit(monkeypatch, dtype):
    if not native.use_native():
        pytest.skip(f"native library: {native.native_status()}")
    slot, found = RNG.permutation(N + 500)[:N], []
    for kernels in ("native", "plain"):
        monkeypatch.setenv("JAXGLMM_KERNELS", kernels)
        out = layout.aligned_zeros((N + 500, 6), dtype)
        layout.scatter_rows(TABLE, slot, out, center=np.arange(6.0), scale=np.linspace(0.5, 3, 6))
        found.append(out)
    assert found[0].ctypes.data % 64 == 0
    np.testing.assert_array_equal(*found)
    expected = (MATRIX - np.arange(6.0)) / np.linspace(0.5, 3, 6)
    np.testing.assert_array_equal(found[0][slot], expected.astype(dtype))
    assert not found[0][np.setdiff1d(np.arange(N + 500), slot)].any()


@pytest.mark.parametrize("kernels", ["", "plain"])
def test_no_columns_are_nothing_to_copy(monkeypatch, kernels):
    monkeypatch.setenv("JAXGLMM_KERNELS", kernels)
    layout.scatter_rows([], np.arange(5), layout.aligned_zeros((5, 0), float))


@pytest.mark.native
def test_native_slots_are_those_of_sorting(monkeypatch):
    """Groups of one row to thousands, in random order."""
    if not native.use_native():
        pytest.skip(f"native library: {native.native_status()}")
    codes, found = RNG.permutation(np.repeat(np.arange(400), RNG.zipf(1.6, 400).clip(max=3000))).astype(np.int32), []
    for kernels in ("native", "plain"):
        monkeypatch.setenv("JAXGLMM_KERNELS", kernels)
        found.append(build_index(codes, 400)[1])
    np.testing.assert_array_equal(found[0].slot, found[1].slot)
    np.testing.assert_array_equal(found[0].first, found[1].first)
    assert len(np.unique(found[0].slot)) == len(codes)


def test_jax_takes_the_design_over_without_a_copy():
    import jax

    codes = RNG.integers(0, 3000, N)
    with jax.enable_x64(True):
        design, _ = make_design(MATRIX[:, 4], Columns(TABLE, N), codes=codes)
        placed = jax.device_put(design, may_alias=True)
        for name in ("X", "y", "weights", "offset"):
            assert getattr(placed, name).unsafe_buffer_pointer() == getattr(design, name).ctypes.data, name
