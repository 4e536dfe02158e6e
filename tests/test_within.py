"""Gaussian responses that hardly vary within groups: formulas, and dense densities in fifty digits."""

import mpmath
import numpy as np
import pandas as pd
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


# --- Several factors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("noise", [1e-2, 1e-4, 1e-6, 1e-8])
def test_balanced_nested_factors_have_the_estimates_of_the_analysis_of_variance(noise, reml):
    """Mean squares by Searle, Casella & McCulloch (1992), ch. 4; of ML with a divisor a in place of a - 1."""
    rng, (a, b, n) = np.random.default_rng(1), (12, 5, 4)
    outer, inner = np.repeat(np.arange(a), b * n), np.repeat(np.arange(a * b), n)
    y = 1.3 * rng.normal(size=a)[outer] + rng.normal(size=a * b)[inner] + noise * rng.normal(size=a * b * n)
    fit = jg.fit("y ~ 1 + (1 | outer) + (1 | inner)", {"y": y, "outer": outer, "inner": inner}, reml=reml)
    cells = y.reshape(a, b, n)
    means = cells.mean(2)
    within = np.square(cells - means[:, :, None]).sum() / (a * b * (n - 1))
    of_inner = n * np.square(means - means.mean(1)[:, None]).sum() / (a * (b - 1))
    of_outer = b * n * np.square(means.mean(1) - y.mean()).sum() / (a - reml)
    assert sigma(fit) ** 2 == pytest.approx(within, rel=1e-7)
    wanted = (of_outer - of_inner) / (b * n), (of_inner - within) / n
    np.testing.assert_allclose([v["variance"] for v in fit.varcorr], wanted, rtol=1e-7)
    assert fit.convergence.converged
    rows = pd.DataFrame({"outer": [0], "inner": [0]})
    if noise < 1e-7:  # their covariance is below the digits of what it is a difference of
        with pytest.raises(jg.DataError, match="no digits in double precision"):
            fit.predict(rows, interval=0.95)
        return
    ends = fit.predict(rows, interval=0.95)
    width = float(np.ravel(ends["upper"])[0] - np.ravel(ends["lower"])[0])
    assert width == pytest.approx(2 * 1.959964 * sigma(fit) / 2, rel=1e-3)  # the cell's own four rows


@pytest.mark.parametrize("noise", [1e-2, 1e-4, 1e-6, 1e-8])
def test_balanced_crossed_factors_have_the_estimates_of_the_analysis_of_variance(noise):
    """REML agrees with it in balanced data; Searle, Casella & McCulloch (1992), ch. 4."""
    rng, (a, b, n) = np.random.default_rng(1), (12, 9, 3)
    one, other = np.repeat(np.arange(a), b * n), np.tile(np.repeat(np.arange(b), n), a)
    y = 1.3 * rng.normal(size=a)[one] + rng.normal(size=b)[other] + noise * rng.normal(size=a * b * n)
    fit = jg.fit("y ~ 1 + (1 | one) + (1 | other)", {"y": y, "one": one, "other": other}, reml=True)
    cells = y.reshape(a, b, n)
    rows, columns = cells.mean((1, 2)) - y.mean(), cells.mean((0, 2)) - y.mean()
    left = np.square(cells - y.mean() - rows[:, None, None] - columns[:, None]).sum() / (a * b * n - a - b + 1)
    wanted = (b * n * rows @ rows / (a - 1) - left) / (b * n), (a * n * columns @ columns / (b - 1) - left) / (a * n)
    assert sigma(fit) ** 2 == pytest.approx(left, rel=1e-7)
    np.testing.assert_allclose([v["variance"] for v in fit.varcorr], wanted, rtol=1e-6)
    assert fit.convergence.converged


@pytest.mark.parametrize("noise", [1e-4, 1e-6])
@pytest.mark.parametrize("bars", ["(1 | g) + (1 | h)", "(x | g) + (1 | h)", "(1 | h/g)"])
def test_unbalanced_factors_have_a_maximum_of_the_dense_density(bars, noise):
    """In fifty digits: the log-likelihood, and that it falls along every parameter by what its standard error says."""
    rng = np.random.default_rng(7)
    g = np.repeat(np.arange(6), [3, 5, 4, 6, 4, 3])
    h = g // 2 if "/" in bars else rng.integers(0, 4, len(g))
    x = rng.normal(size=len(g))
    y = 2 * x + rng.normal(size=6)[g] + rng.normal(size=4)[h] + noise * rng.normal(size=len(g))
    y += x * rng.normal(size=6)[g] if "x |" in bars else 0.0
    fit = jg.fit(f"y ~ x + {bars}", {"y": y, "x": x, "g": g, "h": h})
    assert fit.convergence.converged and sigma(fit) == pytest.approx(noise, rel=0.5)

    def loglik(sd, corr, sigma, beta):
        with mpmath.workdps(50):
            of = lambda u, v: mpmath.matrix((np.asarray(u)[:, None] == np.asarray(v)).astype(int).tolist())
            X = mpmath.matrix([[mpmath.mpf(1), mpmath.mpf(float(v))] for v in x])
            V = mpmath.eye(len(y)) * mpmath.mpf(sigma) ** 2
            for (group, name), value in sd.items():
                same = of(h, h) if group == "h" else of(g, g)
                for other in ("Intercept", "x"):
                    if (group, other) not in sd:
                        continue
                    rho = 1 if other == name else corr
                    size = mpmath.mpf(value) * mpmath.mpf(sd[group, other]) * rho
                    for i in range(len(y)):
                        for j in range(len(y)):
                            weight = X[i, 0 if name == "Intercept" else 1] * X[j, 0 if other == "Intercept" else 1]
                            V[i, j] += size * same[i, j] * weight
            r = mpmath.matrix([mpmath.mpf(float(v)) for v in y]) - X * mpmath.matrix([mpmath.mpf(b) for b in beta])
            L = mpmath.cholesky(V)
            half = mpmath.lu_solve(L, r)
            log_det = 2 * sum(mpmath.log(L[i, i]) for i in range(len(y)))
            return float(-(len(y) * mpmath.log(2 * mpmath.pi) + log_det + (half.T * half)[0]) / 2)

    sd = {(v["group"], v["name"]): v["sd"] for v in fit.varcorr}
    corr = next((value for v in fit.varcorr for value in v["corr"].values()), 0.0)
    at = sd, corr, sigma(fit), list(fit.fixef.values())
    assert fit.loglik == pytest.approx(loglik(*at), abs=2e-6)
    assert loglik(sd, corr, sigma(fit) * 1.01, at[3]) < fit.loglik > loglik(sd, corr, sigma(fit) / 1.01, at[3])
    for key, value in sd.items():
        for factor in (1.01, 1 / 1.01):
            assert loglik(sd | {key: factor * value}, *at[1:]) < fit.loglik + 2e-6


def test_factors_that_determine_a_response_are_refused_by_name():
    rng = np.random.default_rng(0)
    one, other = np.repeat(np.arange(8), 6), np.tile(np.arange(6), 8)
    x, y = rng.normal(size=48), rng.normal(size=8)[one] + rng.normal(size=6)[other]
    data = {"y": y, "z": y + 2 * x, "x": x, "one": one, "other": other}
    with pytest.raises(jg.DataError, match=r"'y' is a sum of what the levels of 'one' and 'other' have in common"):
        jg.fit("y ~ x + (1 | one) + (1 | other)", data)
    with pytest.raises(jg.DataError, match=r"levels of 'one' and 'other' and the fixed effects fit the response 'z'"):
        jg.fit("z ~ x + (1 | one) + (1 | other)", data)


# --- Many fits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reml", [True, False])
def test_many_fits_have_the_same_digits(reml):
    """As each alone; one of exactly constant groups fails by name, and no other with it."""
    rng, noises = np.random.default_rng(3), [1.0, 1e-2, 1e-4, 1e-6, 1e-8, 0.0]
    g = np.repeat(np.arange(30), 5)
    Y = np.stack([rng.normal(size=30)[g] + noise * rng.normal(size=150) for noise in noises])
    rows = pd.DataFrame({"y": Y.ravel(), "g": np.tile(g, len(Y)), "s": np.repeat(np.arange(len(Y)), 150)})
    for fits in (
        jg.fit_many("~ 1 + (1 | g)", {"g": g}, responses=Y.T, reml=reml),
        jg.fit_each("y ~ 1 + (1 | g)", rows, by="s", reml=reml),
    ):
        found = pd.DataFrame(fits.table())
        for i, y in enumerate(Y[:-1]):
            cells = y.reshape(30, 5)
            within = np.square(cells - cells.mean(1)[:, None]).sum() / 120
            between = cells.mean(1).var(ddof=1 if reml else 0)
            mine = found[found.iloc[:, 0] == i].set_index("parameter")
            assert mine.loc["sigma", "estimate"] == pytest.approx(np.sqrt(within), rel=1e-9)
            assert mine.loc["sd[Intercept|g]", "estimate"] == pytest.approx(np.sqrt(between - within / 5), rel=1e-9)
            assert mine.loc["Intercept", "se"] == pytest.approx(np.sqrt(between / 30), rel=1e-8)
        assert list(fits.failed) == [5] and "does not vary within the levels of 'g'" in fits.failed[5]


@pytest.mark.parametrize("reml", [True, False])
def test_responses_that_groups_determine_are_refused_by_name(reml):
    g = np.repeat(np.arange(10), 4)
    x = np.random.default_rng(0).normal(size=40)
    with pytest.raises(jg.DataError, match=r"'y' does not vary within the levels of 'g'"):
        jg.fit("y ~ 1 + (1 | g)", {"y": np.sin(g), "g": g}, reml=reml)
    with pytest.raises(jg.DataError, match=r"levels of 'g' and the fixed effects fit the response 'y' perfectly"):
        jg.fit("y ~ x + (1 | g)", {"y": np.sin(g) + 2 * x, "g": g, "x": x}, reml=reml)
