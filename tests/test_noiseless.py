"""Gamma and beta responses with little noise, whose dispersion is large, and with none, which have no maximum."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, polygamma, psi
from scipy.stats import beta as beta_distribution

import jaxglmm as jg


def data(noise, family, *, groups=False):
    rng = np.random.default_rng(0)
    x, g, z = rng.normal(size=200), np.repeat(np.arange(20), 10), rng.normal(size=200)
    eta = 0.3 + 0.5 * x + groups * rng.normal(0, 0.5, 20)[g] + noise * z
    return {"y": np.exp(eta) if family == "gamma" else expit(eta), "x": x, "g": g}


@pytest.mark.parametrize(("noise", "tolerance"), [(0.1, 1e-9), (1e-3, 1e-8), (1e-5, 1e-4)])
def test_shape_by_its_score_equation(noise, tolerance):
    """Mean of r - log(1 + r), r = y/mu - 1, is log k - psi(k), which is 1/(2k) + 1/(12k^2) for large k."""
    d = data(noise, "gamma")
    fit = jg.fit("y ~ x", d, family=jg.Gamma(link="log"))
    X = np.column_stack([np.ones(200), d["x"]])
    b = np.linalg.lstsq(X, np.log(d["y"]), rcond=None)[0]
    for _ in range(30):  # the coefficients' score equation does not know the shape
        b += np.linalg.solve(X.T @ X, X.T @ (d["y"] * np.exp(-X @ b) - 1))
    r = d["y"] * np.exp(-X @ b) - 1
    k, left = 0.5 / np.mean(r - np.log1p(r)), np.mean(r - np.log1p(r))
    for _ in range(20 if noise > 1e-2 else 0):
        k -= (np.log(k) - psi(k) - left) / (1 / k - polygamma(1, k))
    k = k if noise > 1e-2 else k + 1 / 6
    assert fit.dispersion is not None and fit.convergence.converged
    assert fit.dispersion["value"] == pytest.approx(k, rel=tolerance)


def test_precision_of_a_beta_response_with_little_noise():
    d = data(0.01, "beta")
    fit = jg.fit("y ~ x", d, family=jg.Beta())
    assert fit.dispersion is not None
    best = np.array([*fit.fixef.values(), np.log(fit.dispersion["value"])])

    def negative(v):
        mu, phi = expit(v[0] + v[1] * d["x"]), np.exp(v[2])
        return -beta_distribution.logpdf(d["y"], mu * phi, (1 - mu) * phi).sum()

    assert -negative(best) == pytest.approx(fit.loglik, abs=1e-6)
    free = minimize(negative, best + np.array([1e-3, -1e-3, 0.1]), method="Nelder-Mead", options={"fatol": 1e-9})
    assert negative(best) <= free.fun + 1e-6


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-8])
@pytest.mark.parametrize(("family", "groups"), [("gamma", False), ("beta", False), ("gamma", True), ("beta", True)])
def test_no_dispersion_left(family, groups, noise):
    d, right = data(noise, family, groups=groups), "x + (1 | g)" if groups else "x"
    of = jg.Gamma(link="log") if family == "gamma" else jg.Beta()
    cause = "the response 'y' is determined by the columns" + (" and the effects of 'g'" if groups else ":")
    with pytest.raises(jg.DataError, match=cause):
        jg.fit(f"y ~ {right}", d, family=of)
    if noise == 0 and not (groups and family == "beta"):  # whose programs take long to compile
        good = data(0.2, family, groups=groups)["y"]
        fits = jg.fit_many(f"~ {right}", d | {"good": good}, responses=["y", "good"], family=of, method="laplace")
        assert not np.isfinite(fits.loglik[0]) and np.isfinite(fits.loglik[1])


def test_the_inverse_link_is_looked_at_on_its_scale():
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 1, 300)
    mean = 1 / (1 + x)
    with pytest.raises(jg.DataError, match="no dispersion is left"):
        jg.fit("y ~ x", {"y": mean, "x": x}, family=jg.Gamma(link="inverse"))
    y = mean * rng.gamma(1e4, 1e-4, 300)
    assert jg.fit("y ~ x", {"y": y, "x": x}, family=jg.Gamma(link="inverse")).convergence.converged
    g = np.arange(300) // 2  # effects of pairs leave half of the rows' noise: nothing is refused
    fit = jg.fit("y ~ x + (1 | g)", {"y": y, "x": x, "g": g}, family=jg.Gamma(link="inverse"), method="laplace")
    assert fit.convergence.converged


def test_the_estimator_passes_the_refusal_on():
    d = data(0.0, "gamma")
    from jaxglmm.sklearn import GLMMRegressor

    with pytest.raises(jg.DataError, match="no dispersion is left"):
        GLMMRegressor(family=jg.Gamma(link="log")).fit(d["x"][:, None], d["y"])
