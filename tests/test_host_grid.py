"""The GPU's passes, their bodies run on the host block by block and thread by thread, against the CPU's kernels."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.design.design import make_design
from jaxglmm.ops import fused, modes, native
from jaxglmm.optimise.node_ladder import padded_nodes


KERNELS = Path(__file__).resolve().parent.parent / "kernels"
# Those that kernels/tests/host_grid.cc is compiled for, by numbers of effects.
CASES = {"logit": (jg.Binomial(), 1), "gamma": (jg.Gamma(), 1), "negativebinomial": (jg.NegativeBinomial(), 2),
         "probit": (jg.Binomial("probit"), 3)}  # fmt: skip
COUNTS = (1, 1, 2, 3, 3, 5, 7, 16, 32, 33, 70, *[1] * 70)  # more groups of one row than a block has threads

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The library of kernels/tests/host_grid.cc, compiled here."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C++ compiler on Linux")
    out = tmp_path_factory.mktemp("host_grid") / "host_grid.so"
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-DJAXGLMM_TARGET=device",
         "-DJAXGLMM_LANES=1", f"-I{KERNELS}/include", f"-I{KERNELS}/cuda", KERNELS / "tests/host_grid.cc", "-o", out],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(out))


@pytest.fixture
def on_grid(grid, monkeypatch):
    """A function that calls another with the host's grid in the native library's place."""

    def call(kernel, result, *operands, block, family, determinant, second=0):
        shapes = jax.tree.leaves(result)

        def run(*operands):
            given = [np.ascontiguousarray(v) for v in operands]
            out = [np.full(s.shape, np.nan, s.dtype) for s in shapes]
            X, given = (
                (given[0], given[1:]) if kernel == "fused_pass" else (None, [given[1], given[2], given[0], *given[3:]])
            )
            y, weight, offset, z, start, sizes, pieces, psi, points, log_weights, count, *direction = given
            assert len({v.dtype for v in (y, weight, offset, z, psi, points)}) == 1
            at = lambda v: None if v is None else ctypes.c_void_p(v.ctypes.data)
            results = dict.fromkeys(
                ("value", "gradient", "hessian", "modes", "d_eta", "curvature", "pushed", "of_unknowns")
            )
            names = {"fused_pass": ("value", "gradient", "hessian", "modes"), "group_push": ("pushed", "of_unknowns"),
                     "group_modes": ("value", "d_eta", "gradient", "modes", "curvature")}[kernel]  # fmt: skip
            results.update(zip(names, out, strict=True))
            columns = 0 if X is None else X.shape[1]
            numbers = (y.dtype == np.float32, len(y), columns, len(z), points.shape[1], block, family, determinant,
                       second or kernel == "group_push")  # fmt: skip
            grid.host_pass(
                *(ctypes.c_int64(int(n)) if k else int(n) for k, n in enumerate(numbers)),
                *map(at, (X, y, weight, offset, z, start, sizes)), ctypes.c_int64(len(sizes)),
                at(pieces), ctypes.c_int64(len(pieces)), *map(at, (psi, points, log_weights, count)),
                *map(at, direction or (None, None)), *map(at, results.values()),
            )  # fmt: skip
            return tuple(out)

        return jax.pure_callback(run, tuple(shapes), *operands, vmap_method="sequential")

    def within(function, *given, **options):
        with monkeypatch.context() as patch:
            patch.setattr(native, "call", call)
            return jax.tree.map(np.asarray, function(*given, **options))

    return within


def problem(family, effects, dtype=np.float64):
    rng = np.random.default_rng(effects)
    codes = rng.permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))
    n = len(codes)
    X = np.column_stack([np.ones(n), rng.standard_normal((n, 2))])
    y = {"binomial": (rng.random(n) < 0.4) * 1.0, "gamma": rng.gamma(2.0, 1.0, n) + 0.01}.get(
        family.name, rng.poisson(1.5, n) * 1.0
    )
    z = rng.standard_normal((effects, n)) + 0.5
    design, _ = make_design(
        y, X, codes=codes, z=z, weights=rng.integers(0, 3, n) * 1.0, offset=0.2 * rng.standard_normal(n), dtype=dtype
    )
    factor = np.array([[0.7, 0, 0], [-0.4, 0.5, 0], [0.2, 0.3, 0.4]])[:effects, :effects]
    return design, np.asarray([0.2, -0.3, 0.1], dtype), np.asarray(factor, dtype)


def assert_close(found, wanted, tolerance):
    for a, b in zip(found, wanted, strict=True):
        a, b = np.asarray(a, float), np.asarray(b, float)
        assert np.max(np.abs(a - b)) <= tolerance * (1e-6 + np.max(np.abs(b)))


@pytest.mark.parametrize(
    ("nodes", "dtype", "tolerance"), [(1, np.float64, 1e-10), (3, np.float64, 1e-10), (1, np.float32, 3e-6)]
)
@pytest.mark.parametrize("name", CASES)
def test_the_fused_pass(x64, on_grid, name, nodes, dtype, tolerance):
    family, effects = CASES[name]
    design, beta, factor = problem(family, effects, dtype)
    raw = design.terms[0].covariance.raw(factor)
    psi = jnp.asarray(np.concatenate([beta, raw, [0.3]]), dtype)
    rule = jax.tree.map(
        lambda v: jnp.asarray(v, dtype if np.asarray(v).dtype.kind == "f" else None), padded_nodes(nodes, effects)
    )
    given = (family, design, rule, psi, jnp.zeros_like(design.terms[0].z))
    options = {"second": False, "determinant": False} if dtype == np.float32 else {}
    assert_close(on_grid(fused.fused_pass, *given, **options), fused.fused_pass(*given, **options), tolerance)


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_an_eta_that_is_given(x64, on_grid, name, nodes):
    family, effects = CASES[name]
    design, beta, factor = problem(family, effects)
    rule, term, rng = padded_nodes(nodes, effects), design.terms[0], np.random.default_rng(1)
    eta = jnp.asarray(design.X @ beta)
    given = (family, nodes**effects, True, eta, jnp.asarray(factor), jnp.asarray(0.3), design.y, design.weights, term.z,
             term.index, rule)  # fmt: skip
    assert_close(on_grid(modes.group_modes, *given), modes.group_modes(*given), 1e-10)
    along = (
        jnp.asarray(rng.standard_normal(eta.shape)),
        jnp.asarray(np.tril(rng.standard_normal(factor.shape))),
        jnp.asarray(0.4),
    )
    assert_close(on_grid(modes.group_push, *given, *along), modes.group_push(*given, *along), 1e-10)


def test_sizes_that_do_not_fit_and_counts_that_are_none_give_nan(x64, on_grid, monkeypatch):
    family, effects = CASES["negativebinomial"]
    design, beta, factor = problem(family, effects)
    psi = jnp.asarray(np.concatenate([beta, design.terms[0].covariance.raw(factor), [0.3]]))
    given = (padded_nodes(1, effects), psi, jnp.zeros_like(design.terms[0].z))
    half = type(design)(
        design.y + 0.5, design.X, design.offset, design.weights, design.terms, design.index, design.constant
    )
    assert np.isnan(on_grid(fused.fused_pass, family, half, *given)[0])
    storage = fused.storage(design.index)
    for bad in (0, 7, -1):
        monkeypatch.setattr(fused, "storage", lambda _, bad=bad: (storage[0].at[0].set(bad), storage[1]))
        assert np.isnan(on_grid(fused.fused_pass, family, design, *given)[0])
    unsorted = np.resize(np.array([5, -3, 5, 2**30]), len(storage[1])).astype(np.int32)
    monkeypatch.setattr(fused, "storage", lambda _: (storage[0], unsorted))
    assert np.isfinite(on_grid(fused.fused_pass, family, design, *given)[0])  # other groups than meant, and no crash


def test_group_totals(grid):
    sizes = np.array([1, 3, 32, 24, 7], np.int32)
    v, out = np.random.default_rng(0).standard_normal((5, 480)), np.empty((5, 480))
    at = lambda v: ctypes.c_void_p(v.ctypes.data)
    grid.host_group_total(ctypes.c_int64(5), ctypes.c_int64(480), at(v), at(sizes), at(out))
    for block, size in enumerate(sizes[:4]):
        tile = v[block].reshape(size, -1)
        np.testing.assert_allclose(out[block].reshape(tile.shape), np.broadcast_to(tile.sum(0), tile.shape), atol=1e-13)
    assert np.isnan(out[4]).all()  # 7 does not divide 480
