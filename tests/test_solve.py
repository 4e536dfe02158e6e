"""A fit as a differentiable function: against the host's fit, and derivatives against those of fits moved a little."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg
from jaxglmm.design.design import make_design


FAMILY = jg.Bernoulli()
FACTORS = np.array([0.0, 1.0])
RIDGE = 0.05
ARRAYS = ("y", "X", "weights", "offset")


@pytest.fixture(scope="module")
def problem():
    """24 groups of 1 to 8 binary rows, with weights and an offset: the design, its layout, and the table."""
    rng = np.random.default_rng(8)
    codes = np.repeat(np.arange(24), rng.integers(1, 9, 24))
    n = len(codes)
    X = np.column_stack([np.ones(n), rng.standard_normal(n)])
    eta = X @ [0.3, 0.8] + 1.2 * rng.standard_normal(24)[codes]
    rows = {"y": (rng.random(n) < 1 / (1 + np.exp(-eta))) * 1.0, "X": X, "offset": 0.2 * rng.standard_normal(n)}
    design, layout = make_design(**rows, codes=codes, n_groups=24)
    data = pd.DataFrame({"y": rows["y"], "x": X[:, 1], "o": rows["offset"], "g": codes})
    return design, layout, data


def with_ridge(objective, design, lam):
    return jg.solve(objective, design, penalty=jg.Ridge(lam, FACTORS), tol=1e-20)


def estimates(solution):
    return jnp.concatenate([solution.beta, solution.factor.ravel(), solution.value[None]])


@pytest.mark.parametrize("nodes", [1, 5])
@pytest.mark.parametrize("lam", [0.0, RIDGE])
def test_it_is_the_fit(x64, problem, nodes, lam):
    design, _, data = problem
    objective = jg.LaplaceMarginal(FAMILY) if nodes == 1 else jg.AdaptiveQuadrature(FAMILY, nodes)
    found = with_ridge(objective, design, lam)
    penalty = {"penalty": jg.Ridge(lam)} if lam else {}
    fit = jg.fit("y ~ x + offset(o) + (1 | g)", data, family="binomial", n_agq=nodes, **penalty)
    assert found.converged and not found.singular and found.decrement <= 1e-15 and found.iterations < 15
    np.testing.assert_allclose(found.beta, list(fit.fixef.values()), atol=1e-7)
    assert float(found.factor[0, 0]) == pytest.approx(fit.varcorr[0]["sd"], abs=1e-7)
    value = float(found.value) + 0.5 * len(data) * lam * float(found.beta[1]) ** 2
    assert value == pytest.approx(fit.loglik, abs=1e-8)
    assert float(objective(found.params, design)) == pytest.approx(value, abs=1e-9)


@functools.cache
def of_arrays(nodes):
    """(arrays, lam, design) -> estimates, compiled once."""

    def run(arrays, lam, design):
        design = dataclasses.replace(design, **arrays)
        return estimates(
            jg.solve(jg.AdaptiveQuadrature(FAMILY, nodes), design, penalty=jg.Ridge(lam, FACTORS), tol=1e-22)
        )

    return jax.jit(run)


@pytest.mark.parametrize("nodes", [1, 5])
def test_derivatives_are_those_of_the_optimum(x64, problem, nodes):
    """Along a random direction in each array and in lambda: forward, reverse, inside of vmap; finite differences."""
    design, layout, _ = problem
    run, rng = of_arrays(nodes), np.random.default_rng(1)
    arrays = {name: jnp.asarray(getattr(design, name)) for name in ARRAYS}
    real = np.zeros(design.y.shape)
    real[layout.slot] = 1.0
    zero = jax.tree.map(jnp.zeros_like, arrays), jnp.zeros(())
    directions = []
    for name in ARRAYS:
        noise = rng.standard_normal(arrays[name].shape) * real.reshape(-1, *[1] * (arrays[name].ndim - 1))
        directions.append(({**zero[0], name: jnp.asarray(noise)}, zero[1]))
    directions.append((zero[0], jnp.ones(())))
    along = jax.tree.map(lambda *v: jnp.stack(v), *directions)
    at = lambda d, h: run(jax.tree.map(lambda a, b: a + h * b, arrays, d[0]), RIDGE + h * d[1], design)
    moved = jax.jit(jax.vmap(at, (0, None)))
    h = 1e-4
    central = (8 * (moved(along, h) - moved(along, -h)) - (moved(along, 2 * h) - moved(along, -2 * h))) / (12 * h)
    forward = jax.jit(jax.vmap(lambda d: jax.jvp(lambda h: at(d, h), (0.0,), (1.0,))[1]))(along)
    np.testing.assert_allclose(forward, central, atol=1e-6, rtol=1e-6)
    reverse = jax.jit(jax.jacrev(run, argnums=(0, 1)))(arrays, jnp.asarray(RIDGE), design)
    for d, found in zip(directions, np.asarray(forward), strict=True):
        parts = jax.tree.map(lambda J, v: jnp.tensordot(J, v, v.ndim), reverse, d)
        np.testing.assert_allclose(sum(jax.tree.leaves(parts)), found, atol=1e-9, rtol=1e-9)


def test_a_second_call_traces_nothing_and_the_backward_pass_knows_no_iterations(x64, problem):
    from jaxglmm.optimise.solution import _solve

    design, _, _ = problem
    objective = jg.LaplaceMarginal(FAMILY)
    with_ridge(objective, design, RIDGE)
    programs = _solve._cache_size  # pyright: ignore[reportAttributeAccessIssue]
    before = programs()
    with_ridge(objective, dataclasses.replace(design, offset=design.offset + 0.1), 2 * RIDGE)
    assert programs() == before

    def memory(limit):
        """Numbers that the forward pass leaves for the backward one; bytes that both take once compiled."""
        run = lambda X: jg.solve(objective, dataclasses.replace(design, X=X), max_iterations=limit).beta
        kept = sum(v.size for v in jax.tree.leaves(jax.eval_shape(lambda X: jax.vjp(run, X)[1], design.X)))
        compiled = jax.jit(jax.grad(lambda X: run(X).sum())).lower(design.X).compile()
        plan = compiled.memory_analysis()  # XLA's, whatever the loop then does
        assert plan is not None
        return kept, plan.temp_size_in_bytes

    assert memory(200) == memory(2)
    assert memory(2)[1] > design.X.nbytes  # which is there to be counted


def test_a_variance_of_zero_is_flagged_and_stays_there(x64):
    """Each group has two events in four rows; the coefficient's derivatives are those of the plain regression."""
    rng = np.random.default_rng(3)
    X = np.column_stack([np.ones(320), rng.standard_normal(320)])
    y, codes = np.tile([0.0, 1, 1, 0], 80), np.repeat(np.arange(80), 4)
    design, layout = make_design(y, X, codes=codes, n_groups=80)
    plain, where = make_design(y, X)
    run = jax.jit(lambda y, design: jg.solve(jg.LaplaceMarginal(FAMILY), dataclasses.replace(design, y=y)))
    slope = lambda design: jax.jacrev(lambda y: (lambda s: (s.beta, s.factor))(run(y, design)))(jnp.asarray(design.y))
    found = run(design.y, design)
    assert found.singular and found.converged and abs(float(found.factor[0, 0])) < 1e-6
    np.testing.assert_allclose(found.beta, run(plain.y, plain).beta, atol=1e-8)
    beta, factor = slope(design)
    np.testing.assert_allclose(beta[:, layout.slot], slope(plain)[0][:, where.slot], atol=1e-8)
    np.testing.assert_allclose(factor, 0, atol=1e-6)


def test_what_has_no_optimum_is_not_converged(x64, problem):
    """A separated response, one without variation and a missing value, side by side with a sound one."""
    design, _, _ = problem
    y = jnp.stack([design.y, (design.X[:, 1] > 0) * 1.0, jnp.ones(design.y.shape), design.y.copy() * np.nan])
    run = lambda y: jg.solve(jg.LaplaceMarginal(FAMILY), dataclasses.replace(design, y=y))
    found = jax.jit(jax.vmap(run))(y)
    np.testing.assert_array_equal(found.converged, [True, False, False, False])
    np.testing.assert_allclose(found.beta[0], run(design.y).beta, atol=1e-10)


def test_least_squares(x64):
    """Without random effects the derivative of Gaussian coefficients in the response is (X'X)^-1 X'."""
    rng = np.random.default_rng(5)
    X, y = np.column_stack([np.ones(40), rng.standard_normal(40)]), 200 + 30 * rng.standard_normal(40)
    design, layout = make_design(y, X)
    run = lambda y: jg.solve(jg.LaplaceMarginal(jg.Gaussian()), dataclasses.replace(design, y=y))
    found = run(design.y)
    np.testing.assert_allclose(found.beta, np.linalg.lstsq(X, y)[0], rtol=1e-9)
    rss = np.sum((y - X @ np.asarray(found.beta)) ** 2)
    assert float(found.log_dispersion) == pytest.approx(0.5 * np.log(rss / 40), abs=1e-8)
    J = jax.jacfwd(lambda h: run(design.y.copy() + h).beta)(jnp.zeros(design.y.shape))
    np.testing.assert_allclose(J[:, layout.slot], np.linalg.solve(X.T @ X, X.T), atol=1e-9)


def test_second_derivatives(x64):
    """Of a logistic ridge's coefficient in lambda and a column, against differences of the first ones."""
    rng = np.random.default_rng(6)
    X = np.column_stack([np.ones(60), rng.standard_normal(60)])
    design, _ = make_design((rng.random(60) < 1 / (1 + np.exp(-X[:, 1]))) * 1.0, X)
    factors, along = jnp.array([0.0, 1.0]), jnp.asarray(rng.standard_normal(design.X.shape))

    def coefficient(v):
        moved = dataclasses.replace(design, X=design.X + v[1] * along)
        return jg.solve(jg.LaplaceMarginal(FAMILY), moved, penalty=jg.Ridge(v[0], factors), tol=1e-22).beta[1]

    v, h = jnp.array([0.05, 0.1]), 1e-4
    slope = jax.jit(jax.grad(coefficient))
    central = [(slope(v + h * e) - slope(v - h * e)) / (2 * h) for e in jnp.eye(2)]
    found = jax.jit(jax.hessian(coefficient))(v)
    np.testing.assert_allclose(found, jnp.stack(central), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, found.T, atol=1e-10)


def test_a_prior_of_the_standard_deviation(x64, problem):
    design, _, data = problem
    objective = jg.LaplaceMarginal(FAMILY)

    @jax.jit
    def run(scale):
        found = jg.solve(objective, design, prior=jg.HalfStudentPrior(3.0, scale), tol=1e-20)
        return found.factor[0, 0]

    fit = jg.fit(
        "y ~ x + offset(o) + (1 | g)", data, family="binomial", n_agq=1, prior={"g": jg.HalfStudentPrior(3.0, 0.5)}
    )
    assert float(run(0.5)) == pytest.approx(fit.varcorr[0]["sd"], abs=1e-6)
    central = (run(0.5 + 1e-4) - run(0.5 - 1e-4)) / 2e-4
    assert float(jax.grad(run)(0.5)) == pytest.approx(float(central), abs=1e-6)


def test_what_it_cannot_do_is_said(x64, problem):
    design, _, _ = problem
    objective = jg.LaplaceMarginal(FAMILY)
    with pytest.raises(jg.DataError, match="found JointLikelihood"):
        jg.solve(jg.JointLikelihood(FAMILY), design)  # pyright: ignore[reportArgumentType]
    with pytest.raises(jg.DataError, match=r"array of 2 numbers.*found none"):
        jg.solve(objective, design, penalty=jg.Ridge(0.1))
    with pytest.raises(jg.DataError, match=r"alpha=1\.0"):
        jg.solve(objective, design, penalty=jg.Lasso(0.1, FACTORS))
    with pytest.raises(jg.DataError, match="prior: expected"):
        jg.solve(objective, design, prior=jg.NormalPrior(1.0))
    with jax.enable_x64(False), pytest.raises(jg.DataError, match="x64 is off"):
        jg.solve(objective, design)
