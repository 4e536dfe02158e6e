"""Diagnostics of the true model: quantile residuals are standard normal, and overdispersion is 1."""

# pyright: reportOptionalSubscript=false

import numpy as np
import pytest
from scipy import stats

import jaxglmm as jg
from jaxglmm.fitted import predictive


def drawn(family, rng, eta):
    mu = np.exp(eta)
    if family == "poisson":
        return rng.poisson(mu) * 1.0, None
    if family == "negativebinomial":
        return rng.poisson(rng.gamma(2, mu / 2)) * 1.0, None
    if family == "gamma":
        return rng.gamma(3, mu / 3), None
    if family == "gaussian":
        return eta + rng.normal(size=len(eta)), None
    if family == "beta":
        m = 1 / (1 + np.exp(-eta))
        return np.clip(rng.beta(8 * m, 8 * (1 - m)), 1e-9, 1 - 1e-9), None
    trials = rng.integers(1, 7, len(eta))
    return rng.binomial(trials, 1 / (1 + np.exp(-eta))) / trials, trials


def simulated(family, seed, groups=200, rows=2, tau=1.0, **options):
    rng = np.random.default_rng(seed)
    g, x = np.repeat(np.arange(groups), rows), rng.normal(size=groups * rows)
    y, weights = drawn(family, rng, 0.3 + 0.5 * x + tau * rng.normal(size=groups)[g])
    return jg.fit("y ~ x + (1 | g)", {"y": y, "x": x, "g": g}, family=family, weights=weights, **options)


@pytest.mark.parametrize("family", ["poisson", "negativebinomial", "gamma", "binomial", "gaussian"])
def test_two_rows_a_group_do_not_condemn_the_true_model(family):
    fits = [simulated(family, seed) for seed in range(4)]
    r = np.array([fit.residuals("quantile", seed=0) for fit in fits])
    assert min(stats.kstest(v, "norm").pvalue for v in r) > 0.005
    assert r.std() == pytest.approx(1, abs=0.06)
    assert np.mean([fit.overdispersion["ratio"] for fit in fits]) == pytest.approx(1, abs=0.15)


def test_binary_rows():
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(150), 2)
    y = (rng.random(300) < 1 / (1 + np.exp(-1.5 * rng.normal(size=150)[g]))) * 1.0
    fit = jg.fit("y ~ 1 + (1 | g)", {"y": y, "g": g}, family="binomial")
    assert stats.kstest(fit.residuals("quantile"), "norm").pvalue > 0.01
    counts = jg.fit("cbind(y, 1 - y) ~ 1 + (1 | g)", {"y": y, "g": g}, family="binomial")
    for fitted in (fit, counts, jg.fit("y ~ 1", {"y": y}, family="poisson"), jg.fit("y ~ 1", {"y": y})):
        with pytest.raises(jg.DataError, match="0 or 1, one trial a row"):
            _ = fitted.overdispersion
    more = {"s": np.append(y, [3, 2, 4]), "n": np.append(np.ones(300), [5, 5, 5])}
    some = jg.fit("cbind(s, n - s) ~ 1", more, family="binomial").overdispersion
    assert some["df"] == 2  # the rows of several trials, less the intercept


def test_overdispersion_is_found():
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(100), 5)
    y = rng.poisson(rng.gamma(1.5, np.exp(1 + 0.5 * rng.normal(size=100)[g]) / 1.5))
    fit = jg.fit("y ~ 1 + (1 | g)", {"y": y * 1.0, "g": g}, family="poisson")
    assert fit.overdispersion["ratio"] > 1.8


def test_gaussian_rows_given_the_others_in_closed_form():
    """With P = V^-1 the row given the others has the mean y_i - (P e)_i / P_ii and the variance 1 / P_ii."""
    rng = np.random.default_rng(4)
    n = 60
    g, x, w = np.repeat(np.arange(12), 5), rng.normal(size=n), rng.uniform(0.5, 2, n)
    y = 1 + x + rng.normal(size=12)[g] * (1 + x) + rng.normal(size=n)
    fit = jg.fit("y ~ x + (x | g)", {"y": y, "x": x, "g": g}, weights=w)
    Z = np.stack([np.ones(n), x])
    V = np.einsum("an,ab,bm->nm", Z, fit.state.column_covariances[0], Z) * (g[:, None] == g)
    P = np.linalg.inv(V + np.diag(fit.dispersion["value"] ** 2 / w))
    e = y - np.column_stack([np.ones(n), x]) @ list(fit.fixef.values())
    expected = P @ e / np.sqrt(np.diag(P))
    np.testing.assert_allclose(fit.residuals("quantile"), expected, rtol=1e-6, atol=1e-9)
    over = fit.overdispersion
    assert over["chi2"] == pytest.approx(expected @ expected, rel=1e-6) and over["df"] == n - 2


def test_rows_given_the_others_by_brute_force(monkeypatch):
    fit = simulated("poisson", 5, groups=30, rows=4, tau=1.5)
    y, x = fit._problem.frame.y, fit._problem.frame.X
    eta, tau = x @ list(fit.fixef.values()), fit.varcorr[0]["sd"]
    b = np.linspace(-9, 9, 6001) * tau
    expected = np.empty((len(y), 2))
    for i in range(len(y)):
        others = [j for j in range(4 * (i // 4), 4 * (i // 4) + 4) if j != i]
        log = -0.5 * np.square(b / tau) + sum(stats.poisson.logpmf(y[j], np.exp(eta[j] + b)) for j in others)
        p = np.exp(log - log.max())
        p /= p.sum()
        expected[i] = [p @ stats.poisson.cdf(y[i] - d, np.exp(eta[i] + b)) for d in (1, 0)]
    share = np.random.default_rng(0).uniform(size=len(y))
    for short in (50, 0):  # one by one, and by dividing the row's likelihood out
        monkeypatch.setattr(predictive, "_SHORT", short)
        found = stats.norm.cdf(fit.residuals("quantile", seed=0))
        np.testing.assert_allclose(
            found, expected @ [1, 0] + share * (expected @ [-1, 1]), atol=1e-4 if short else 0.02
        )


def test_narrow_rows_in_wide_posteriors():
    """A count of thousands given nothing but N(0, tau^2): the distribution function is a step in eta."""
    rng = np.random.default_rng(6)
    y = rng.poisson(np.exp(8 + 0.7 * rng.normal(size=300))) * 1.0
    fit = jg.fit("y ~ 1 + (1 | g)", {"y": y, "g": np.arange(300)}, family="poisson")
    expected = (np.log(y) - fit.fixef["Intercept"]) / fit.varcorr[0]["sd"]
    np.testing.assert_allclose(fit.residuals("quantile"), expected, atol=0.02)


def test_crossed_factors():
    """Gaussian in closed form; counts by simulation from the model."""
    rng = np.random.default_rng(7)
    n = 400
    g, h = rng.integers(0, 40, n), rng.integers(0, 25, n)
    eta = 1 + 0.8 * rng.normal(size=40)[g] + 0.6 * rng.normal(size=25)[h]
    fit = jg.fit("y ~ 1 + (1 | g) + (1 | h)", {"y": eta + rng.normal(size=n), "g": g, "h": h})
    V = sum(c[0, 0] * (k[:, None] == k) for c, k in zip(fit.state.column_covariances, (g, h), strict=True))
    P = np.linalg.inv(V + np.diag(np.full(n, fit.dispersion["value"] ** 2)))
    e = fit._problem.frame.y - fit.fixef["Intercept"]
    np.testing.assert_allclose(fit.residuals("quantile"), P @ e / np.sqrt(np.diag(P)), rtol=1e-5, atol=1e-8)
    counts = jg.fit("y ~ 1 + (1 | g) + (1 | h)", {"y": rng.poisson(np.exp(eta)), "g": g, "h": h}, family="poisson")
    r = counts.residuals("quantile")
    assert stats.kstest(r, "norm").pvalue > 0.01 and r.std() == pytest.approx(1, abs=0.1)
    assert counts.overdispersion["ratio"] == pytest.approx(1, abs=0.2)
