"""The exact Gaussian likelihood against dense linear algebra, its fit against stored results of lme4 and glmmTMB."""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportCallIssue=false

from __future__ import annotations

import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxglmm.design.crossproducts import CrossProducts, cross_products
from jaxglmm.errors import DataError
from jaxglmm.objectives.gaussian import GaussianMarginal, moments, profiled_loglik
from jaxglmm.objectives.gaussian_expansion import _group_sums, expand
from jaxglmm.objectives.gaussian_profile import GaussianProfile
from jaxglmm.objectives.params import Params
from jaxglmm.optimise.gaussian_fit import fit_gaussian, gaussian_modes, reliability


STRUCTURES = [((0,),), ((0, 1),), ((0,), (1,)), ((0, 2), (1,)), ((0, 1, 2),)]


@dataclass
class Data:
    y: np.ndarray
    X: np.ndarray
    codes: np.ndarray
    z: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    n_groups: int
    blocks: tuple[tuple[int, ...], ...]

    def cross(self, **changes) -> CrossProducts:
        given = {**self.__dict__, **changes}
        return cross_products(given.pop("y"), given.pop("X"), **given)

    def covariance(self, factor, sigma) -> np.ndarray:
        """Var(y), the whole n x n matrix."""
        wide = np.zeros((len(self.y), self.n_groups, len(self.z)))
        wide[np.arange(len(self.y)), self.codes] = self.z.T
        effects = np.kron(np.eye(self.n_groups), factor @ factor.T)
        flat = wide.reshape(len(self.y), -1)
        return sigma**2 * np.diag(1 / self.weights) + flat @ effects @ flat.T

    def dense_loglik(self, beta, factor, sigma, reml=False) -> float:
        """log N(y; X beta + offset, V), or the restricted log-likelihood (Harville 1974, without log |X'X|)."""
        V, X = self.covariance(factor, sigma), self.X
        inverse, log_det, n = np.linalg.inv(V), np.linalg.slogdet(V)[1], len(self.y)
        if reml:
            information = X.T @ inverse @ X
            beta = np.linalg.solve(information, X.T @ inverse @ (self.y - self.offset))
            log_det += np.linalg.slogdet(information)[1]
            n -= X.shape[1]
        r = self.y - self.offset - X @ beta
        return -0.5 * (n * np.log(2 * np.pi) + log_det + r @ inverse @ r)


def simulated(blocks=((0, 1),), n=60, n_groups=9, p=3, seed=0, sds=0.8) -> Data:
    rng = np.random.default_rng(seed)
    size = sum(len(block) for block in blocks)
    z = np.vstack([np.ones(n), rng.normal(size=(size - 1, n))])
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))])
    codes = np.append(rng.integers(0, n_groups, n - n_groups), np.arange(n_groups))
    weights, offset = rng.uniform(0.5, 2.0, n), rng.normal(size=n)
    b = sds * rng.normal(size=(n_groups, size))
    y = X @ rng.normal(size=p) + offset + (z.T * b[codes]).sum(1) + rng.normal(size=n) / np.sqrt(weights)
    return Data(y, X, codes, z, weights, offset, n_groups, blocks)


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


# --- Fits --------------------------------------------------------------------------------------------------


def frame(reference_dir, name: str, model: str) -> CrossProducts:
    table = pd.read_csv(reference_dir / f"{name}.csv")
    if name == "Dyestuff":
        y, X, group = table["Yield"], np.ones((len(table), 1)), table["Batch"]
    else:
        y, X, group = table["Reaction"], np.column_stack([np.ones(len(table)), table["Days"]]), table["Subject"]
    z = X.T if model.startswith("slope") else X.T[:1]
    blocks = ((0,), (1,)) if model == "slope_uncorrelated" else None
    return cross_products(y.to_numpy(), X, codes=pd.Categorical(group).codes, z=z, blocks=blocks)


CASES = [("Dyestuff", "intercept")] + [("sleepstudy", m) for m in ("slope", "slope_uncorrelated", "intercept")]


@pytest.mark.parametrize("reml", [False, True], ids=["ml", "reml"])
@pytest.mark.parametrize("name, model", CASES)
def test_stored_results(reference_dir, name, model, reml):
    cross = frame(reference_dir, name, model)
    fit = fit_gaussian(cross, reml=reml)
    assert fit.converged and not fit.singular and fit.decrement < 1e-12
    stored = json.loads((reference_dir / f"{name}.json").read_text())["fits"]
    lmer, other = (
        next(f for f in stored if f["id"] == f"{model}_{engine}_{fit.method}") for engine in ("lmer", "glmmTMB")
    )
    for ref in (lmer, other):
        assert abs(fit.loglik - ref["logLik"]) < 1e-8
        se = np.asarray(ref["fixef"]["se"])
        assert np.all(np.abs(fit.beta - ref["fixef"]["estimate"]) < 1e-6 * se)
        sds = np.concatenate([term["sd"] for term in ref["varcomp"]])
        np.testing.assert_allclose(np.sqrt(np.square(fit.factor).sum(1)), sds, rtol=1e-8)
        np.testing.assert_allclose(fit.sigma, ref["sigma"], rtol=1e-8)
        modes, covariance = gaussian_modes(cross, fit)
        conditional = np.asarray(lmer["ranef"][0]["cond_sd"])
        assert np.max(np.abs(modes - ref["ranef"][0]["mode"]) / conditional) < 1e-6
    np.testing.assert_allclose(np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)), conditional, rtol=1e-8)
    np.testing.assert_allclose(fit.vcov_given, lmer["vcov"], rtol=1e-7)
    if reml:
        np.testing.assert_allclose(fit.vcov, lmer["vcov"], rtol=1e-7)
    else:
        np.testing.assert_allclose(np.sqrt(np.diag(fit.vcov)), other["full"]["beta_se"], rtol=1e-8)


def test_balanced_one_way_layout_in_closed_form():
    rng = np.random.default_rng(5)
    groups, rows = 40, 4
    y = (rng.normal(size=(groups, 1)) + rng.normal(size=(groups, rows))).ravel()
    codes = np.repeat(np.arange(groups), rows)
    fit = fit_gaussian(cross_products(y, np.ones((len(y), 1)), codes=codes), reml=True)
    table = y.reshape(groups, rows)
    within = table.var(axis=1, ddof=1).mean()
    between = rows * table.mean(1).var(ddof=1)
    np.testing.assert_allclose(fit.sigma**2, within, rtol=1e-9)
    np.testing.assert_allclose(fit.factor[0, 0] ** 2, (between - within) / rows, rtol=1e-9)
    cross = cross_products(y, np.ones((len(y), 1)), codes=codes)
    share = reliability(fit.factor, gaussian_modes(cross, fit)[1])
    tau2 = fit.factor[0, 0] ** 2
    np.testing.assert_allclose(share, tau2 / (tau2 + within / rows), rtol=1e-9)


def test_modes_against_dense_regression_on_the_data():
    data = simulated(((0, 1),))
    cross = data.cross()
    fit = fit_gaussian(cross)
    V = data.covariance(fit.factor, fit.sigma)
    mode, covariance = gaussian_modes(cross, fit)
    r = np.linalg.solve(V, data.y - data.offset - data.X @ fit.beta)
    variance = fit.factor @ fit.factor.T
    for g in range(data.n_groups):
        rows = data.codes == g
        loading = variance @ data.z[:, rows]
        np.testing.assert_allclose(mode[g], loading @ r[rows], rtol=1e-8, atol=1e-10)
        left = variance - loading @ np.linalg.solve(V[np.ix_(rows, rows)], loading.T)
        np.testing.assert_allclose(covariance[g], left, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("reml", [False, True])
def test_linear_model(reml):
    data = simulated(n=50, p=4)
    fit = fit_gaussian(data.cross(codes=None), reml=reml)
    root = np.sqrt(data.weights)
    Xw, yw = data.X * root[:, None], (data.y - data.offset) * root
    beta, rss = np.linalg.lstsq(Xw, yw, rcond=None)[:2]
    n = 46 if reml else 50
    np.testing.assert_allclose(fit.beta, beta, rtol=1e-9)
    np.testing.assert_allclose(fit.sigma**2, rss[0] / n, rtol=1e-10)
    np.testing.assert_allclose(fit.vcov, fit.sigma**2 * np.linalg.inv(Xw.T @ Xw), rtol=1e-9)
    assert abs(fit.loglik - data.dense_loglik(beta, np.zeros((2, 2)), fit.sigma, reml)) < 1e-9
    np.testing.assert_allclose(fit.covariance[-1, -1], 1 / (2 * n), rtol=1e-9)
    assert fit.factor is None and not fit.singular


def test_no_fixed_effects(x64):
    data = simulated(n=80, n_groups=12)
    cross = data.cross(X=np.zeros((80, 0)))
    fit = fit_gaussian(cross)
    data.X = np.zeros((80, 0))
    assert fit.converged and fit.beta.shape == (0,) and fit.vcov.shape == (0, 0)
    assert abs(fit.loglik - data.dense_loglik(np.zeros(0), fit.factor, fit.sigma)) < 1e-9


def test_held_factor():
    data = simulated(n=120, n_groups=20)
    cross, factor = data.cross(), np.array([[0.5, 0.0], [0.2, 1.1]])
    for reml in (False, True):
        fit = fit_gaussian(cross, reml=reml, factor=factor)
        np.testing.assert_allclose(fit.factor, factor, rtol=1e-12)
        there, above, below = (data.dense_loglik(fit.beta, factor, fit.sigma * c, reml) for c in (1, 1.001, 0.999))
        assert abs(fit.loglik - there) < 1e-9 and there > max(above, below)
        V = data.covariance(factor, fit.sigma)
        np.testing.assert_allclose(fit.vcov_given, np.linalg.inv(data.X.T @ np.linalg.solve(V, data.X)), rtol=1e-8)
        assert not fit.covariance[3:6].any() and fit.covariance[6, 6] > 0


@pytest.mark.parametrize("reml", [False, True])
def test_units_do_not_matter(reml):
    data = simulated(n=150, n_groups=25)
    plain = fit_gaussian(data.cross(), reml=reml)
    z_unit, y_unit = np.array([1e3, 1e-4]), 1e4
    y, offset, z = y_unit * data.y, y_unit * data.offset, data.z * z_unit[:, None]
    scaled = fit_gaussian(data.cross(y=y, offset=offset, z=z, weights=data.weights / 50), reml=reml)
    assert scaled.converged and scaled.iterations == plain.iterations
    np.testing.assert_allclose(scaled.factor * z_unit[:, None] / y_unit, plain.factor, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(scaled.beta / y_unit, plain.beta, rtol=1e-8)
    np.testing.assert_allclose(scaled.sigma / y_unit * np.sqrt(50), plain.sigma, rtol=1e-8)


def test_a_far_away_mean_costs_no_digits():
    data = simulated(n=150, n_groups=25)
    near, far = fit_gaussian(data.cross()), fit_gaussian(data.cross(y=data.y + 1e8))
    assert abs(near.loglik - far.loglik) < 1e-5  # y itself has lost eight digits
    np.testing.assert_allclose(far.factor, near.factor, rtol=1e-6, atol=1e-7)


def test_large_ratio_of_variances():
    data = simulated(((0,),), n=300, n_groups=60, sds=3000.0)
    fit = fit_gaussian(data.cross())
    assert fit.converged and 2000 < fit.factor[0, 0] < 4000 and 0.7 < fit.sigma < 1.4
    assert abs(fit.loglik - data.dense_loglik(fit.beta, fit.factor, fit.sigma)) < 1e-5


def test_second_fit_of_like_shapes_compiles_nothing():
    first, second = simulated(seed=1, n=300, n_groups=201), simulated(seed=2, n=310, n_groups=209)
    fit_gaussian(first.cross())
    compiled = lambda: _group_sums._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    before = compiled()
    fit_gaussian(second.cross(), reml=True)
    fit_gaussian(second.cross(blocks=((0,), (1,))))
    assert compiled() == before


# --- The boundary ------------------------------------------------------------------------------------------


def negative_correlation(n_groups=30) -> Data:
    """Rows of a group repel each other: the best variance between groups is zero."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(n_groups), 4)
    y = rng.normal(size=(n_groups, 4))
    y = (y - 0.9 * y.mean(1, keepdims=True)).ravel()
    x = rng.normal(size=len(y))
    X, z = np.column_stack([np.ones(len(y)), x]), np.vstack([np.ones(len(y)), x])
    return Data(y, X, codes, z, np.ones(len(y)), np.zeros(len(y)), n_groups, ((0,), (1,)))


@pytest.mark.parametrize("reml", [False, True])
def test_zero_variance_is_found_exactly_and_flagged(reml):
    data = negative_correlation()
    cross = data.cross(z=data.z[:1], blocks=None)
    fit = fit_gaussian(cross, reml=reml)
    linear = fit_gaussian(data.cross(codes=None), reml=reml)
    assert fit.singular and fit.converged and fit.factor[0, 0] == 0.0
    np.testing.assert_array_equal(fit.boundary, [False, False, True, False])
    assert fit.loglik == pytest.approx(linear.loglik, abs=1e-10)
    np.testing.assert_allclose(fit.vcov, linear.vcov, rtol=1e-9)
    assert not fit.covariance[2].any() and np.isfinite(fit.covariance).all() and not fit.vcov_jacobian[0].any()
    # The score in the variance at the linear model: (1/2) sum_g [(sum s)^2 - sum w], plus REML's share of X.
    r = data.y - data.X @ linear.beta
    totals = np.bincount(data.codes, r) / linear.sigma**2
    score = 0.5 * (totals @ totals - len(r) / linear.sigma**2)
    if reml:
        sums = np.stack([np.bincount(data.codes, column) for column in data.X.T])
        score += 0.5 * np.trace(linear.vcov @ (sums @ sums.T)) / linear.sigma**4
    assert fit.score_at_zero == pytest.approx(score, rel=1e-8) and score < 0
    assert not gaussian_modes(cross, fit)[0].any()
    assert not reliability(fit.factor, gaussian_modes(cross, fit)[1]).any()


def test_one_of_two_independent_variances_zero():
    data = negative_correlation(60)
    data.y = data.y + np.random.default_rng(4).normal(size=60)[data.codes] * data.z[1]
    fit = fit_gaussian(data.cross())
    assert fit.converged and fit.factor[0, 0] == 0.0 and 0.7 < fit.factor[1, 1] < 1.4
    np.testing.assert_array_equal(fit.boundary, [False, False, True, False, False])
    alone = fit_gaussian(data.cross(z=data.z[1:], blocks=None))
    assert fit.loglik == pytest.approx(alone.loglik, abs=1e-9)
    np.testing.assert_allclose(fit.vcov, alone.vcov, rtol=1e-6)


def test_perfect_correlation():
    rng = np.random.default_rng(11)
    data = simulated(((0, 1),), n=240, n_groups=40)
    b = rng.normal(size=40)[:, None] * [1.0, -0.7]
    data.y = data.X @ [1.0, 0.5, -0.5] + (data.z.T * b[data.codes]).sum(1) + rng.normal(size=240)
    data.offset, data.weights = np.zeros(240), np.ones(240)
    fit = fit_gaussian(data.cross())
    assert fit.converged
    if fit.singular:  # correlation -1: one column of the factor is zero
        assert fit.factor[1, 1] == 0.0
        assert fit.score_at_zero is not None and fit.score_at_zero <= 0
        correlation = fit.factor[1, 0] / np.abs(fit.factor[1, 0])
        assert correlation == -1.0
    values = [data.dense_loglik(fit.beta, fit.factor + step, fit.sigma) for step in _nearby(fit.factor)]
    assert fit.loglik >= max(values) - 1e-9


# Log-likelihoods (ML, REML) by lmer of R, the largest of its optimisers bobyqa, Nelder_Mead and nloptwrap with
# tolerances of 1e-10, for the responses of `nearly_singular` of these seeds.
NEARLY_SINGULAR = {
    9: (-861.053543268282, -857.423309067520),
    24: (-862.486199655116, -859.102728116378),
    44: (-868.228637273534, -864.919541230395),
    58: (-851.203877222049, -848.672565217105),
    88: (-819.971383964189, -817.767243591957),
    129: (-863.991810091950, -860.335181639914),
    144: (-868.462534469018, -865.085831414956),
    224: (-837.217931792888, -834.076771140555),
    289: (-850.868072101325, -847.520376412284),
    294: (-842.157015476150, -838.923989470749),
    318: (-818.407282169080, -815.919540973164),
    369: (-878.725869307444, -874.922687752107),
}


def nearly_singular(seed) -> Data:
    """18 groups of 10 days: no or little variance of the intercept or slope, or a correlation near +-1."""
    rng = np.random.default_rng(seed)
    days, codes = np.tile(np.arange(10.0), 18), np.repeat(np.arange(18), 10)
    sds, rho, sigma = [25.0, 6.0], 0.0, 25.0
    kind = seed % 5
    if kind == 0:
        sds[1] = 0.0
    elif kind == 1:
        rho = 0.999 * rng.choice([-1, 1])
    elif kind == 2:
        sds[1], sigma = rng.uniform(0, 1.5), 40.0
    elif kind == 3:
        sds = [rng.uniform(0, 5), rng.uniform(0, 2)]
    else:
        sds[0] = 0.0
    b = rng.standard_normal((18, 2))
    b[:, 1] = rho * b[:, 0] + np.sqrt(1 - rho**2) * b[:, 1]
    b *= sds
    y = 250 + 10 * days + b[codes, 0] + b[codes, 1] * days + sigma * rng.standard_normal(180)
    z = np.stack([np.ones(180), days])
    return Data(y, z.T, codes, z, np.ones(180), np.zeros(180), 18, ((0, 1),))


@pytest.mark.parametrize("reml", [False, True])
def test_fits_near_the_boundary_reach_what_lmer_reaches(reml):
    for seed, known in NEARLY_SINGULAR.items():
        fit = fit_gaussian(nearly_singular(seed).cross(), reml=reml)
        assert fit.converged and -1e-10 < fit.decrement < 1e-8, seed
        assert fit.loglik >= known[reml] - 1e-8 * abs(known[reml]), seed
        C = fit.factor @ fit.factor.T
        assert fit.singular == (abs(np.linalg.det(C)) <= 1e-12 * C[0, 0] * C[1, 1]), seed


def test_every_fit_near_the_boundary_converges():
    for seed in range(250):
        assert fit_gaussian(nearly_singular(seed).cross(), reml=seed % 2 == 0).converged, seed


def test_the_order_of_three_effects_does_not_matter():
    """Rank 0 to 2 of 3 x 3: the boundary is reached along many ways."""
    codes = np.repeat(np.arange(12), 8)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        z = np.stack([np.ones(96), np.tile(np.arange(8.0), 12), rng.standard_normal(96)])
        rank = seed % 3
        L = rng.standard_normal((3, rank)) * np.array([5, 1, 4])[:, None] * rng.uniform(0.05, 1)
        y = ((rng.standard_normal((12, rank)) @ L.T)[codes] * z.T).sum(1) + 3 * rng.standard_normal(96)
        fits = [fit_gaussian(cross_products(y, z.T, codes=codes, z=z[o])) for o in ([0, 1, 2], [2, 1, 0])]
        assert all(fit.converged for fit in fits), seed
        assert fits[0].loglik == pytest.approx(fits[1].loglik, rel=1e-9), seed
        C, other = (fit.factor @ fit.factor.T for fit in fits)
        np.testing.assert_allclose(C, other[::-1, ::-1], rtol=1e-3, atol=1e-4 * np.trace(C))


def _nearby(factor):
    for i, j in [(0, 0), (1, 0), (1, 1)]:
        for h in (1e-3, -1e-3, 0.1, -0.1):
            step = np.zeros_like(factor)
            step[i, j] = h
            yield step


def test_no_better_point_than_the_fit_over_many_data_sets():
    """Few groups of noise: about half of these fits are singular; none is beaten from random starts."""
    from scipy.optimize import minimize

    singular = 0
    for seed in range(12):
        data = simulated(((0, 1),) if seed % 2 else ((0,),), n=24, n_groups=6, p=2, seed=seed, sds=0.2)
        cross = data.cross()
        fit = fit_gaussian(cross)
        singular += fit.singular
        assert fit.converged

        def negative(x, cross=cross):
            factor = np.zeros((cross.n_effects,) * 2)
            factor[cross.covariance.entries] = x
            value = GaussianProfile(expand(x, cross), cross, x, reml=False)
            return -value.value, -value.gradient

        with jax.enable_x64(True):
            for start in (0.05, 0.5, 3.0):
                x0 = start * (1.0 + 0.3 * np.random.default_rng(seed).normal(size=len(cross.covariance.diagonal)))
                found = minimize(negative, x0, jac=True, method="BFGS")
                assert fit.loglik >= -found.fun - 1e-7, (seed, start, fit.factor)
        if fit.singular:
            assert fit.score_at_zero is not None and fit.score_at_zero <= 0
    assert 2 <= singular <= 10


# --- What is refused ---------------------------------------------------------------------------------------


def test_groups_of_one_row_each_are_refused():
    y = np.random.default_rng(0).normal(size=20)
    with pytest.raises(DataError, match="20 levels for 20 rows"):
        fit_gaussian(cross_products(y, np.ones((20, 1)), codes=np.arange(20)))


def test_as_many_columns_as_rows_are_refused():
    with pytest.raises(DataError, match="more rows than fixed-effect columns"):
        fit_gaussian(cross_products(np.arange(3.0), np.eye(3)))


def test_a_perfect_fit_and_collinear_columns_are_refused():
    x = np.arange(12.0)
    codes = np.arange(12) % 3
    with pytest.raises(DataError, match="duplicate columns"):
        fit_gaussian(cross_products(x**2, np.column_stack([np.ones(12), x, x]), codes=codes))


@pytest.mark.parametrize("codes", [None, np.arange(40) % 5])
def test_a_response_that_its_columns_determine_is_refused(codes):
    x = np.linspace(0, 7, 40)
    X = np.column_stack([np.ones(40), x])
    with pytest.raises(DataError, match="fit the response perfectly"):
        fit_gaussian(cross_products(1 + 2 * x, X, codes=codes))
    noise = 1e-9 * np.random.default_rng(0).normal(size=40)
    assert fit_gaussian(cross_products(1 + 2 * x + noise, X, codes=codes)).sigma < 2e-9


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
