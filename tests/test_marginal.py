"""The marginal likelihood against brute-force integration, and its derivatives against independent ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxglmm as jg
from jaxglmm.design.design import make_design
from jaxglmm.model.families import get_family
from jaxglmm.objectives.evaluate import evaluate, evaluate_glm
from jaxglmm.objectives.marginal import Nodes, gauss_hermite
from jaxglmm.optimise.node_ladder import padded_nodes


FAMILIES = ["binomial", "poisson", "negativebinomial", "gamma"]


def small_problem(family, n_effects, rng, largest=7, blocked=True):
    """A design with two columns and a handful of groups, its rows as given, and parameters to evaluate at."""
    counts = rng.integers(1, largest, 9)
    codes = rng.permutation(np.repeat(np.arange(9), counts))
    n = len(codes)
    X = np.column_stack([np.ones(n), rng.standard_normal(n)])
    z = np.vstack([np.ones(n), *(rng.standard_normal(n) for _ in range(n_effects - 1))])
    eta = X @ [0.2, 0.5] + 0.7 * rng.standard_normal(9)[codes]
    y = {
        "binomial": (rng.random(n) < 1 / (1 + np.exp(-eta))) * 1.0,
        "poisson": rng.poisson(np.exp(eta)) * 1.0,
        "negativebinomial": rng.poisson(np.exp(eta) * rng.gamma(2.0, 0.5, n)) * 1.0,
        "gamma": np.exp(eta) * rng.gamma(3.0, 1 / 3, n),
        "gaussian": eta + rng.standard_normal(n),
    }[family.name]
    weights = rng.integers(1, 4, n) * 1.0
    offset = 0.3 * rng.standard_normal(n)
    rows = {"y": y, "X": X, "weights": weights, "offset": offset, "codes": codes, "z": z}
    design, layout = make_design(**rows, n_groups=9, constant=family.constant(y, weights), blocked=blocked)
    q = n_effects * (n_effects + 1) // 2
    params = jg.Params(jnp.asarray([0.1, 0.4]), jnp.asarray(0.3 * rng.standard_normal(q) - 0.2), jnp.asarray(0.5))
    return rows, design, layout, params


@functools.partial(jax.jit, static_argnums=0)
def loglik(family, *rows):
    return family.loglik(*rows)


def log_densities(family, rows, params, factor, b):
    """sum_i l_i of each group at effects b (S, ...): (G, ...), by the family's density."""
    codes = rows["codes"]
    eta = rows["X"] @ np.asarray(params.beta) + rows["offset"]
    eta = eta.reshape(-1, *[1] * (b.ndim - 1)) + np.tensordot(rows["z"].T, b, 1)
    extra = (slice(None),) + (None,) * (b.ndim - 1)
    log_l = np.asarray(loglik(family, eta, rows["y"][extra], rows["weights"][extra], params.log_dispersion))
    out = np.zeros((9, *eta.shape[1:]))
    np.add.at(out, codes, log_l)
    return out


def by_brute_force(family, rows, params, factor):
    """Marginal log-likelihood by the trapezoid rule on a wide, fine grid in u."""
    S = factor.shape[0]
    axis = np.linspace(-9, 9, {1: 4001, 2: 241}[S])
    u = np.stack(np.meshgrid(*[axis] * S, indexing="ij"))
    b = np.tensordot(factor, u, 1)
    log_f = log_densities(family, rows, params, factor, b) - 0.5 * (u**2).sum(0) - 0.5 * S * np.log(2 * np.pi)
    peak = log_f.max(axis=tuple(range(1, S + 1)), keepdims=True)
    mass = np.exp(log_f - peak).sum(axis=tuple(range(1, S + 1))) * (axis[1] - axis[0]) ** S
    return float(np.sum(np.log(mass) + peak.ravel())) + family.constant(rows["y"], rows["weights"])


@pytest.mark.parametrize(
    ("family", "n_effects"), [*((name, 1) for name in FAMILIES), ("binomial", 2), ("negativebinomial", 2)]
)
def test_quadrature_is_the_integral(x64, family, n_effects):
    family = get_family(family)
    rows, design, _, params = small_problem(family, n_effects, np.random.default_rng(5))
    factor = np.asarray(design.terms[0].covariance.factor(params.theta))
    value = jax.jit(jg.AdaptiveQuadrature(family, {1: 61, 2: 35}[n_effects]))(params, design)
    assert float(value) == pytest.approx(by_brute_force(family, rows, params, factor), abs=2e-7)


def test_laplace_is_exact_for_gaussian_responses(x64):
    family = get_family("gaussian")
    rows, design, _, params = small_problem(family, 2, np.random.default_rng(2))
    factor = np.asarray(design.terms[0].covariance.factor(params.theta))
    z, codes = rows["z"], rows["codes"]
    ZL = (factor.T @ z) * 1.0
    V = (ZL.T @ ZL) * (codes[:, None] == codes[None, :]) + np.diag(
        np.exp(2 * float(params.log_dispersion)) / rows["weights"]
    )
    r = rows["y"] - rows["X"] @ np.asarray(params.beta) - rows["offset"]
    dense = -0.5 * (r @ np.linalg.solve(V, r) + np.linalg.slogdet(2 * np.pi * V)[1])
    assert float(jax.jit(jg.LaplaceMarginal(family))(params, design)) == pytest.approx(dense, abs=1e-10)


def test_laplace_is_its_definition(x64):
    """J(beta, u^) - log det(H) / 2 with mode and Hessian from scipy and finite differences."""
    from scipy.optimize import minimize

    family = get_family("poisson")
    rows, design, _, params = small_problem(family, 2, np.random.default_rng(4))
    factor = np.asarray(design.terms[0].covariance.factor(params.theta))
    total = family.constant(rows["y"], rows["weights"])
    for g in range(9):
        f = lambda u, g=g: log_densities(family, rows, params, factor, factor @ u)[g] - 0.5 * u @ u
        mode = minimize(
            lambda u, f=f: -f(u), np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}
        )
        h, e = 1e-3, np.eye(2) * 1e-3
        H = [
            [-(f(mode.x + a + b) - f(mode.x + a - b) - f(mode.x - a + b) + f(mode.x - a - b)) / (4 * h * h) for a in e]
            for b in e
        ]
        total += -mode.fun - 0.5 * np.linalg.slogdet(np.array(H))[1]
    assert float(jax.jit(jg.LaplaceMarginal(family))(params, design)) == pytest.approx(total, abs=2e-5)


OBJECTS = {
    "beta": (jg.Beta(), "gamma"), "gaussian-log": (jg.Gaussian("log"), "gamma"),
    "gamma-inverse": (jg.Gamma("inverse"), "gamma"), "probit": (jg.Binomial("probit"), "binomial"),
    "cloglog": (jg.Binomial("cloglog"), "binomial"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "n_effects", "nodes"),
    [
        *((name, 1, 7) for name in [*FAMILIES, *OBJECTS]),
        ("binomial", 1, 1),
        ("gamma", 2, 1),
        ("negativebinomial", 2, 4),
    ],
)
def test_gradient_is_that_of_the_value(x64, family, n_effects, nodes):
    """The written-out gradient against finite differences of the value, every parameter."""
    obj, base = OBJECTS.get(family) or (get_family(family), family)
    rows, _, _, params = small_problem(get_family(base), n_effects, np.random.default_rng(8))
    if family == "beta":
        rows["y"] = np.clip(rows["y"] / (1 + rows["y"]), 0.05, 0.95)
    if family == "gamma-inverse":
        # Keep eta = 1 / mu inside of its domain at every node.
        params = jg.Params(jnp.asarray([3.0, 0.1]), params.theta - 3.0, params.log_dispersion)
    design, _ = make_design(**rows, n_groups=9)
    flat, unflatten = ravel_pytree(params)
    both = jax.jit(jax.value_and_grad(lambda x, d: jg.AdaptiveQuadrature(obj, nodes)(unflatten(x), d)))
    got = both(flat, design)[1]

    def along(k, t):
        return float(both(flat + t * 1e-4 * jnp.eye(len(flat))[k], design)[0])

    for k in range(len(flat)):
        if obj.dispersion_name is None and k == len(flat) - 1:
            assert got[k] == 0
            continue
        difference = (8 * (along(k, 1) - along(k, -1)) - (along(k, 2) - along(k, -2))) / 12e-4
        assert float(got[k]) == pytest.approx(difference, rel=2e-7, abs=2e-7), (family, k)


@pytest.mark.parametrize(("family", "n_effects", "nodes"), [("binomial", 1, 1), ("poisson", 2, 2)])
def test_second_derivatives_agree_in_every_mode(x64, family, n_effects, nodes):
    family = get_family(family)
    _, design, _, params = small_problem(family, n_effects, np.random.default_rng(1))
    flat, unflatten = ravel_pytree(params)
    value = lambda x: jg.AdaptiveQuadrature(family, nodes)(unflatten(x), design)
    gradient = jax.jit(jax.grad(value))
    hessian = np.asarray(jax.jit(jax.hessian(value))(flat))
    for k in range(len(flat)):
        e = 1e-5 * jnp.eye(len(flat))[k]
        np.testing.assert_allclose(hessian[k], (gradient(flat + e) - gradient(flat - e)) / 2e-5, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacrev(jax.jacrev(value)))(flat), hessian, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(jax.jacfwd(value)))(flat), hessian, rtol=1e-9, atol=1e-9)


def test_derivatives_in_the_data(x64):
    """y, weights, z, offset and X of the design are differentiable too."""
    family = get_family("poisson")
    _, design, layout, params = small_problem(family, 1, np.random.default_rng(1))
    design = jax.tree.map(jnp.asarray, design)
    rng = np.random.default_rng(0)
    value = jg.AdaptiveQuadrature(family, 3)

    def moved(t):
        def shift(v):
            noise = np.zeros(v.shape)
            noise[..., layout.slot] = np.random.default_rng(v.ndim).standard_normal((*v.shape[:-1], len(layout.slot)))
            return v + t * jnp.asarray(noise)

        term = design.terms[0]
        new = type(term)(term.index, shift(term.z), term.covariance)
        noise = jnp.asarray(rng.standard_normal(design.X.shape))
        return type(design)(
            shift(design.y), design.X + t * 0.1 * noise, shift(design.offset), shift(design.weights), (new,),
            design.index, design.constant,
        )  # fmt: skip

    both = jax.jit(jax.value_and_grad(lambda t: value(params, moved(t))))
    ahead, behind = (float(both(t)[0]) for t in (1e-5, -1e-5))
    assert float(both(0.0)[1]) == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


def test_vmap_over_parameters(x64):
    family = get_family("binomial")
    _, design, _, params = small_problem(family, 1, np.random.default_rng(1))
    value = jg.LaplaceMarginal(family)
    many = jax.tree.map(lambda v: jnp.stack([v, v + 0.1, v - 0.2]), params)
    batch = jax.jit(jax.vmap(jax.value_and_grad(value), (0, None)))(many, jax.tree.map(jnp.asarray, design))
    single = jax.jit(jax.value_and_grad(value))
    for k in range(3):
        one = single(jax.tree.map(lambda v, k=k: v[k], many), design)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(batch), strict=True):
            np.testing.assert_allclose(a, b[k], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("family", "n_effects", "largest"), [("binomial", 2, 6), ("negativebinomial", 1, 80)])
def test_evaluation_matches_the_objective(x64, family, n_effects, largest):
    """The optimiser's compiled pass in both forms of storage: value and gradient against the public function, the
    Hessian against finite differences of the gradient."""
    family, nodes = get_family(family), 3
    exact = gauss_hermite(nodes, n_effects)
    count = nodes**n_effects
    for blocked, rule in (
        (True, padded_nodes(nodes, n_effects)),
        (False, Nodes(exact.points, exact.log_weights, count)),
    ):
        _, design, _, params = small_problem(family, n_effects, np.random.default_rng(3), largest, blocked=blocked)
        design = jax.tree.map(jnp.asarray, design)
        covariance = design.terms[0].covariance
        raw = covariance.raw(np.asarray(covariance.factor(params.theta)))
        psi = jnp.concatenate([params.beta, jnp.asarray(raw), params.log_dispersion[None]])
        at = functools.partial(evaluate, family, design, rule, start=jnp.zeros_like(design.terms[0].z))
        got = at(psi=psi)
        if blocked:
            value, by = jax.jit(jax.value_and_grad(jg.AdaptiveQuadrature(family, nodes)))(params, design)
            slope = jnp.where(covariance.diagonal, 1 / raw, 1.0)  # theta holds logarithms on the diagonal
            gradient = jnp.concatenate([by.beta, slope * by.theta, by.log_dispersion[None]])
        assert float(got.value) == pytest.approx(float(value), rel=1e-12)
        np.testing.assert_allclose(got.gradient, gradient, rtol=1e-8, atol=1e-8)
        for k in range(len(psi)):
            e = 1e-5 * jnp.eye(len(psi))[k]
            difference = (at(psi=psi + e).gradient - at(psi=psi - e).gradient) / 2e-5
            np.testing.assert_allclose(got.hessian[k], difference, rtol=1e-6, atol=1e-6)


def test_glm_pass_and_variance_score(x64):
    """The GLM pass against differentiation; the score in the variance against the Laplace value near zero."""
    family = get_family("gamma")
    _, design, _, params = small_problem(family, 1, np.random.default_rng(3))
    psi = jnp.append(params.beta, params.log_dispersion)

    def value(psi):
        eta = design.offset + design.X @ psi[:2]
        return jnp.sum(family.loglik(eta, design.y, design.weights, psi[2])) + design.constant

    got, gradient, hessian, (score, _, _) = evaluate_glm(family, design, psi)
    wanted = jax.jit(lambda psi: (value(psi), jax.grad(value)(psi), jax.hessian(value)(psi)))(psi)
    assert float(got) == pytest.approx(float(wanted[0]), rel=1e-13)
    np.testing.assert_allclose(gradient, wanted[1], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(hessian, wanted[2], rtol=1e-9, atol=1e-9)
    near = jg.Params(params.beta, jnp.log(jnp.asarray([2e-3])), params.log_dispersion)
    laplace = float(jax.jit(jg.LaplaceMarginal(family))(near, design))
    assert float(score[0]) == pytest.approx((laplace - float(got)) / 4e-6, rel=1e-3)


def test_joint_likelihood_is_penalised_regression(x64):
    family = get_family("binomial")
    rows, design, layout, params = small_problem(family, 1, np.random.default_rng(3))
    u = np.random.default_rng(0).standard_normal(9)
    tau = float(jnp.exp(params.theta[0]))
    slots = layout.scatter(u[rows["codes"]][None])
    value = float(jg.JointLikelihood(family)(params, jnp.asarray(slots), design))
    one_hot = np.eye(9)[rows["codes"]]
    eta = rows["X"] @ np.asarray(params.beta) + rows["offset"] + one_hot @ (tau * u)
    log_l = rows["weights"] * (rows["y"] * eta - np.logaddexp(0, eta))
    expected = log_l.sum() - 0.5 / tau**2 * np.sum((tau * u) ** 2) + family.constant(rows["y"], rows["weights"])
    assert value == pytest.approx(expected, abs=1e-11)


def test_float32_and_its_refusal_of_float64():
    family = get_family("binomial")
    with jax.enable_x64(True):
        rows, design, _, params = small_problem(family, 1, np.random.default_rng(3))
        exact = float(jax.jit(jg.LaplaceMarginal(family))(params, design))
    with jax.enable_x64(False):
        with pytest.raises(jg.DataError, match=r"float64.*enable_x64"):
            jg.LaplaceMarginal(family)(jax.tree.map(np.asarray, params), design)
        single, _ = make_design(**rows, n_groups=9, dtype=np.float32, constant=design.constant)
        low = jax.tree.map(lambda v: jnp.asarray(np.asarray(v), jnp.float32), params)
        value, grad = jax.jit(jax.value_and_grad(jg.AdaptiveQuadrature(family, 5)))(low, single)
        assert value.dtype == grad.beta.dtype == jnp.float32
        assert float(jax.jit(jg.LaplaceMarginal(family))(low, single)) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("n_agq", [1, 2, 9, 101, 400])
def test_nodes_integrate_a_normal_density(n_agq):
    nodes = gauss_hermite(n_agq, 1)
    # f(u) = -u^2 has its nodes at sqrt(2) M z with M = 1 / sqrt(2): the sum is exactly 1 / sqrt(2 pi) of the integral.
    mass = np.exp(nodes.log_weights - nodes.points[0] ** 2)
    assert mass.sum() == pytest.approx(1.0, rel=1e-12)
    assert (mass * nodes.points[0] ** 2).sum() == pytest.approx(0.5 * (n_agq > 1), rel=1e-10, abs=1e-14)


def test_nodes_out_of_range():
    with pytest.raises(ValueError, match=r"n_agq must be between 1 and 500, found 0"):
        gauss_hermite(0, 1)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("blocked", [True, False])
def test_the_whole_pass_lowers_for_accelerators(monkeypatch, platform, blocked):
    """A design laid out for them (not blocked) does so by itself; one for the CPU where the plain form is asked for."""
    if blocked:
        monkeypatch.setenv("JAXGLMM_KERNELS", "plain")
    family = get_family("binomial")
    rng = np.random.default_rng(0)
    with jax.enable_x64(False):
        codes = np.repeat(np.arange(60), rng.integers(1, 50, 60))
        n = len(codes)
        X = np.column_stack([np.ones(n), rng.standard_normal(n)])
        design, _ = make_design((rng.random(n) < 0.4) * 1.0, X, codes=codes, dtype=np.float32, blocked=blocked)
        rule = padded_nodes(1, 1)
        psi = np.array([0.0, 0.1, 0.5, 0.0], np.float32)
        shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), (design, rule, psi, design.terms[0].z))
        exported = jax.export.export(jax.jit(lambda *a: evaluate(family, *a)), platforms=[platform])(*shapes)
        text = exported.mlir_module()
    assert exported.platforms == (platform,)
    dots = [line for line in text.splitlines() if "= stablehlo.dot_general" in line]
    assert dots and all("HIGHEST" in line for line in dots)
