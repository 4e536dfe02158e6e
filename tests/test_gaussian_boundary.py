"""Gaussian fits with zero variances and correlations of one: found exactly, and beaten by nobody."""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportCallIssue=false

from __future__ import annotations

import jax
import numpy as np
import pytest
from gaussian_data import Data, simulated

from jaxglmm.design.crossproducts import cross_products
from jaxglmm.objectives.gaussian_expansion import expand
from jaxglmm.objectives.gaussian_profile import GaussianProfile
from jaxglmm.optimise.gaussian_fit import fit_gaussian, gaussian_modes, reliability


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
