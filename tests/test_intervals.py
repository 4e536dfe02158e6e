"""Intervals of standard deviations and correlations where they are small, zero or at their ends."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize, stats

import jaxglmm as jg
from jaxglmm.inference.intervals import wald
from jaxglmm.inference.parameters import parameters


def limits(fit, *arguments, **options):
    table = fit.confint(*arguments, **options)
    pairs = zip(table["lower"], table["upper"], strict=True)
    return dict(zip(table["parameter"], pairs, strict=True)), dict(
        zip(table["parameter"], table["method"], strict=True)
    )


def one_way(seed, tau, groups=15, rows=4):
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), rows)
    return {"y": tau * rng.normal(size=groups)[g] + rng.normal(size=groups * rows), "g": g}


def first(tau, singular, **options):
    fits = (jg.fit("y ~ 1 + (1 | g)", one_way(seed, tau), **options) for seed in range(100))
    return next(fit for fit in fits if fit.convergence.singular == singular)


@pytest.mark.parametrize("reml", [False, True])
def test_a_variance_of_zero_has_an_upper_limit(reml):
    """Where 2 (L(0) - L(sd)) is chi-squared's quantile, by scipy on the dense likelihood."""
    fit = first(0.1, True, reml=reml)
    found, how = limits(fit)
    y, g = fit._problem.frame.y, fit._problem.frame.terms[0].codes
    same = (g[:, None] == g) * 1.0

    def deviance(sd):
        def at(v):
            V = sd**2 * same + np.exp(2 * v[1]) * np.eye(len(y))
            return -2 * stats.multivariate_normal.logpdf(y, np.full(len(y), v[0]), V)

        return optimize.minimize(at, [y.mean(), np.log(y.std())], tol=1e-12).fun

    upper = optimize.brentq(lambda sd: deviance(sd) - deviance(0.0) - stats.chi2.ppf(0.95, 1), 0.01, 5)
    assert found["sd[Intercept|g]"] == (0.0, pytest.approx(upper, rel=1e-4))
    assert how == {"Intercept": "wald", "sd[Intercept|g]": "profile", "sigma": "wald"}
    lower, end = limits(fit, "wald")[0]["sd[Intercept|g]"]
    assert lower == 0 and np.isnan(end)


def test_a_correlation_at_its_end_leaves_the_standard_deviations_their_limits():
    rng = np.random.default_rng(3)
    g, x = np.repeat(np.arange(25), 6), rng.normal(size=150)
    fit = jg.fit(
        "y ~ x + (x | g)", {"y": rng.normal(size=25)[g] * (1 + 0.5 * x) + rng.normal(size=150), "x": x, "g": g}
    )
    assert fit.convergence.singular
    for method in ("auto", "wald"):
        found, _ = limits(fit, method)
        for row in fit.varcorr:
            lower, upper = found[f"sd[{row['name']}|g]"]
            assert 0 < lower < row["sd"] < upper
    assert limits(fit)[0]["cor[x,Intercept|g]"][1] == 1 and limits(fit)[0]["cor[x,Intercept|g]"][0] > -1
    assert np.isnan(limits(fit, "wald")[0]["cor[x,Intercept|g]"][0])


def test_a_correlation_beside_hardly_a_variance_may_be_anything():
    rng = np.random.default_rng(0)
    g, x = np.repeat(np.arange(20), 6), np.tile(np.linspace(-1, 1, 6), 20)
    y = rng.normal(size=20)[g] + rng.normal(size=120)
    slopes = np.array([np.polyfit(x[:6], y[g == k], 1)[0] for k in range(20)])
    fit = jg.fit("y ~ x + (x | g)", {"y": y - 0.97 * (slopes - slopes.mean())[g] * x, "x": x, "g": g})
    found, _ = limits(fit)
    assert found["cor[x,Intercept|g]"] == (-1.0, 1.0)
    assert found["sd[x|g]"][0] == 0 and 0.1 < found["sd[x|g]"][1] < 0.5
    # Exactly zero: no correlation is estimated.
    factors = (np.diag([1.0, 0.0]),)
    state = dataclasses.replace(fit.state, estimate=dataclasses.replace(fit.state.estimate, factors=factors))
    of = {parameter.name: wald(state, parameter, 1.96) for parameter in parameters(state)}
    assert of["cor[x,Intercept|g]"] == (-1.0, 1.0) and of["sd[x|g]"][0] == 0


def counts():
    """By two factors, crossed or nested, the second of which says little."""
    rng = np.random.default_rng(0)
    a, b, x = rng.integers(0, 12, 400), rng.integers(0, 8, 400), rng.normal(size=400) + 2
    eta = 0.2 + 0.3 * x + (0.5 * rng.normal(size=12) + 0.3 * rng.normal(size=12) * x[:, None])[np.arange(400), a]
    return {"y": rng.poisson(np.exp(eta)), "x": x, "a": a, "b": b, "h": a // 4}


@pytest.mark.parametrize("formula", ["y ~ x + (1 | a) + (1 | b)", "y ~ x + (1 | h/a)"])
def test_profiles_of_several_factors(formula):
    """Ends are where fits with both standard deviations held, the better of the other's, have lost chi-squared / 2."""
    fit = jg.fit(formula, counts(), family="poisson")
    found, how = limits(fit)
    groups = [row["group"] for row in fit.varcorr]
    held = lambda **theta: jg.fit(formula, counts(), family="poisson", theta=theta, method=fit.method).loglik
    lost = lambda sd, end, names: fit.loglik - held(**dict(zip(names, (end, sd), strict=True)))
    for names in (groups, groups[::-1]):
        lower, upper = found[f"sd[Intercept|{names[0]}]"]
        assert how[f"sd[Intercept|{names[0]}]"] == "profile"
        for end in {lower, upper} - {0.0}:
            least = optimize.minimize_scalar(
                lost, args=(end, names), bounds=(0, 2), method="bounded", options={"xatol": 1e-3}
            )
            assert least.fun == pytest.approx(stats.chi2.ppf(0.95, 1) / 2, abs=2e-4)


def test_profiles_of_slopes_beside_another_factor():
    """The slope's limits do not depend on where its column is zero."""
    fitted = lambda formula: jg.fit(formula, counts(), family="poisson")
    found, how = limits(fitted("y ~ x + (1 + x | a) + (1 | b)"))
    assert how["sd[x|a]"] == how["cor[x,Intercept|a]"] == "profile"
    moved, _ = limits(fitted("y ~ I(x - 1) + (1 + I(x - 1) | a) + (1 | b)"))
    assert found["sd[x|a]"] == pytest.approx(moved["sd[I(x - 1)|a]"], rel=1e-3)
    lower, upper = found["sd[x|a]"]
    assert 0 < lower < 0.3 < upper < 0.6


def test_what_has_no_profile_says_what_is_known(tmp_path):
    singular = first(0.1, True)
    singular.save(tmp_path / "fit")
    found, how = limits(jg.load(tmp_path / "fit"))
    lower, upper = found["sd[Intercept|g]"]
    assert lower == 0 and np.isnan(upper) and how["sd[Intercept|g]"] == "boundary" and how["sigma"] == "wald"


def test_clear_standard_deviations_take_no_profile():
    rng = np.random.default_rng(6)
    g = np.repeat(np.arange(800), 5)
    fit = jg.fit("y ~ 1 + (1 | g)", {"y": rng.normal(size=800)[g] + rng.normal(size=4000), "g": g})
    assert limits(fit)[1]["sd[Intercept|g]"] == "wald"
    np.testing.assert_allclose(
        *(limits(fit, method)[0]["sd[Intercept|g]"] for method in ("wald", "profile")), rtol=2e-3
    )


@pytest.mark.parametrize("family", ["gaussian", pytest.param("binomial", marks=pytest.mark.slow)])
def test_coverage_near_zero(family):
    covered, n = 0, 150
    for seed in range(n):
        data = one_way(1000 + seed, 0.15, groups=20, rows=5)
        if family == "binomial":
            rng = np.random.default_rng(seed)
            data["y"] = (rng.random(100) < 1 / (1 + np.exp(-0.3 * rng.normal(size=20)[data["g"]]))) * 1.0
        fit = jg.fit("y ~ 1 + (1 | g)", data, family=family)
        lower, upper = limits(fit, parameters=["sd[Intercept|g]"])[0]["sd[Intercept|g]"]
        covered += lower <= (0.15 if family == "gaussian" else 0.3) <= upper
    assert 0.92 <= covered / n <= 1
