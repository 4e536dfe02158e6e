"""Satterthwaite's degrees of freedom against textbook values and lmerTest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from jaxglmm.design.crossproducts import cross_products
from jaxglmm.inference.satterthwaite import Satterthwaite
from jaxglmm.optimise.gaussian_fit import fit_gaussian


def inference_of(fit) -> Satterthwaite:
    p = len(fit.beta)
    return Satterthwaite(fit.vcov_given, fit.vcov_jacobian, fit.covariance[p:, p:])


def test_sleepstudy(reference_dir):
    table = pd.read_csv(reference_dir / "sleepstudy.csv")
    X = np.column_stack([np.ones(len(table)), table["Days"]])
    codes = pd.Categorical(table["Subject"]).codes
    fit = fit_gaussian(cross_products(table["Reaction"].to_numpy(), X, codes=codes, z=X.T), reml=True)
    np.testing.assert_allclose(inference_of(fit).df(np.eye(2)), 17.0, rtol=1e-8)


def test_dyestuff(reference_dir):
    table = pd.read_csv(reference_dir / "Dyestuff.csv")
    codes = pd.Categorical(table["Batch"]).codes
    cross = cross_products(table["Yield"].to_numpy(), np.ones((len(table), 1)), codes=codes)
    np.testing.assert_allclose(inference_of(fit_gaussian(cross, reml=True)).df([1.0]), [5.0], rtol=1e-8)


# lmerTest 3.1-3, lmer(y ~ x + f + (1 | g), weights = w) of the data below, bobyqa to rhoend 1e-13: log-likelihood,
# standard errors, degrees of freedom, and contest() of f: F and the denominator's degrees of freedom.
LMERTEST = {
    True: (
        -98.196886123770,
        [0.619227775348, 0.199210283258, 0.338385955383, 0.345073736229],
        [5.64940379813, 51.08080081294, 51.08485865638, 51.30110250231],
        (0.155246939382, 51.1161665308),
    ),
    False: (
        -97.403081725521,
        [0.566720410504, 0.193619293668, 0.328888059127, 0.335338602415],
        [6.88780865612, 54.06293497169, 54.06709712768, 54.32918412156],
        (0.168876230063, 54.1052806762),
    ),
}


@pytest.mark.parametrize("reml", [True, False])
def test_unbalanced_weighted_data_against_lmertest(reml):
    i = np.arange(60)
    codes = (i * i * 7 + i) % 11
    x, level, weights = np.sin(i * 1.3), (i * 5 + i // 7) % 3, 1 + (i % 4) / 2
    y = 1 + 0.5 * x + 1.5 * np.cos(codes * 2.1) + np.sin(i * 12.9898) * 1.3 + np.cos(i * 78.233)
    X = np.column_stack([np.ones(60), x, level == 1, level == 2])
    codes = np.unique(codes, return_inverse=True)[1]
    fit = fit_gaussian(cross_products(y, X, codes=codes, weights=weights), reml=reml)
    loglik, se, df, (F, df2) = LMERTEST[reml]
    assert fit.loglik == pytest.approx(loglik, abs=1e-8)
    np.testing.assert_allclose(np.sqrt(np.diag(fit.vcov_given)), se, rtol=1e-6)
    tests = inference_of(fit)
    # lmerTest differentiates numerically.
    np.testing.assert_allclose(tests.df(np.eye(4)), df, rtol=1e-5)
    np.testing.assert_allclose(tests.f_test(np.eye(4)[2:], fit.beta), (F, 2, df2), rtol=1e-5)


def test_linear_model_has_the_residual_degrees_of_freedom():
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(30), rng.normal(size=(30, 2))])
    y = X @ [1.0, 0.5, 0.0] + rng.normal(size=30)
    tests = inference_of(fit_gaussian(cross_products(y, X), reml=True))
    np.testing.assert_allclose(tests.df(np.eye(3)), 27.0, rtol=1e-9)
    fit = fit_gaussian(cross_products(y, X), reml=True)
    F, q, df = tests.f_test(np.eye(3)[1:], fit.beta)
    rss = lambda X: np.linalg.lstsq(X, y, rcond=None)[1][0]
    np.testing.assert_allclose(F, (rss(X[:, :1]) - rss(X)) / 2 / (rss(X) / 27), rtol=1e-9)
    assert q == 2 and df == pytest.approx(27.0)


def test_contrasts_of_one_dimension_and_of_deficient_rank():
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(12), 5)
    X = np.column_stack([np.ones(60), rng.normal(size=(60, 2))])
    y = X @ [0.0, 1.0, 1.0] + rng.normal(size=12)[codes] + rng.normal(size=60)
    fit = fit_gaussian(cross_products(y, X, codes=codes), reml=True)
    tests = inference_of(fit)
    F, q, df = tests.f_test([0.0, 1.0, 0.0], fit.beta)
    assert q == 1 and df == pytest.approx(tests.df([0.0, 1.0, 0.0])[0])
    assert F == pytest.approx(fit.beta[1] ** 2 / fit.vcov_given[1, 1])
    twice = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    (F, q, df), (F2, q2, df2) = tests.f_test(twice, fit.beta), tests.f_test(twice[:2], fit.beta)
    assert q == q2 == 2 and pytest.approx(F2) == F
    assert df == pytest.approx(df2, rel=1e-3)  # it depends a little on how the hypothesis is written
    with pytest.raises(ValueError, match="3 fixed effects"):
        tests.df([1.0, 0.0])
    with pytest.raises(ValueError, match="contrasts are zero"):
        tests.f_test(np.zeros((1, 3)), fit.beta)
