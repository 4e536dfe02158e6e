"""The functional core on native kernels: all orders of derivative against plain JAX, and how often they are called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.design.design import make_design
from jaxglmm.objectives import quadrature
from jaxglmm.objectives.marginal import gauss_hermite
from jaxglmm.objectives.params import Params
from jaxglmm.ops import fused, modes, native


pytestmark = pytest.mark.native


def problem(family, effects=1, longest=36, dtype=np.float64):
    rng = np.random.default_rng(effects)
    codes = np.repeat(np.arange(6), (1, 2, 3, 3, 5, longest))
    n = len(codes)
    X = np.stack([np.ones(n), rng.standard_normal(n)], 1)
    z = rng.standard_normal((effects, n)) + 0.5
    y = rng.poisson(1.0, n) * 1.0 if family.name != "binomial" else (rng.random(n) < 0.4) * 1.0
    design, _ = make_design(y, X, codes=codes, z=z, weights=rng.integers(0, 3, n) * 1.0, dtype=dtype)
    theta = np.array([-0.4, 0.3, -0.7])[: effects * (effects + 1) // 2]
    return Params(*(np.asarray(v, dtype) for v in ([0.2, -0.3], theta, 0.4))), design


CASES = [(jg.Binomial(), 1, 1), (jg.NegativeBinomial(), 1, 5), (jg.NegativeBinomial(), 2, 3)]


@pytest.mark.parametrize(("family", "effects", "nodes"), CASES, ids=["laplace", "quadrature", "two effects"])
def test_derivatives_are_those_of_the_fused_pass(x64, family, effects, nodes):
    """Its derivatives are in the entries of Lambda, ours in their log-Cholesky parameters."""
    params, design = problem(family, effects)
    covariance, p = design.terms[0].covariance, len(params.beta)

    def psi(flat):
        factor = covariance.factor(flat[p:-1])[covariance.entries]
        return jnp.concatenate([flat[:p], factor, flat[-1:]])

    flat = jnp.concatenate([params.beta, params.theta, params.log_dispersion[None]])
    value = lambda v: jg.AdaptiveQuadrature(family, nodes)(Params(v[:p], v[p:-1], v[-1]), design)
    rule, start = gauss_hermite(nodes, effects), jnp.zeros_like(design.terms[0].z)
    wanted, slope, curvature, _ = fused.fused_pass(family, design, rule, psi(flat), start)
    J, bend = jax.jacfwd(psi)(flat), jax.jacfwd(jax.jacfwd(psi))(flat)
    np.testing.assert_allclose(value(flat), wanted + design.constant, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(value)(flat), slope @ J, rtol=1e-10, atol=1e-10)
    hessian = J.T @ curvature @ J + jnp.einsum("a,aij->ij", slope, bend)
    np.testing.assert_allclose(jax.jit(jax.hessian(value))(flat), hessian, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "effects", "nodes"),
    [(jg.Gaussian(), 2, 1), (jg.Gamma(), 2, 3), (jg.Poisson(), 3, 1)],
    ids=["gaussian", "gamma", "three effects"],
)
def test_the_kernel_has_the_value_and_gradient_of_its_plain_form(x64, family, effects, nodes):
    """Derivatives in Lambda are compared in its lower triangle; the kernel leaves zeros above."""
    _, design = problem(family, effects)
    term, rule = design.terms[0], jax.tree.map(jnp.asarray, gauss_hermite(nodes, effects))
    factor = jnp.asarray([[0.7, 0.0, 0.0], [0.3, 0.5, 0.0], [-0.2, 0.1, 0.6]])[:effects, :effects]
    eta, y = 0.3 * jnp.asarray(design.X)[:, 1] ** 2, jnp.asarray(design.y) + (0.5 if family.name == "gamma" else 0.0)
    arrays = (eta, factor, jnp.asarray(0.4), y, design.weights, term.z, term.index, rule)
    found, plain = (
        quadrature.slot_gradient(family, nodes**effects, True, native, *arrays) for native in (True, False)
    )  # fmt: skip
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_allclose(a, np.tril(b) if b.ndim == 2 else b, rtol=1e-11, atol=1e-11)


def test_the_third_order_is_that_of_the_second(x64):
    family = jg.Binomial()
    params, design = problem(family, longest=6)
    others = (params.theta, params.log_dispersion)
    hessian = jax.hessian(lambda beta: jg.LaplaceMarginal(family)(Params(jnp.asarray(beta), *others), design))
    step = 1e-4 * np.array([1.0, 0.0])
    _, third = jax.jit(lambda b, t: jax.jvp(hessian, (b,), (t,)))(jnp.asarray(params.beta), jnp.asarray([1.0, 0.0]))
    slope = (hessian(params.beta + step) - hessian(params.beta - step)) / 2e-4
    np.testing.assert_allclose(third, slope, rtol=1e-6, atol=1e-7)


def test_reverse_over_reverse_and_batches(x64):
    family, effects, nodes = CASES[1]
    params, design = problem(family, effects)
    value = lambda beta: jg.AdaptiveQuadrature(family, nodes)(Params(beta, params.theta, params.log_dispersion), design)
    beta = jnp.asarray(params.beta)
    forward = jax.jit(jax.jacfwd(jax.grad(value)))(beta)
    of_all = lambda p: jg.AdaptiveQuadrature(family, nodes)(p, design)
    everywhere = [jax.jit(second(jax.grad(of_all)))(params) for second in (jax.jacfwd, jax.jacrev)]
    for a, b in zip(*map(jax.tree.leaves, everywhere), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(jax.jit(jax.jacrev(jax.jacrev(value)))(beta), forward, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(jax.jacfwd(value)))(beta), forward, rtol=1e-12)
    betas = jnp.stack([beta, beta + 0.2, -beta])
    hessians = jax.jit(jax.vmap(jax.hessian(value)))(betas)
    np.testing.assert_allclose(hessians[0], forward, rtol=1e-12)
    np.testing.assert_allclose(hessians[2], jax.hessian(value)(betas[2]), rtol=1e-12)


def test_how_often_kernels_are_called(x64):
    """One call for value and gradient together, and one more for a Hessian in any number of coefficients."""
    family, effects, nodes = CASES[0]
    params, design = problem(family, effects)
    value = lambda p: jg.AdaptiveQuadrature(family, nodes)(p, design)
    text = lambda f: str(jax.jit(f).lower(params).compile().as_text())
    calls = lambda f, kernel: text(f).count(f'custom_call_target="jaxglmm_{kernel}"')
    assert calls(value, "group_modes") == 1
    assert (calls(jax.value_and_grad(value), "group_modes"), calls(jax.value_and_grad(value), "group_push")) == (1, 0)
    assert (calls(jax.hessian(value), "group_modes"), calls(jax.hessian(value), "group_push")) == (1, 1)


def test_float32_while_x64_is_off():
    family = jg.Poisson()
    params, design = problem(family, dtype=np.float32)
    with jax.enable_x64(True):
        wide, wide_design = problem(family)
        wanted = jax.value_and_grad(lambda p: jg.LaplaceMarginal(family)(p, wide_design))(wide)
    found = jax.value_and_grad(lambda p: jg.LaplaceMarginal(family)(p, design))(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4)


def test_modes_and_curvatures_of_an_eta_that_is_given(x64):
    """Against Newton's equations: Lambda' Z's = u at the mode, and H from the rows there."""
    family = jg.Poisson()
    _, design = problem(family, effects=2)
    term, factor = design.terms[0], np.array([[0.7, 0.0], [0.3, 0.5]])
    eta = 0.3 * jnp.asarray(design.X)[:, 1] ** 2
    rule = gauss_hermite(1, 2)
    found = modes.group_modes(
        family, 1, True, eta, jnp.asarray(factor), jnp.asarray(0.0), design.y, design.weights, term.z, term.index, rule
    )
    u, curvature = np.asarray(found[4]), np.asarray(found[5])
    v = factor.T @ term.z
    d = family.derivatives(eta + (v * u).sum(0), design.y, design.weights, 0.0)
    # Slots of one group share their mode.
    groups = {tuple(mode) for mode in u.T if mode.any()}
    assert len(groups) == 6
    for mode in groups:
        rows = (u == np.array(mode)[:, None]).all(0)
        np.testing.assert_allclose(v[:, rows] @ np.asarray(d.s)[rows], mode, atol=1e-9)
        H = np.eye(2) + (np.asarray(d.w)[rows] * v[:, rows]) @ v[:, rows].T
        np.testing.assert_allclose(curvature[:, rows].T, np.broadcast_to(H[np.triu_indices(2)], (rows.sum(), 3)))


@pytest.mark.parametrize("wrong", ["y", "unknowns", "count"])
def test_operands_that_do_not_fit_are_named(x64, wrong):
    family = jg.Poisson()
    _, design = problem(family)
    term, rule = design.terms[0], gauss_hermite(1, 1)
    y = np.ones(3) if wrong == "y" else design.y
    factor = np.eye(2) if wrong == "unknowns" else np.eye(1)
    count = 2 if wrong == "count" else 1
    with pytest.raises((ValueError, TypeError, jax.errors.JaxRuntimeError), match=r"group_modes|broadcast"):
        jax.block_until_ready(modes.group_modes(
            family, count, True, jnp.zeros(design.y.shape), jnp.asarray(factor), jnp.asarray(0.0), y, design.weights,
            term.z, term.index, rule,
        ))  # fmt: skip


def arrays_formed(jaxpr):
    """Shapes of all that a program forms, in its inner programs too."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from arrays_formed(inner)


def test_no_tangent_of_X_is_formed(x64):
    """Neither in a gradient nor in a Hessian in the parameters; the derivative in X itself has its shape."""
    params, design = problem(jg.Binomial())
    of = lambda p, X: jg.LaplaceMarginal(jg.Binomial())(p, type(design)(
        design.y, X, design.offset, design.weights, design.terms, design.index, design.constant
    ))  # fmt: skip
    X = jnp.asarray(design.X)
    formed = lambda f: list(arrays_formed(jax.make_jaxpr(f)(params, X).jaxpr))
    of_rows = lambda shapes: [s for s in shapes if X.size <= np.prod(s, dtype=int) and set(X.shape) <= {*s}]
    assert of_rows(formed(jax.grad(of))) == [] and of_rows(formed(jax.hessian(of))) == []
    assert X.shape in formed(jax.grad(of, argnums=1))


def test_every_slot_is_written(x64):
    """Into memory that holds other numbers: results take the place of operands, whose pads hold 77."""
    family = jg.NegativeBinomial()
    _, design = problem(family, longest=70)
    term, real = design.terms[0], np.asarray(design.weights) > 0
    marked = lambda v: jnp.where(real, v, 77.0)
    operands = [
        marked(0.3 * jnp.asarray(design.X[:, 1])), marked(design.y), design.weights, marked(term.z), marked(0 * term.z),
        *fused.storage(term.index), jnp.asarray([0.7, 0.4]), jnp.zeros((1, 1)), jnp.zeros(1), jnp.int32(1),
    ]  # fmt: skip
    shapes = lambda *like: [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in like]
    settings = {"block": np.int64(term.index.block), "family": np.int64(5), "determinant": np.int64(1)}

    def call(kernel, result, operands, aliases):
        native.register()
        return jax.jit(lambda *v: jax.ffi.ffi_call(
            f"jaxglmm_{kernel}", result, input_output_aliases=aliases
        )(*v, **settings))(*operands)  # fmt: skip

    eta, unknowns, start, z = operands[0], operands[7], operands[4], operands[3]
    modes_of = shapes(jnp.float64(0), eta, unknowns, start, z)
    fresh, over = (call("group_modes", modes_of, operands, a) for a in ({}, {0: 1, 7: 2, 4: 3, 3: 4}))
    for a, b in zip(fresh, over, strict=True):
        np.testing.assert_array_equal(a, b)
    _, d_eta, _, modes_, curvature = over
    assert not np.any(np.asarray(d_eta)[~real]) and not np.any(np.asarray(modes_) == 77.0)
    assert not np.any(np.asarray(curvature) == 77.0)
    direction = [marked(jnp.ones_like(eta)), jnp.asarray([1.0, -1.0])]
    fresh, over = (call("group_push", shapes(eta, unknowns), [*operands, *direction], a) for a in ({}, {11: 0, 12: 1}))
    for a, b in zip(fresh, over, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.any(np.asarray(over[0])[~real])
