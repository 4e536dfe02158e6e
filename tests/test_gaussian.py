"""The exact Gaussian likelihood and its derivatives against dense linear algebra and differences."""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportCallIssue=false

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import simulated

from jaxglmm.design.crossproducts import CrossProducts, cross_products
from jaxglmm.errors import DataError
from jaxglmm.objectives.gaussian import GaussianMarginal, moments, profiled_loglik
from jaxglmm.objectives.gaussian_expansion import expand
from jaxglmm.objectives.gaussian_profile import GaussianProfile
from jaxglmm.objectives.params import Params
from jaxglmm.optimise.gaussian_fit import fit_gaussian


STRUCTURES = [((0,),), ((0, 1),), ((0,), (1,)), ((0, 2), (1,)), ((0, 1, 2),)]


def random_params(cross: CrossProducts, seed=1) -> Params:
    rng = np.random.default_rng(seed)
    q = len(cross.covariance.diagonal)
    return Params(*(jnp.asarray(v) for v in (rng.normal(size=cross.p), 0.4 * rng.normal(size=q), rng.normal())))


def flat(params: Params) -> jax.Array:
    return jnp.concatenate([params.beta, params.theta, params.log_dispersion[None]])


def unflat(x, p: int) -> Params:
    return Params(x[:p], x[p:-1], x[-1])


# --- Values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reml", [False, True])
@pytest.mark.parametrize("blocks", STRUCTURES)
def test_marginal_is_the_dense_normal(x64, blocks, reml):
    data = simulated(blocks)
    cross = data.cross()
    params = random_params(cross)
    factor = np.asarray(cross.covariance.factor(params.theta))
    expected = data.dense_loglik(np.asarray(params.beta), factor, np.exp(float(params.log_dispersion)), reml)
    objective = GaussianMarginal(reml=reml)
    np.testing.assert_allclose(jax.jit(objective)(params, cross), expected, rtol=1e-11)


def test_marginal_of_a_linear_model(x64):
    data = simulated()
    cross = data.cross(codes=None)
    params = Params(jnp.array([0.3, -1.0, 0.2]), jnp.zeros(0), jnp.array(-0.2))
    for reml in (False, True):
        expected = data.dense_loglik(np.asarray(params.beta), np.zeros((2, 2)), np.exp(-0.2), reml)
        np.testing.assert_allclose(GaussianMarginal(reml)(params, cross), expected, rtol=1e-12)


@pytest.mark.parametrize("reml", [False, True])
def test_marginal_gradient_by_finite_differences_in_both_modes(x64, reml):
    data = simulated()
    cross = data.cross()
    x = flat(random_params(cross))
    f = jax.jit(lambda x: GaussianMarginal(reml)(unflat(x, cross.p), cross))
    expected = differences(f, x)
    reverse, forward = jax.jit(lambda x: (jax.grad(f)(x), jax.jacfwd(f)(x)))(x)
    np.testing.assert_allclose(reverse, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(forward, expected, rtol=1e-6, atol=1e-7)


def test_marginal_under_vmap(x64):
    cross = simulated().cross()
    many = jnp.stack([flat(random_params(cross, seed)) for seed in range(3)])
    f = lambda x: GaussianMarginal()(unflat(x, cross.p), cross)
    one = jax.jit(f)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(many), [one(x) for x in many], rtol=1e-12)


def test_double_precision_arrays_are_refused_while_x64_is_off():
    cross = simulated().cross()
    with jax.enable_x64(False), pytest.raises(DataError, match="enable_x64"):
        GaussianMarginal()(Params(jnp.zeros(3), jnp.zeros(3), jnp.zeros(())), cross)


def test_rows_of_weight_zero_and_groups_without_rows_do_not_count(x64):
    data = simulated()
    dropped = np.arange(60) % 7 == 0
    weights = np.where(dropped, 0.0, data.weights)
    kept = {name: getattr(data, name)[~dropped] for name in ("y", "X", "codes", "weights", "offset")}
    with_zeros = data.cross(weights=weights, n_groups=data.n_groups + 5)
    without = data.cross(**kept, z=data.z[:, ~dropped])
    params = random_params(without)
    for reml in (False, True):
        f = jax.jit(GaussianMarginal(reml))
        np.testing.assert_allclose(f(params, with_zeros), f(params, without), rtol=1e-12)


def test_several_blocks_of_groups_give_the_same_sums(x64, monkeypatch):
    data = simulated(n=400, n_groups=120)
    whole = data.cross()
    monkeypatch.setattr("jaxglmm.design.crossproducts._BLOCK", 16)
    cut = data.cross()
    assert whole.ztz.shape[0] == 1 and cut.ztz.shape[0] == 8
    params = random_params(whole)
    f = jax.jit(GaussianMarginal())
    np.testing.assert_allclose(f(params, cut), f(params, whole), rtol=1e-12)
    raw = np.array([0.7, 0.2, 0.4])
    for a, b in zip(jax.tree.leaves(expand(raw, cut)), jax.tree.leaves(expand(raw, whole)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


# --- Derivatives -------------------------------------------------------------------------------------------


def differences(f, x, h=1e-5) -> np.ndarray:
    """Central differences of f in each entry of x, on a last axis."""
    steps = h * np.eye(len(x))
    return np.stack([(np.asarray(f(x + step)) - np.asarray(f(x - step))) / (2 * h) for step in steps], axis=-1)


@pytest.mark.parametrize("blocks", STRUCTURES)
def test_expansion(x64, blocks):
    """The first derivatives against automatic ones, the second against differences of the first."""
    cross = simulated(blocks).cross()
    raw = np.random.default_rng(3).normal(size=len(cross.covariance.diagonal))
    f = lambda x: moments(cross.covariance.raw_factor(x), cross)
    here = expand(raw, cross)
    expected = jax.jit(lambda x: (f(x), jax.jacfwd(f)(x)))(raw)
    for a, b in zip(jax.tree.leaves(here[:2]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max())
    for name in ("log_det", "gram"):
        slope = differences(lambda x, name=name: getattr(expand(x, cross).first, name), raw)
        second = getattr(here.second, name)
        np.testing.assert_allclose(second, slope, rtol=1e-6, atol=1e-7 * np.abs(slope).max())


@pytest.mark.parametrize("reml", [False, True])
@pytest.mark.parametrize("blocks", [((0,),), ((0, 1),)])
def test_profile_derivatives(x64, blocks, reml):
    cross = simulated(blocks).cross()
    raw = np.random.default_rng(3).normal(size=len(cross.covariance.diagonal))
    profile = lambda x: GaussianProfile(expand(x, cross), cross, x, reml=reml)
    value = jax.jit(lambda x: profiled_loglik(cross.covariance.raw_factor(x), cross, reml=reml))(raw)
    at = profile(raw)
    np.testing.assert_allclose(at.value, value, rtol=1e-12)
    np.testing.assert_allclose(at.gradient, differences(lambda x: profile(x).value, raw), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(at.hessian, differences(lambda x: profile(x).gradient, raw), rtol=1e-6, atol=1e-6)


def test_derivatives_in_sigma_with_the_absolute_factor_held(x64):
    cross = simulated().cross()
    factor, rho, h = np.array([0.9, 0.3, 0.5]), 0.1, 1e-4

    def at(rho):
        return GaussianProfile(expand(raw := factor * np.exp(-rho), cross), cross, raw, reml=True, log_sigma=rho)

    first, second = at(rho).sigma_derivatives()
    up, down = at(rho + h), at(rho - h)
    np.testing.assert_allclose(first, (up.value - down.value) / (2 * h), rtol=1e-6)
    slopes = up.sigma_derivatives()[0] - down.sigma_derivatives()[0]
    np.testing.assert_allclose(second, slopes / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("blocks", [((0,),), ((0, 1),), ((0,), (1,))])
def test_covariance_is_the_inverse_hessian_of_the_marginal(x64, blocks):
    cross = simulated(blocks, n=200, n_groups=30).cross()
    for reml in (False, True):
        fit = fit_gaussian(cross, reml=reml)
        theta = cross.covariance.theta(fit.factor)
        x = jnp.concatenate([fit.beta, theta, jnp.log(jnp.array([fit.sigma]))])
        f = lambda x, reml=reml: GaussianMarginal(reml)(unflat(x, cross.p), cross)
        p = cross.p if reml else 0
        both = jax.jit(jax.value_and_grad(f))
        value, gradient = both(x)
        np.testing.assert_allclose(value, fit.loglik, rtol=1e-12)
        np.testing.assert_allclose(gradient, 0, atol=1e-7)
        expected = np.linalg.inv(-differences(lambda x, both=both: both(x)[1], x)[p:, p:])
        np.testing.assert_allclose(fit.covariance[p:, p:], expected, rtol=1e-5, atol=1e-8)
        if reml:
            np.testing.assert_array_equal(fit.covariance[:p, :p], fit.vcov_given)
            assert not fit.covariance[:p, p:].any()


@pytest.mark.parametrize("n", [3, 512, 20_000])
def test_cross_products_of_many_rows(n):
    rng = np.random.default_rng(n)
    X, y, w = rng.normal(size=(n, 4)), rng.normal(size=n), rng.uniform(0.5, 2, n)
    codes = rng.integers(0, 3, n)
    cross = cross_products(y, X, weights=w, codes=codes, n_groups=3)
    V = np.column_stack([X, y - X @ cross.origin])
    np.testing.assert_allclose(cross.vtv, V.T @ (w[:, None] * V), rtol=1e-10, atol=1e-9)
    for g in range(3):
        rows = codes == g
        np.testing.assert_allclose(cross.ztv[0, :, 0, g], w[rows] @ V[rows], rtol=1e-10, atol=1e-9)
