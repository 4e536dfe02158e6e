"""Intervals of predictions against simulation from the posterior and dense linear algebra."""

import numpy as np
import pandas as pd
import pytest
from fitted_models import members, visits
from scipy.special import expit, logit
from scipy.stats import norm

import jaxglmm as jg


@pytest.fixture(scope="module")
def rows():
    return visits().dropna().iloc[[0, 50, 100]]


def test_given_the_parameters_the_ends_are_quantiles_of_the_posterior(rows):
    fit = members()
    known = fit.ranef(interval=0.9, uncertainty=False).set_index("level").loc[rows["member"]]
    population = fit.predict(rows, kind="link", effects="population")
    link = fit.predict(rows, kind="link", interval=0.9, uncertainty=False)
    np.testing.assert_allclose(link["lower"], population + known["lower"].to_numpy(), rtol=1e-9)
    np.testing.assert_allclose(link["upper"], population + known["upper"].to_numpy(), rtol=1e-9)
    np.testing.assert_array_equal(link["prediction"], fit.predict(rows, kind="link"))
    mu = fit.predict(rows, interval=0.9, uncertainty=False)
    np.testing.assert_allclose(mu["lower"], expit(link["lower"]), rtol=1e-12)
    assert ((mu["lower"] < mu["prediction"]) & (mu["prediction"] < mu["upper"])).all()


def test_new_members_and_populations(rows):
    fit, new = members(), rows.assign(member=["ann", "bob", None])
    sd, z = fit.varcorr[0]["sd"], norm.ppf(0.975)
    eta = fit.predict(rows, kind="link", effects="population")
    found = fit.predict(new, kind="link", interval=0.95, uncertainty=False)
    np.testing.assert_allclose(found["upper"][:2], eta[:2] + z * sd, rtol=1e-9)
    assert found.loc[2].isna().all()
    marginal = fit.predict(rows, interval=0.95, effects="marginal", uncertainty=False)
    np.testing.assert_allclose(logit(marginal["lower"]), eta - z * sd, rtol=1e-7)
    X = np.column_stack([np.ones(3), rows["arm"] == "placebo", rows["x"]])
    X = X[:, [["Intercept", "arm[T.placebo]", "x"].index(name) for name in fit.names]].astype(float)
    se = np.sqrt(np.einsum("ma,ab,mb->m", X, np.array(fit.vcov), X))
    wald = fit.predict(rows, kind="link", effects="population", interval=0.95)
    np.testing.assert_allclose(wald["upper"], eta + z * se, rtol=1e-9)


def test_a_gaussian_fit_has_the_dense_prediction_variance():
    """C Var(beta, b) C' of the mixed model equations (Henderson 1975), at held variances."""
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(110), rng.integers(1, 5, 110))
    x = rng.normal(size=len(g))
    data = pd.DataFrame({"y": x + rng.normal(size=110)[g] + rng.normal(size=len(g)), "x": x, "g": g})
    fit = jg.fit("y ~ x + (1 | g)", data, theta={"g": 0.8})
    sigma = fit.dispersion["value"] if fit.dispersion else 0.0
    X, Z = np.column_stack([np.ones(len(g)), x]), (g[:, None] == np.arange(110)) * 1.0
    C = np.hstack([X, Z])
    inverse = np.linalg.inv(C.T @ C / sigma**2 + np.diag(np.r_[0, 0, np.full(110, 1 / 0.8**2)]))
    found = fit.predict(kind="link", interval=0.95)
    # Henderson's equations hold sigma: its part has d b / d log sigma = -2 sigma^2 b / (tau^2 n + sigma^2).
    b = fit.ranef()["mean"].to_numpy()
    slope = -2 * sigma**2 * b / (0.8**2 * np.bincount(g) + sigma**2)
    of_sigma = slope[g] ** 2 * fit.state.estimate.covariance[-1, -1]
    half = norm.ppf(0.975) * np.sqrt(np.einsum("ma,ab,mb->m", C, inverse, C) + of_sigma)
    np.testing.assert_allclose((found["upper"] - found["lower"]) / 2, half, rtol=1e-3)


def test_a_saved_fit_and_bad_levels(rows, tmp_path):
    fit = members()
    fit.save(tmp_path / "fit", rows=True)
    loaded = jg.load(tmp_path / "fit")
    given = {"interval": 0.9, "uncertainty": False}
    pd.testing.assert_frame_equal(loaded.predict(rows, **given), fit.predict(rows, **given))
    wide, exact = loaded.predict(rows, kind="link", interval=0.9), fit.predict(rows, kind="link", interval=0.9)
    # Without X the fixed effects and the group's count as independent, though they are negatively correlated.
    np.testing.assert_allclose(wide["upper"] - wide["lower"], exact["upper"] - exact["lower"], rtol=0.2)
    with pytest.raises(jg.DataError, match=r"interval must be a level within \(0, 1\)"):
        fit.predict(rows, interval=1)


def test_leaving_a_row_out_is_scoring_the_others():
    fit, data = members(), visits().dropna()
    link, mu = fit.loo("link"), fit.loo()
    population = fit.predict(kind="link", effects="population")
    sizes = data["member"].map(data["member"].value_counts()).to_numpy()
    assert (sizes == 1).any()
    np.testing.assert_array_equal(link[sizes == 1], population[sizes == 1])
    np.testing.assert_allclose(mu[sizes == 1], fit.predict(effects="marginal")[sizes == 1], rtol=1e-9)
    for i in np.flatnonzero(sizes > 1)[::40]:
        others = data.drop(data.index[i])
        scored = fit.score(others[others["member"] == data["member"].iloc[i]]).loc[0]
        assert link[i] - population[i] == pytest.approx(scored["estimate"], abs=1e-8)
        b = np.linspace(-12, 12, 24001)
        own = (data["member"] == data["member"].iloc[i]).to_numpy() & (np.arange(len(data)) != i)
        sign = np.where(data["sick"][own] == "yes", 1, -1)[:, None]
        f = -np.logaddexp(0, -sign * (population[own][:, None] + b)).sum(0) + norm.logpdf(b, 0, fit.varcorr[0]["sd"])
        assert mu[i] == pytest.approx(np.average(expit(population[i] + b), weights=np.exp(f)), abs=1e-8)
    with pytest.raises(jg.DataError, match="kind must be one of"):
        fit.loo("mean")


def test_one_newton_step_without_a_row_is_of_second_order():
    """From the group's mode: the step's error is |g''| / (2 |g'|) times its square, |g''| at most 0.0963 a row."""
    fit, data = members(), visits().dropna()
    table = fit.ranef("member").set_index("level")
    mode, sd = table["estimate"][data["member"]].to_numpy(), table["sd"][data["member"]].to_numpy()
    population = fit.predict(kind="link", effects="population")
    mu = expit(population + mode)
    step = -((data["sick"] == "yes").to_numpy() - mu) / (1 / sd**2 - mu * (1 - mu))
    sizes = data["member"].map(data["member"].value_counts()).to_numpy()
    without = fit.loo("link") - population
    bound = 0.0963 * (sizes - 1) * (without - mode) ** 2 / (2 * (1 / sd**2 - mu * (1 - mu)))
    assert (np.abs(mode + step - without) <= bound + 1e-9).all()
    assert np.abs(step).max() > 0.1


def test_the_command_line_gives_intervals(tmp_path):
    from jaxglmm.cli import main

    fit, data = members(), visits().dropna()
    fit.save(tmp_path / "fit")
    data.to_csv(tmp_path / "rows.csv", index=False)
    arguments = ["predict", str(tmp_path / "fit"), str(tmp_path / "rows.csv"), "--interval", "0.8", "--kind", "link"]
    assert main([*arguments, "--out", str(tmp_path / "p.csv")]) == 0
    assert main([*arguments, "--given-parameters", "--out", str(tmp_path / "given.csv")]) == 0
    found, given = pd.read_csv(tmp_path / "p.csv"), pd.read_csv(tmp_path / "given.csv")
    expected = jg.load(tmp_path / "fit").predict(data, kind="link", interval=0.8)
    pd.testing.assert_frame_equal(found[["prediction", "lower", "upper"]], expected, rtol=1e-9)
    assert np.all(found["upper"] - found["lower"] > given["upper"] - given["lower"])
    assert main([*arguments[:4], "80", "--out", str(tmp_path / "p.csv")]) == 2
