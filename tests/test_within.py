"""Gaussian responses that hardly vary within groups: formulas, and dense densities in fifty digits."""

import mpmath
import numpy as np
import pytest

import jaxglmm as jg


def sigma(fit):
    assert fit.dispersion is not None
    return fit.dispersion["value"]


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8])
def test_balanced_groups_have_the_estimates_of_the_analysis_of_variance(noise, reml):
    """sigma^2 is the mean square within, tau^2 the variance between less sigma^2 / n (Searle, Casella & McCulloch 1992,
    ch. 4)."""
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(30), 5)
    y = 100 + rng.normal(size=30)[g] + noise * rng.normal(size=150)
    fit = jg.fit("y ~ 1 + (1 | g)", {"y": y, "g": g}, reml=reml)
    rows = y.reshape(30, 5) - 100
    means = rows.mean(1)
    within = np.square(rows - means[:, None]).sum() / 120
    between = means.var(ddof=1 if reml else 0)
    precision = 1e-9 + 1e-13 / noise
    assert sigma(fit) == pytest.approx(np.sqrt(within), rel=precision)
    assert fit.varcorr[0]["variance"] == pytest.approx(between - within / 5, rel=1e-9)
    assert fit.fixef["Intercept"] == pytest.approx(100 + means.mean(), rel=1e-12)
    assert fit.fixef_se["Intercept"] == pytest.approx(np.sqrt(between / 30), rel=1e-8)
    np.testing.assert_allclose(fit.ranef("g")["mean"], (means - means.mean()) * (1 - within / 5 / between), atol=1e-10)


def dense_loglik(data, fit, formula_slopes):
    """The normal density of y at the estimates, in 50 digits."""
    with mpmath.workdps(50):
        exact = lambda v: mpmath.matrix([mpmath.mpf(float(x)) for x in v])
        n = len(data["y"])
        covariance = {(r["name"], r["name"]): r["variance"] for r in fit.varcorr}
        for r in fit.varcorr:
            for other, corr in r["corr"].items():
                sd = next(s["sd"] for s in fit.varcorr if s["name"] == other)
                covariance[r["name"], other] = covariance[other, r["name"]] = corr * r["sd"] * sd
        z = {"Intercept": np.ones(n)} | {name: data[name] for name in formula_slopes}
        V = mpmath.zeros(n)
        for i in range(n):
            V[i, i] += mpmath.mpf(sigma(fit)) ** 2
            for j in range(n):
                if data["g"][i] == data["g"][j]:
                    for (a, b), v in covariance.items():
                        V[i, j] += mpmath.mpf(v) * mpmath.mpf(float(z[a][i])) * mpmath.mpf(float(z[b][j]))
        mean = [fit.fixef["Intercept"] + mpmath.mpf(fit.fixef["x"]) * mpmath.mpf(float(x)) for x in data["x"]]
        r = exact(data["y"]) - mpmath.matrix(mean)
        L = mpmath.cholesky(V)
        half = mpmath.lu_solve(L, r)
        log_det = 2 * sum(mpmath.log(L[i, i]) for i in range(n))
        return float(-(n * mpmath.log(2 * mpmath.pi) + log_det + (half.T * half)[0]) / 2)


@pytest.mark.parametrize("bar", ["(1 | g)", "(x | g)"])
def test_columns_that_vary_within_groups(bar):
    """The log-likelihood is that of the dense density, and no step along a parameter makes it higher."""
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(8), 4)
    x = rng.normal(size=32)
    slopes = rng.normal(size=8) if "x" in bar else np.zeros(8)
    data = {"g": g, "x": x, "y": 3 * x + rng.normal(size=8)[g] + slopes[g] * x + 1e-6 * rng.normal(size=32)}
    fit = jg.fit(f"y ~ x + {bar}", data)
    names = ["x"] if "x" in bar else []
    assert fit.loglik == pytest.approx(dense_loglik(data, fit, names), abs=1e-6)
    assert fit.convergence.converged and sigma(fit) == pytest.approx(1e-6, rel=0.4)
    if not names:
        # Within groups, least squares of y on x: the fixed effect has nothing from between them.
        centred = [v - np.bincount(g, v)[g] / 4 for v in (x, data["y"])]
        assert fit.fixef["x"] == pytest.approx(centred[0] @ centred[1] / (centred[0] @ centred[0]), abs=1e-9)


def test_other_units_change_nothing():
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(12), rng.integers(1, 7, 12))
    y = rng.normal(size=12)[g] + 1e-5 * rng.normal(size=len(g))
    one = jg.fit("y ~ 1 + (1 | g)", {"y": y, "g": g}, reml=True)
    two = jg.fit("y ~ 1 + (1 | g)", {"y": 1e6 * y, "g": g}, reml=True)
    assert two.loglik == pytest.approx(one.loglik - (len(g) - 1) * np.log(1e6), abs=1e-7)
    again = one.confint("profile")
    assert np.isfinite(again.loc[again["parameter"].astype(str).str.contains("sd"), ["lower", "upper"]]).all().all()


@pytest.mark.parametrize("reml", [True, False])
def test_responses_that_groups_determine_are_refused_by_name(reml):
    g = np.repeat(np.arange(10), 4)
    x = np.random.default_rng(0).normal(size=40)
    with pytest.raises(jg.DataError, match=r"'y' does not vary within the levels of 'g'"):
        jg.fit("y ~ 1 + (1 | g)", {"y": np.sin(g), "g": g}, reml=reml)
    with pytest.raises(jg.DataError, match=r"levels of 'g' and the fixed effects fit the response 'y' perfectly"):
        jg.fit("y ~ x + (1 | g)", {"y": np.sin(g) + 2 * x, "g": g, "x": x}, reml=reml)
