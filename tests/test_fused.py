"""The native fused pass against the plain pass, finite differences and itself; its refusals; its exp and log."""

import ctypes
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.design.design import make_design
from jaxglmm.objectives.evaluate import evaluate
from jaxglmm.ops import fused, native
from jaxglmm.optimise.node_ladder import padded_nodes


FAMILIES = {
    "gaussian": jg.Gaussian(),
    "logit": jg.Binomial(),
    "probit": jg.Binomial("probit"),
    "cloglog": jg.Binomial("cloglog"),
    "poisson": jg.Poisson(),
    "negativebinomial": jg.NegativeBinomial(),
    "gamma": jg.Gamma(),
}
MIXED = (1, 1, 2, 3, 3, 5, 7, 8, 11, 16, 24, 32, 33, 40, 70)

pytestmark = pytest.mark.native


def problem(family, counts, columns=4, seed=0, effects=1, **storage):
    """A design with weights of 0 to 3, effects' columns that are not constant, and fixed effects near its own."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(counts)), counts)
    n = len(codes)
    X = rng.standard_normal((n, columns))
    X[:, :1] = 1.0
    beta = 0.3 * rng.standard_normal(columns)
    eta = X @ beta + 0.7 * rng.standard_normal(len(counts))[codes]
    mean = np.exp(eta)
    y = {
        "gaussian": lambda: eta + rng.standard_normal(n),
        "binomial": lambda: (rng.random(n) < 1 / (1 + 1 / mean)) * 1.0,
        "poisson": lambda: rng.poisson(mean) * 1.0,
        "negativebinomial": lambda: rng.poisson(mean * rng.gamma(2.0, 0.5, n)) * 1.0,
        "gamma": lambda: mean * rng.gamma(3.0, 1 / 3, n) + 1e-3,
    }[family.name]()
    order = rng.permutation(n)
    design, _ = make_design(
        y[order], X[order], codes=codes[order], n_groups=len(counts), weights=rng.integers(0, 4, n) * 1.0,
        offset=0.3 * rng.standard_normal(n), z=0.5 - 1.5 * np.arange(effects)[:, None] + rng.random((effects, n)),
        **storage,
    )  # fmt: skip
    return design, beta


def native_and_plain(monkeypatch, family, design, psi, n_agq=1, **options):
    start = jnp.zeros_like(design.terms[0].z)
    rule, found = padded_nodes(n_agq, len(start)), []
    for kernels in ("native", "plain"):
        monkeypatch.setenv("JAXGLMM_KERNELS", kernels)
        found.append(jax.tree.map(np.asarray, evaluate(family, design, rule, jnp.asarray(psi), start, **options)))
    return found


def assert_close(found, wanted, tolerance=1e-10):
    for name, a, b in zip(wanted._fields, found, wanted, strict=True):
        assert np.max(np.abs(a - b)) <= tolerance * (1e-6 + np.max(np.abs(b))), name


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_what_the_plain_pass_gives(x64, monkeypatch, name):
    family = FAMILIES[name]
    design, beta = problem(family, MIXED)
    far = 6.0 if name in ("probit", "cloglog") else 25.0
    for intercept, tau, log_phi, n_agq in [
        (0.0, 0.6, 0.3, 1), (0.0, 0.0, -1.0, 1), (0.2, -1.4, 2.0, 1), (-far, 0.6, 0.3, 1), (far, 0.6, 0.3, 1),
        (0.0, 0.6, 0.3, 9), (0.0, 0.0, 0.3, 9), (-far, 2.5, 1.0, 5),
    ]:  # fmt: skip
        psi = np.array([*beta, tau, log_phi])
        psi[0] += intercept
        assert_close(*native_and_plain(monkeypatch, family, design, psi, n_agq))


LAMBDA = np.array([[0.7, 0.0, 0.0], [-0.4, 0.5, 0.0], [0.2, 0.3, 0.4]])


@pytest.mark.parametrize(
    ("name", "effects", "longest", "second"),
    [
        ("logit", 2, 11, True),
        ("negativebinomial", 2, 70, False),
        ("gamma", 2, 11, False),
        ("logit", 3, 70, False),
        ("poisson", 3, 11, False),
    ],
)
def test_several_effects_give_what_the_plain_pass_gives(x64, monkeypatch, name, effects, longest, second):
    family = FAMILIES[name]
    design, beta = problem(family, (1, 2, 3, 5, 11, longest), effects=effects)
    covariance = design.terms[0].covariance
    for factor, log_phi, n_agq in [
        (LAMBDA, 0.3, 1), (LAMBDA, 0.3, 3), (4 * LAMBDA, 1.0, 3), (0 * LAMBDA, 0.3, 3), (LAMBDA * [1, 0, 0], -0.5, 1),
    ]:  # fmt: skip
        psi = np.array([*beta, *covariance.raw(factor[:effects, :effects]), log_phi])
        assert_close(*native_and_plain(monkeypatch, family, design, psi, n_agq, second=second))


def test_effects_that_do_not_covary(x64):
    """They are a factor with zeros, of which no derivative is wanted."""
    family = FAMILIES["poisson"]
    apart, beta = problem(family, MIXED, effects=3, blocks=((0, 2), (1,)))
    together, _ = problem(family, MIXED, effects=3)
    at_row, at_column = apart.terms[0].covariance.entries
    factor = np.zeros((3, 3))
    factor[at_row, at_column] = raw = np.array([0.6, -0.2, 0.3, 0.5])
    rule, start, found = padded_nodes(2, 3), jnp.zeros_like(apart.terms[0].z), []
    for design, entries in ((apart, raw), (together, together.terms[0].covariance.raw(factor))):
        found.append(fused.fused_pass(family, design, rule, jnp.asarray([*beta, *entries, 0.0]), start))
    kept = np.r_[:4, 4, 6, 9, 7, 10]
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1][kept])
    np.testing.assert_array_equal(found[0][2], found[1][2][np.ix_(kept, kept)])


def test_long_groups_and_the_other_forms_of_the_pass(x64, monkeypatch):
    family = FAMILIES["logit"]
    design, beta = problem(family, (5000, 3, 1), columns=3)
    psi = [*beta, 0.8, 0.0]
    assert_close(*native_and_plain(monkeypatch, family, design, psi))
    for options in ({"determinant": False}, {"second": False}):
        assert_close(*native_and_plain(monkeypatch, family, design, psi, **options))


@pytest.mark.parametrize(
    ("counts", "storages"),
    [
        (MIXED, ({"blocked": True}, {"blocked": False})),
        ((1, 2, 3, 4, 4), ({"block": 480}, {})),
        ((9, 10), ({"block": 480}, {})),
    ],
)
def test_every_storage_is_read(x64, monkeypatch, counts, storages):
    family = FAMILIES["poisson"]
    psi, found = [0.1, -0.2, 0.5, 0.0], []
    monkeypatch.setenv("JAXGLMM_KERNELS", "native")
    for storage in storages:
        design, _ = problem(family, counts, columns=2, **storage)
        rule = padded_nodes(5, 1)
        found.append(evaluate(family, design, rule, jnp.asarray(psi), jnp.zeros_like(design.terms[0].z)))
    for a, b in zip(found[0][:3], found[1][:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "n_agq", "effects"),
    [*((n, k, 1) for n in ("logit", "negativebinomial") for k in (1, 7)), *((n, 3, 2) for n in FAMILIES),
     ("gamma", 1, 2), ("probit", 2, 3), ("negativebinomial", 2, 3)],
)  # fmt: skip
def test_derivatives_against_finite_differences(x64, name, n_agq, effects):
    family = FAMILIES[name]
    design, beta = problem(family, MIXED, columns=3, seed=2, effects=effects)
    rule, start = padded_nodes(n_agq, effects), jnp.zeros_like(design.terms[0].z)
    psi = np.array([*beta, *design.terms[0].covariance.raw(LAMBDA[:effects, :effects]), 0.4])
    at = lambda x: fused.fused_pass(family, design, rule, jnp.asarray(x), start)
    _, gradient, hessian, _ = at(psi)
    for k in range(len(psi) - (family.dispersion_name is None)):
        step = 1e-4 * np.eye(len(psi))[k]
        (v1, g1, *_), (v2, g2, *_) = at(psi + step), at(psi - step)
        assert float(gradient[k]) == pytest.approx(float(v1 - v2) / 2e-4, rel=1e-6, abs=1e-5)
        np.testing.assert_allclose(hessian[k], (g1 - g2) / 2e-4, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("columns", [0, 1, 2, 4, 7, 8, 9, 12, 16, 17, 20, 23])
def test_any_number_of_columns(x64, columns):
    """A model with more columns, whose coefficients are zero, has the same derivatives in the first ones."""
    family = FAMILIES["logit"]
    whole, beta = problem(family, MIXED, columns=24)
    part = type(whole)(
        whole.y, whole.X[:, :columns], whole.offset, whole.weights, whole.terms, whole.index, whole.constant
    )
    rule, start = padded_nodes(3, 1), jnp.zeros_like(whole.terms[0].z)
    beta[columns:] = 0.0
    wanted = fused.fused_pass(family, whole, rule, jnp.asarray([*beta, 0.8, 0.0]), start)
    found = fused.fused_pass(family, part, rule, jnp.asarray([*beta[:columns], 0.8, 0.0]), start)
    kept = np.r_[:columns, 24, 25]
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-13)
    np.testing.assert_allclose(found[1], wanted[1][kept], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(found[2], wanted[2][np.ix_(kept, kept)], rtol=1e-11, atol=1e-11)


def test_modes_are_found_from_anywhere(x64):
    family = FAMILIES["poisson"]
    design, _ = problem(family, (3, 8, 40), columns=1)
    rule, psi = padded_nodes(1, 1), jnp.asarray([0.5, 3.0, 0.0])
    modes = [fused.fused_pass(family, design, rule, psi, jnp.full_like(design.terms[0].z, u))[3] for u in (0, 60, -200)]
    np.testing.assert_allclose(modes[1], modes[0], atol=1e-9)
    np.testing.assert_allclose(modes[2], modes[0], atol=1e-9)
    design, _ = problem(family, (3, 8, 40), columns=1, effects=2)
    rule, psi = padded_nodes(1, 2), jnp.asarray([0.5, 1.0, 0.3, 0.8, 0.0])
    modes = [fused.fused_pass(family, design, rule, psi, jnp.full_like(design.terms[0].z, u))[3] for u in (0, 20, -40)]
    np.testing.assert_allclose(modes[1], modes[0], atol=1e-9)
    np.testing.assert_allclose(modes[2], modes[0], atol=1e-9)


def test_large_counts_and_counts_that_are_none(x64, monkeypatch):
    family = FAMILIES["negativebinomial"]
    y, codes = np.array([0.0, 3.0, 2e5, 7.0]), np.array([0, 0, 1, 1])
    at = lambda y: native_and_plain(
        monkeypatch, family, make_design(y, np.ones((4, 1)), codes=codes)[0], [8.0, 1.0, 0.3]
    )
    assert_close(*at(y), tolerance=1e-9)
    assert np.isnan(at(y + 0.5)[0].value)


def test_nan_comes_out(x64):
    family = FAMILIES["logit"]
    design, beta = problem(family, MIXED)
    rule, start = padded_nodes(1, 1), jnp.zeros_like(design.terms[0].z)
    X = np.array(design.X)
    X[np.flatnonzero(design.weights)[5], 1] = np.nan
    spoilt = type(design)(design.y, X, design.offset, design.weights, design.terms, design.index, design.constant)
    value, gradient, *_ = fused.fused_pass(family, spoilt, rule, jnp.asarray([*beta, 0.5, 0.0]), start)
    assert np.isnan(value) and np.isnan(gradient).any()
    assert np.isnan(fused.fused_pass(family, design, rule, jnp.asarray([*beta, np.nan, 0.0]), start)[0])


def test_under_jit_and_vmap(x64):
    family = FAMILIES["gamma"]
    design, beta = problem(family, (1, 2, 3, 40))
    rule, start = padded_nodes(3, 1), jnp.zeros_like(design.terms[0].z)
    psi = np.stack([[*beta, 0.5, 0.2], [*beta, 0.9, -0.1], [*(2 * beta), 0.1, 0.0]])
    one = jax.jit(lambda psi: fused.fused_pass(family, design, rule, psi, start))
    for a, b in zip(jax.jit(jax.vmap(one))(psi), zip(*map(one, jnp.asarray(psi)), strict=True), strict=True):
        np.testing.assert_allclose(a, np.stack(b), rtol=1e-14, atol=1e-14)
    y = np.stack([design.y, design.y + 1.0])  # response and parameters batched by different axes
    both = jax.jit(jax.vmap(
        lambda y: jax.vmap(lambda psi: fused.fused_pass(family, type(design)(
            y, design.X, design.offset, design.weights, design.terms, design.index, design.constant
        ), rule, psi, start))(psi)
    ))(y)  # fmt: skip
    np.testing.assert_allclose(both[2][0, 1], one(jnp.asarray(psi[1]))[2], rtol=1e-14, atol=1e-14)


def operands(blocks=2, long_blocks=1, columns=3):
    slots = (blocks + long_blocks) * 480
    rows = [np.ones(slots) for _ in range(3)]
    return [
        np.ones((slots, columns)), *rows, np.ones((1, slots)), np.ones((1, slots)), np.full(blocks, 2, np.int32),
        np.zeros(15 * long_blocks, np.int32), np.ones(columns + 2), np.zeros((1, 4)), np.zeros(4), np.int32(1),
    ]  # fmt: skip


def call(operands, slots=1440, columns=3, block=480, family=1):
    m = columns + 2
    result = [jax.ShapeDtypeStruct(shape, np.float64) for shape in ((), (m,), (m, m), (1, slots))]
    settings = {"block": block, "family": family, "determinant": 1, "second": 1}
    out = native.call("fused_pass", result, *operands, **{k: np.int64(v) for k, v in settings.items()})
    return jax.block_until_ready(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.__setitem__(1, np.ones(1439)), "y"),
        (lambda o: o.__setitem__(1, np.ones(1440, np.int32)), "y must be float32 or float64"),
        (lambda o: o.__setitem__(0, np.ones(1440)), "expected X"),
        (lambda o: o.__setitem__(4, np.ones((4, 1440))), "4 effects"),
        (lambda o: o.__setitem__(5, np.ones((2, 1440))), "start"),
        (lambda o: o.__setitem__(8, np.ones(4)), "psi"),
        (lambda o: o.__setitem__(10, np.zeros(3)), "log_weights"),
        (lambda o: o.__setitem__(6, np.full(3, 2, np.int32)), "3 blocks of 480 slots"),
        (lambda o: o.__setitem__(6, np.array([2, 7], np.int32)), r"sizes\[1\] = 7"),
        (lambda o: o.__setitem__(6, np.array([0, 2], np.int32)), r"sizes\[0\] = 0"),
        (lambda o: o.__setitem__(6, np.array([2, 240], np.int32)), r"sizes\[1\] = 240"),
        (lambda o: o.__setitem__(7, np.zeros(14, np.int32)), "14 pieces"),
        (lambda o: o.__setitem__(11, np.int32(0)), "count = 0"),
        (lambda o: o.__setitem__(11, np.int32(5)), "count = 5 of 4 nodes"),
    ],
)
def test_operands_that_do_not_fit_are_named(x64, change, message):
    call(operands())
    bad = operands()
    change(bad)
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=f"fused_pass: .*{message}"):
        call(bad)


@pytest.mark.parametrize(("settings", "message"), [({"family": 7}, "family 7"), ({"block": 0}, "block = 0")])
def test_settings_that_do_not_fit_are_named(x64, settings, message):
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=f"fused_pass: {message}"):
        call(operands(), **settings)


SAME = """
import os, hashlib, sys; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{threads}])
import jax, numpy as np
from jaxglmm.design.design import make_design
from jaxglmm.model.families import get_family
from jaxglmm.ops.fused import fused_pass
from jaxglmm.optimise.node_ladder import padded_nodes
rng = np.random.default_rng(0)
counts = np.append(1 + rng.negative_binomial(2, 0.5, 4000), [900, 40])
codes = np.repeat(np.arange(len(counts)), counts)
X = rng.standard_normal((len(codes), 5))
with jax.enable_x64(True):
    design, _ = make_design((rng.random(len(codes)) < 0.4) * 1.0, X, codes=codes)
    psi = np.array([0.1, 0.2, -0.1, 0.3, 0.0, 0.8, 0.0])
    out = fused_pass(get_family("binomial"), design, padded_nodes(1, 1), psi, np.zeros_like(design.terms[0].z))
    if "{what}" == "bits":
        print(hashlib.sha256(b"".join(np.asarray(v).tobytes() for v in out)).hexdigest())
    else:
        print(*np.concatenate([np.asarray(v).ravel() for v in out[:3]]).tolist())
"""


def test_the_same_bits_for_any_number_of_threads(run_python):
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("cannot choose the number of processors")
    assert run_python(SAME.format(threads=1, what="bits")) == run_python(SAME.format(threads=2, what="bits"))


def test_every_target_gives_the_same(run_python):
    numbers = [
        np.array(run_python(SAME.format(threads=2, what="numbers"), JAXGLMM_SIMD=target).split(), float)
        for target in ("", "avx2", "baseline")
    ]
    for other in numbers[1:]:
        np.testing.assert_allclose(other, numbers[0], rtol=1e-10, atol=1e-8)


ULP = """
import ctypes, numpy as np
from jaxglmm.ops import native
library = ctypes.CDLL(str(native.native_status().path))
library.jaxglmm_elementary.restype = ctypes.c_char_p
pointer = lambda v: v.ctypes.data_as(ctypes.c_void_p)
rng = np.random.default_rng(0)
wide = np.exp(rng.uniform(-700, 700, 40000))
ranges = [
    (0, np.exp, np.concatenate([rng.uniform(-708, 709, 40000), rng.normal(size=40000)])),
    (1, np.log, np.concatenate([wide, rng.uniform(0.5, 2, 40000), 1 + rng.normal(size=9999) * 1e-6])),
    (2, np.log1p, np.concatenate([wide, rng.uniform(-0.999, 2, 40000), np.exp(rng.uniform(-60, 0, 9999))])),
]
for which, function, x in ranges:
    out = np.empty_like(x)
    name = library.jaxglmm_elementary(which, ctypes.c_int64(len(x)), pointer(x), pointer(out))
    exact = function(x.astype(np.longdouble))
    print(float(np.max(np.abs(out - exact) / np.spacing(np.abs(exact.astype(float))))), end=" ")
"""


@pytest.mark.parametrize("target", ["", "avx2", "baseline"])
def test_exp_log_and_log1p_to_two_units_in_the_last_place(run_python, target):
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("needs a long double of more than 53 bits")
    errors = [float(v) for v in run_python(ULP, JAXGLMM_SIMD=target).split()]
    assert max(errors) <= 2.0, errors


def test_exp_log_and_log1p_at_the_edges():
    library = ctypes.CDLL(str(native.native_status().path))
    library.jaxglmm_elementary.restype = ctypes.c_char_p
    x, out = np.array([np.nan, -np.inf, np.inf, 0.0, -2.0]), np.empty(5)
    at = lambda v: v.ctypes.data_as(ctypes.c_void_p)
    for which, wanted in enumerate(
        [[np.nan, 0.0, np.exp(709.0), 1.0, np.exp(-2.0)], [np.nan, np.nan, np.inf, np.nan, np.nan],
         [np.nan, np.nan, np.inf, 0.0, np.nan]]
    ):  # fmt: skip
        library.jaxglmm_elementary(which, ctypes.c_int64(5), at(x), at(out))
        np.testing.assert_allclose(out, wanted, rtol=1e-15, atol=1e-300)
