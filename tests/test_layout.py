"""Rows on their way into tile storage: columns that lie anywhere, their moments, native copying against NumPy's."""

import numpy as np
import pytest

from jaxglmm.design.design import make_design
from jaxglmm.design.groups import build_index
from jaxglmm.ops import layout, memory
from jaxglmm.ops.codes import whole_codes
from jaxglmm.ops.columns import PIECE, Columns
from jaxglmm.ops.measure import moments


RNG = np.random.default_rng(3)
N = 2 * PIECE + 77
TABLE = [
    np.broadcast_to(2.5, N),  # stored once
    RNG.standard_normal(N) + 1e6,
    np.ascontiguousarray(RNG.standard_normal((N, 2)).astype(np.float32))[:, 1],  # not contiguous
    RNG.integers(-5, 9, N),
    RNG.random(N) < 0.3,
    RNG.integers(0, 200, N).astype(np.int16),
    RNG.integers(-100, 100, N).astype(np.int8),
    RNG.integers(0, 1 << 31, N).astype(np.uint32),
    (RNG.random(N) < 0.5).astype(np.float16),  # of a type that native code does not read
]
P = len(TABLE)
MATRIX = np.column_stack([column.astype(float) for column in TABLE])


def test_columns_are_a_matrix_by_another_name():
    table = Columns(TABLE, N)
    assert table.shape == MATRIX.shape and len(table) == N
    np.testing.assert_array_equal(table.matrix(), MATRIX)
    np.testing.assert_allclose(table @ np.arange(P), MATRIX @ np.arange(P), rtol=1e-14)
    found = np.full_like(MATRIX, np.nan)
    for rows, values in table.pieces():
        found[rows] = values
    np.testing.assert_array_equal(found, MATRIX)
    for rows, values in table.places(5, 100):
        np.testing.assert_array_equal(values, MATRIX[rows])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kernels", ["", "plain"])
def test_moments_are_those_of_the_rows_that_count(monkeypatch, weighted, kernels):
    monkeypatch.setenv("JAXGLMM_KERNELS", kernels)
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
    assert found.constant.tolist() == [True] + [False] * (P - 1)


@pytest.mark.parametrize("kernels", ["", "plain"])
def test_moments_tell_what_is_not_finite(monkeypatch, kernels):
    monkeypatch.setenv("JAXGLMM_KERNELS", kernels)
    table = np.ones((4, N))
    table[1:, 0] = 0.0
    table[1, 5], table[2, N - 1], table[3, 7] = np.nan, np.inf, 1e300
    found = moments(table.T)
    assert np.isfinite(found.mean).tolist() == [True, False, False, True]
    assert found.constant.tolist() == [True, False, False, False]


@pytest.mark.parametrize("kernels", ["", "plain"])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8])
def test_whole_numbers_get_codes_in_their_order(monkeypatch, kernels, dtype):
    monkeypatch.setenv("JAXGLMM_KERNELS", kernels)
    values = (RNG.integers(-60, 60, 70_000) if dtype == np.int8 else 10**6 + RNG.zipf(1.5, 70_000) % 300_000).astype(
        dtype
    )
    missing = RNG.random(len(values)) < 0.01
    for used, mask in ((~missing, missing), (np.full(len(values), True), None)):
        codes, labels = whole_codes(values, int(values.min()), int(values.max()), mask)
        expected, inverse = np.unique(values[used], return_inverse=True)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(codes[used], inverse)
        assert codes.dtype == np.int32 and (codes[~used] == -1).all()


@pytest.mark.parametrize("kernels", ["", "plain"])
@pytest.mark.parametrize("high", [4, 70])
def test_a_whole_number_beyond_the_range_is_refused(monkeypatch, kernels, high):
    """Where it is missing it does not matter."""
    monkeypatch.setenv("JAXGLMM_KERNELS", kernels)
    for beyond in (high + 1, high + 200, 2):
        values = np.array([3, beyond, high])
        with pytest.raises(ValueError, match=rf"outside 3\.\.{high}"):
            whole_codes(values, 3, high)
        assert whole_codes(values, 3, high, np.arange(3) == 1)[0].tolist() == [0, -1, 1]


@pytest.mark.native
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_native_copying_is_that_of_numpy_to_the_last_bit(monkeypatch, dtype):
    slot, found = RNG.permutation(N + 500)[:N], []
    for kernels in ("native", "plain"):
        monkeypatch.setenv("JAXGLMM_KERNELS", kernels)
        out = memory.aligned_zeros((N + 500, P), dtype)
        layout.scatter_rows(TABLE, slot, out, center=np.arange(float(P)), scale=np.linspace(0.5, 3, P))
        found.append(out)
    assert found[0].ctypes.data % 64 == 0
    np.testing.assert_array_equal(*found)
    expected = (MATRIX - np.arange(float(P))) / np.linspace(0.5, 3, P)
    np.testing.assert_array_equal(found[0][slot], expected.astype(dtype))
    assert not found[0][np.setdiff1d(np.arange(N + 500), slot)].any()


@pytest.mark.parametrize("kernels", ["", "plain"])
def test_no_columns_are_nothing_to_copy(monkeypatch, kernels):
    monkeypatch.setenv("JAXGLMM_KERNELS", kernels)
    layout.scatter_rows([], np.arange(5), memory.aligned_zeros((5, 0), float))


@pytest.mark.native
def test_native_slots_are_those_of_sorting(monkeypatch):
    """Groups of one row to thousands, in random order."""
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


@pytest.mark.native
def test_texts_get_codes_by_their_bytes():
    """Of all lengths, some missing, in several chunks and from the middle of an array; enough for several parts."""
    pa = pytest.importorskip("pyarrow")
    from jaxglmm.formula.columns import read_column

    words = np.array(["é" * (k % 5) + "member-"[: k % 8] + str(k // 7) for k in range(9000)], object)
    drawn = words[RNG.integers(0, len(words), 40_000)]
    drawn[RNG.random(len(drawn)) < 0.05] = None
    kinds = [pa.string(), pa.large_string()]
    few = [[["b", None, "a", "b", "", None]], [["x"], [None], []], [[None, None]], [[]], []]
    for kind in kinds:
        whole = [pa.chunked_array(parts, type=kind) for parts in few]
        many = pa.chunked_array([pa.array(drawn[:15_000], kind), pa.array(drawn[15_000:], kind).slice(3, 20_000)])
        for array in (*whole, many, many.slice(7, 100), many.slice(0, 0)):
            column = read_column("g", array)
            truth = array.to_pylist()
            assert column.labels is not None
            assert [None if code < 0 else column.labels[code] for code in column.values] == truth
            assert len(set(column.labels.tolist())) == len(column.labels)
            assert (column.missing is not None) == (None in truth)


def test_memory_is_used_again_and_never_twice():
    shape = (300, 1000)
    one = memory.aligned_empty(shape, float)
    one[:] = np.nan
    part, place = one[10:20, ::2].T, one.ctypes.data  # a view keeps all of it
    assert place % 64 == 0
    del one
    other = memory.aligned_zeros(shape, float)
    assert other.ctypes.data != place and not other.any() and np.isnan(part).all()
    del part
    third = memory.aligned_zeros(shape, float)
    assert third.ctypes.data == place and not third.any()
    # Much less than was kept, and more, are other memory.
    assert memory.aligned_empty((150, 1000), float).ctypes.data != place
    assert memory.aligned_empty((301, 1000), float).shape == (301, 1000)


def test_no_more_memory_is_kept_than_said(monkeypatch):
    monkeypatch.setattr(memory, "_MOST_KEPT", 5 << 20)
    monkeypatch.setattr(memory, "_kept", {})
    arrays = [memory.aligned_empty((1 << 21,), np.uint8) for _ in range(4)]
    del arrays
    assert 0 < sum(map(len, memory._kept.values())) <= 5 << 20


def test_slots_without_a_row_hold_nothing_of_an_earlier_design():
    codes = np.repeat(np.arange(40_000), 7)
    X = np.column_stack([np.ones(len(codes)), RNG.standard_normal(len(codes))])
    for dtype in (np.float64, np.float32):
        design, rows = make_design(codes % 2, X, codes=codes, weights=1.0 + codes % 3, offset=X[:, 1], dtype=dtype)
        empty = np.ones(rows.n_slots, bool)
        empty[rows.slot] = False
        assert empty.sum() > 1000
        for values in (design.X, design.offset, design.weights, design.terms[0].z[0]):
            assert not values[empty].any()
            values[...] = np.nan


TARGETS = """
import numpy as np
from jaxglmm.ops.layout import scatter_rows
from jaxglmm.ops.measure import moments
rng = np.random.default_rng(0)
for n in (1, 63, 64, 3001):
    columns = [rng.standard_normal(n), rng.integers(-9, 9, n), np.broadcast_to(3.0, n)]
    columns.append(rng.standard_normal((n, 2))[:, 1])
    X = np.column_stack(columns * 9)
    out = np.full((n, 36), np.nan)
    scatter_rows(columns * 9, rng.permutation(n), out, np.arange(36.0), np.arange(1.0, 37))
    found = moments(X)
    print(*out.sum(0), *found.low, *found.high, *found.mean, *found.variance)
"""


@pytest.mark.native
def test_every_target_reads_the_same(run_python):
    numbers = [np.array(run_python(TARGETS, JAXGLMM_SIMD=simd).split(), float) for simd in ("", "avx2", "baseline")]
    for other in numbers[1:]:
        np.testing.assert_allclose(other, numbers[0], rtol=1e-12, atol=1e-12)
