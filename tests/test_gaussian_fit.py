"""Gaussian fits against stored results of lme4 and glmmTMB, closed forms and dense linear algebra."""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportCallIssue=false

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from gaussian_data import simulated

from jaxglmm.design.crossproducts import CrossProducts, cross_products
from jaxglmm.errors import DataError
from jaxglmm.objectives.gaussian_expansion import _group_sums
from jaxglmm.optimise.gaussian_fit import fit_gaussian, gaussian_modes, reliability


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
