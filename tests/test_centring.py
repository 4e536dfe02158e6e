"""Shift and scale of a column that has a correlated slope: a calendar year, up to a mean of a million sds."""

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg


YEAR = np.tile(np.arange(10.0), 40) - 4.5
GROUP = np.repeat(np.arange(40), 10)
# mean / sd of a year from 2015 to 2024 is 700; beyond a million digits of the column itself are lost.
MOVED = {"year": (2019.5, 1.0), "seconds": (1.6e9 / 3.15e7, 3.15e7), "million": (2.8e6, 1.0)}


def table(family: str) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    b = rng.normal(size=(40, 2)) @ np.array([[0.6, 0.05], [0.0, 0.1]])
    x = rng.normal(size=400)
    eta = 0.5 + 0.05 * YEAR + 0.3 * x + b[GROUP, 0] + b[GROUP, 1] * YEAR
    y = {
        "gaussian": lambda: eta + 0.5 * rng.normal(size=400),
        "binomial": lambda: (rng.uniform(size=400) < 1 / (1 + np.exp(-eta))).astype(float),
        "poisson": lambda: rng.poisson(np.exp(eta)).astype(float),
    }[family]()
    return pd.DataFrame({"y": y, "x": x, "g": GROUP, "c": rng.integers(0, 6, 400), "h": GROUP // 5})


def numbers(fit: jg.Fit, scale: float) -> dict[str, float | np.ndarray]:
    """What must not depend on the origin of `year`, in units of a scale of 1."""
    slope = next(v for v in fit.varcorr if v["name"] == "year")
    effects = fit.ranef("g")
    own = effects[effects["term"] == "year"]
    out = {
        # The restricted likelihood integrates over the coefficient, in its own unit.
        "loglik": fit.loglik + (np.log(scale) if fit.method == "reml" else 0.0),
        "beta": fit.fixef["year"] * scale,
        "se": fit.fixef_se["year"] * scale,
        "x": fit.fixef["x"],
        "se of x": fit.fixef_se["x"],
        "sd": slope["sd"] * scale,
        "effects": own["mean"].to_numpy() * scale,
        "their sds": own["sd_mean"].to_numpy() * scale,
        "fitted": fit.fitted,
        "marginal": fit.predict(effects="marginal"),
    }
    return out | ({} if fit.dispersion is None else {"dispersion": fit.dispersion["value"]})


@pytest.mark.parametrize(
    "family, formula, options",
    [
        ("gaussian", "y ~ year + x + (year | g)", {}),
        ("gaussian", "y ~ year + x + (year | g)", {"reml": True}),
        ("gaussian", "y ~ year + x + (year | g) + (1 | c)", {"reml": True}),
        ("gaussian", "y ~ year + x + (year | g) + (1 | h)", {}),
        ("binomial", "y ~ year + x + (year | g)", {}),
        ("poisson", "y ~ year + x + (year | g)", {"method": "laplace"}),
        ("poisson", "y ~ year + x + (year | g) + (1 | c)", {}),
    ],
)
def test_origin_and_unit_of_a_slopes_column(family, formula, options):
    data = table(family)
    expected = numbers(jg.fit(formula, data.assign(year=YEAR), family=family, **options), 1.0)
    for shift, scale in MOVED.values():
        fit = jg.fit(formula, data.assign(year=(YEAR + shift) * scale), family=family, **options)
        for name, value in numbers(fit, scale).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-8, atol=1e-9, err_msg=f"{name} at {shift}")


def dense_loglik(fit: jg.Fit, data: pd.DataFrame) -> float:
    """Normal log-density of y, restricted as lmer has it where the fit is, from what the fit reports."""
    b0, b1 = fit.varcorr
    cov = b1["corr"]["Intercept"] * b0["sd"] * b1["sd"]
    assert fit.dispersion is not None
    X = np.column_stack([np.ones(len(data)), data["year"], data["x"]])
    Z = X[:, :2]
    V = Z @ np.array([[b0["variance"], cov], [cov, b1["variance"]]]) @ Z.T * (GROUP[:, None] == GROUP)
    V += fit.dispersion["value"] ** 2 * np.eye(len(data))
    r = data["y"] - X @ np.array(list(fit.fixef.values()))
    value = -0.5 * (len(r) * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + r @ np.linalg.solve(V, r))
    if fit.method == "reml":
        value += 0.5 * (X.shape[1] * np.log(2 * np.pi) - np.linalg.slogdet(X.T @ np.linalg.solve(V, X))[1])
    return float(value)


@pytest.mark.parametrize("reml", [False, True])
def test_a_calendar_year_has_the_dense_likelihood(reml):
    """Variances and correlation are of the column as written: they give the likelihood of y in it."""
    data = table("gaussian").assign(year=YEAR + 2019.5)
    fit = jg.fit("y ~ year + x + (year | g)", data, reml=reml)
    assert fit.varcorr[0]["sd"] > 50 and fit.varcorr[1]["corr"]["Intercept"] < -0.999
    # Dense matrices lose (mean / sd)^2 = 5e5 of the digits.
    assert fit.loglik == pytest.approx(dense_loglik(fit, data), abs=1e-6)


def test_held_and_saved_and_scored_in_the_columns_as_written(tmp_path):
    data = table("gaussian").assign(year=YEAR + 2019.5)
    fit = jg.fit("y ~ year + x + (year | g)", data)
    b0, b1 = fit.varcorr
    cov = b1["corr"]["Intercept"] * b0["sd"] * b1["sd"]
    held = jg.fit(
        "y ~ year + x + (year | g)", data, theta={"g": np.array([[b0["variance"], cov], [cov, b1["variance"]]])}
    )
    assert held.loglik == pytest.approx(fit.loglik, abs=1e-8)
    assert held.varcorr[0]["sd"] == pytest.approx(b0["sd"], rel=1e-10)
    fit.save(tmp_path / "model")
    same = jg.load(tmp_path / "model")
    np.testing.assert_array_equal(same.predict(data), fit.predict(data))
    pd.testing.assert_frame_equal(same.ranef("g"), fit.ranef("g"))
    effects, scores = fit.ranef("g"), fit.score(data)
    np.testing.assert_allclose(scores["mean"], effects["mean"], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(scores["sd_mean"], effects["sd_mean"], rtol=1e-8)
    # eta = x'beta + b0 + b1 year, with the effects of the table.
    b = effects["estimate"].to_numpy().reshape(-1, 2)
    fixed = fit.predict(effects="population")
    np.testing.assert_allclose(fixed + b[GROUP, 0] + b[GROUP, 1] * data["year"], fit.fitted, atol=1e-8)


def test_intervals_of_slopes_do_not_depend_on_the_origin():
    data = table("gaussian")
    here, there = (jg.fit("y ~ year + x + (year | g)", data.assign(year=YEAR + m)) for m in (0.0, 2019.5))
    for method in ("wald", "profile"):
        a, b = (fit.confint(method, parameters=["sd[year|g]", "sigma", "year"]) for fit in (here, there))
        np.testing.assert_allclose(a[["lower", "upper"]], b[["lower", "upper"]], rtol=1e-5)


def test_profile_of_the_intercept_is_of_the_column_as_written():
    """sd[Intercept] at year 0, by the profile of a fit whose columns are not centred (uncorrelated ones never are)."""
    data = table("gaussian").assign(year=YEAR + 6.0)
    fit = jg.fit("y ~ year + x + (year | g)", data)
    low, high = fit.confint("profile", parameters=["sd[Intercept|g]"])[["lower", "upper"]].to_numpy()[0]
    sd = fit.varcorr[0]["sd"]
    assert low < sd < high
    from scipy.optimize import minimize

    X = np.column_stack([np.ones(400), data["year"], data["x"]])
    blocks, y = X.reshape(40, 10, 3), data["y"].to_numpy().reshape(40, 10)

    def profile(tau):
        def negative(par):
            c, s, sigma = np.tanh(par[0]), np.exp(par[1]), np.exp(par[2])
            Sigma = np.array([[tau**2, c * tau * s], [c * tau * s, s**2]])
            V = blocks[:, :, :2] @ Sigma @ blocks[:, :, :2].swapaxes(1, 2) + sigma**2 * np.eye(10)
            W = np.linalg.solve(V, blocks)
            beta = np.linalg.solve(np.einsum("gij,gik->jk", blocks, W), np.einsum("gij,gi->j", W, y))
            r = y - blocks @ beta
            quadratic = np.einsum("gi,gi->", r, np.linalg.solve(V, r[..., None])[..., 0])
            return 0.5 * (400 * np.log(2 * np.pi) + np.linalg.slogdet(V)[1].sum() + quadratic)

        start = [np.arctanh(fit.varcorr[1]["corr"]["Intercept"]), np.log(fit.varcorr[1]["sd"]), np.log(0.5)]
        return -minimize(negative, start, method="BFGS", options={"gtol": 1e-8}).fun

    for end in (low, high):
        assert 2 * (fit.loglik - profile(end)) == pytest.approx(1.959964**2, abs=2e-3)


def test_many_fits_and_resamples_show_the_columns_as_written():
    data = table("gaussian").assign(year=YEAR + 2019.5, part=GROUP % 2)
    fits = jg.fit_each("y ~ year + x + (year | g)", data, by="part")
    whole = jg.fit("y ~ year + x + (year | g)", data[data["part"] == 1])
    of = dict(zip(fits.parameters, fits.estimate[1], strict=True))
    assert of["sd[Intercept|g]"] == pytest.approx(whole.varcorr[0]["sd"], rel=1e-6)
    assert of["cor[year,Intercept|g]"] == pytest.approx(whole.varcorr[1]["corr"]["Intercept"], rel=1e-9)
    assert fits.loglik[1] == pytest.approx(whole.loglik, abs=1e-8)
    se = dict(zip(fits.parameters, fits.se[1], strict=True))
    wald = whole.confint("wald", parameters=["sd[Intercept|g]"])[["lower", "upper"]].to_numpy()[0]
    assert se["sd[Intercept|g]"] / of["sd[Intercept|g]"] == pytest.approx(
        np.log(wald[1] / wald[0]) / 2 / 1.959964, rel=1e-5
    )


def test_priors_are_of_the_standard_deviations_shown():
    """The posterior mode's gradient vanishes: moving sd[Intercept], as shown, loses penalised likelihood both ways."""
    data = table("poisson").assign(year=YEAR + 6.0)
    prior = {"sd": jg.HalfStudentPrior(3.0, 0.3)}
    fit = jg.fit("y ~ year + x + (year | g)", data, family="poisson", method="laplace", prior=prior)

    def at(factor0, factor1):
        b0, b1 = fit.varcorr
        s0, s1, r = b0["sd"] * factor0, b1["sd"] * factor1, b1["corr"]["Intercept"]
        held = jg.fit(
            "y ~ year + x + (year | g)", data, family="poisson", method="laplace",
            theta={"g": np.array([[s0**2, r * s0 * s1], [r * s0 * s1, s1**2]])},
        )  # fmt: skip
        return held.loglik - 2 * np.log1p((s0 / 0.3) ** 2 / 3) - 2 * np.log1p((s1 / 0.3) ** 2 / 3)

    best = at(1.0, 1.0)
    for step in (0.97, 1.03):
        assert at(step, 1.0) < best and at(1.0, step) < best
