"""Predictions against brute-force integration, in every combination of kind, effects and new levels."""

import numpy as np
import pandas as pd
import pytest
from fitted_models import cbpp, members, of_columns, sleepstudy, visits
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

import jaxglmm as jg
from jaxglmm.fitted.rowwise import normal_average
from jaxglmm.inference.coordinates import raw_covariance


# R 4.3, lme4, tolPwrss 1e-12: fitted(glmer(cbind(incidence, size - incidence) ~ period + (1 | herd), cbpp, binomial))
CBPP_FITTED = [0.30820765143, 0.14174824913, 0.12595751458, 0.08402874607]


def linear_predictor(fit, data):
    """offset + X beta by hand."""
    beta = fit.fixef
    return (
        data["effort"] + beta["Intercept"] + beta["x"] * data["x"] + beta["arm[T.placebo]"] * (data["arm"] == "placebo")
    ).to_numpy()


@pytest.fixture(scope="module")
def rows():
    return visits().dropna().iloc[[0, 10, 50, 100, 150]]


@pytest.mark.reference
def test_fitted_is_lme4s(reference_dir):
    np.testing.assert_allclose(cbpp(reference_dir).fitted[:4], CBPP_FITTED, rtol=1e-6)


def test_link_scale(rows):
    fit = members()
    eta = linear_predictor(fit, rows)
    b = fit.ranef().set_index("level")["estimate"][rows["member"]].to_numpy()
    for effects, expected in {"conditional": eta + b, "mode": eta + b, "marginal": eta, "population": eta}.items():
        np.testing.assert_allclose(fit.predict(rows, kind="link", effects=effects), expected, rtol=1e-12)


def test_population_and_mode_plug_in(rows):
    fit = members()
    for effects in ("mode", "population"):
        eta = fit.predict(rows, kind="link", effects=effects)
        np.testing.assert_allclose(fit.predict(rows, effects=effects), expit(eta), rtol=1e-12)


def test_conditional_is_the_posterior_mean_of_mu(rows):
    """By a fine grid of the exact posterior of each member, from the data alone."""
    fit, data = members(), visits().dropna()
    tau = fit.varcorr[0]["sd"]
    b = np.linspace(-9 * tau, 9 * tau, 20001)
    expected = []
    for _, row in rows.iterrows():
        own = data[data["member"] == row["member"]]
        eta = linear_predictor(fit, own)[:, None] + b
        sign = np.where(own["sick"] == "yes", 1, -1)[:, None]
        density = np.exp(norm.logpdf(b, 0, tau) - np.logaddexp(0, -sign * eta).sum(0))
        mu = expit(linear_predictor(fit, row.to_frame().T.infer_objects())[0] + b)
        expected.append(np.sum(mu * density) / np.sum(density))
    np.testing.assert_allclose(fit.predict(rows), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "sd", "method"),
    [("binomial", 4.0, "laplace"), (jg.Binomial("cloglog"), 2.0, "agq"), ("poisson", 1.5, "laplace"),
     (jg.Binomial("cauchit"), 1.5, "laplace")],
)  # fmt: skip
def test_a_prediction_is_of_the_posterior_that_ranef_is_of(tmp_path, family, sd, method):
    """Posterior means of mu on a fine grid, whatever nodes the fit had, in memory and loaded; so are those of b."""
    rng = np.random.default_rng(6)
    g, family = np.repeat(np.arange(60), 5), jg.Binomial() if family == "binomial" else family
    x = rng.normal(size=300)
    poisson = family == "poisson"
    eta = 0.3 * x + sd * rng.normal(size=60)[g] * (1 if poisson else 0.7)
    y = rng.poisson(np.exp(eta)) if poisson else (rng.random(300) < expit(eta)) * 1.0
    data = pd.DataFrame({"y": y, "x": x, "g": g})
    fit = jg.fit("y ~ x + (1 | g)", data, family=family, method=method, theta={"g": sd},
                 n_agq=15 if method == "agq" else None)  # fmt: skip
    b = np.linspace(-10 * sd, 10 * sd, 40001)
    population = fit.predict(kind="link", effects="population")
    if poisson:
        mean, log_mean = np.exp, lambda e, y: y * e - np.exp(e)
    else:
        cdf = {
            "logit": expit, "cloglog": lambda e: -np.expm1(-np.exp(np.minimum(e, 700))),
            "cauchit": lambda e: 0.5 + np.arctan(e) / np.pi,
        }[family.link]  # fmt: skip
        other = {"logit": lambda e: expit(-e), "cloglog": lambda e: np.exp(-np.exp(np.minimum(e, 700))),
                 "cauchit": lambda e: 0.5 - np.arctan(e) / np.pi}[family.link]  # fmt: skip
        mean, log_mean = cdf, lambda e, y: np.log(np.maximum(cdf(e) if y else other(e), 1e-300))
    expected, means = [], []
    for k in range(12):
        own = np.flatnonzero(g == k)
        f = norm.logpdf(b, 0, sd) + sum(log_mean(population[i] + b, y[i]) for i in own)
        density = np.exp(f - f.max())
        expected += [np.average(mean(population[i] + b), weights=density) for i in own]
        means.append(np.average(b, weights=density))
    np.testing.assert_allclose(fit.predict()[:60], expected, rtol=5e-7)
    np.testing.assert_allclose(fit.ranef()["mean"][:12], means, rtol=1e-7, atol=1e-8)
    fit.save(tmp_path / "fit")
    loaded = jg.load(tmp_path / "fit")
    np.testing.assert_array_equal(loaded.predict(data), fit.predict(data))
    for interval in ({"interval": 0.9}, {"interval": 0.9, "uncertainty": False}):
        pd.testing.assert_frame_equal(loaded.predict(data, **interval), fit.predict(data, **interval))


def test_several_factors_are_averaged_over_together():
    """E exp(eta) of crossed counts, held sds, by sampling the normal posterior of the joint Hessian at the modes."""
    rng = np.random.default_rng(2)
    g, h = (v.ravel() for v in np.meshgrid(np.arange(6), np.arange(5)))
    data = pd.DataFrame({"y": rng.poisson(2.0, 30), "g": g, "h": h})
    fit = jg.fit("y ~ 1 + (1 | g) + (1 | h)", data, family="poisson", theta={"g": 0.8, "h": 0.8}, method="laplace")
    Z = np.hstack([(g[:, None] == np.arange(6)) * 1.0, (h[:, None] == np.arange(5)) * 1.0])
    mu = fit.predict(effects="mode")
    S = np.linalg.inv((Z * mu[:, None]).T @ Z + np.eye(11) / 0.64)
    expected = mu * np.exp(0.5 * np.einsum("ma,ab,mb->m", Z, S, Z))
    np.testing.assert_allclose(fit.predict(), expected, rtol=1e-8)


def test_marginal_averages_over_groups(rows):
    fit = members()
    tau = fit.varcorr[0]["sd"]
    expected = [
        quad(lambda b, e=eta: expit(e + b) * norm.pdf(b, 0, tau), -12 * tau, 12 * tau, epsabs=1e-13, limit=200)[0]
        for eta in linear_predictor(fit, rows)
    ]
    np.testing.assert_allclose(fit.predict(rows, effects="marginal"), expected, rtol=1e-10)


def test_new_levels(rows):
    fit = members()
    new = rows.assign(member=["m00", "ann", "bob", "m03", "ann"])
    unseen = np.array([False, True, True, False, True])
    marginal, population = fit.predict(new, effects="marginal"), fit.predict(new, effects="population")
    seen = fit.predict(new[~unseen])
    for effects in ("conditional", "mode"):
        integrated = fit.predict(new, effects=effects)
        np.testing.assert_allclose(integrated[unseen], marginal[unseen], rtol=1e-13)
        zero = fit.predict(new, effects=effects, new_levels="population")
        np.testing.assert_allclose(zero[unseen], population[unseen], rtol=1e-13)
    np.testing.assert_allclose(fit.predict(new)[~unseen], seen, rtol=1e-13)
    eta = fit.predict(new, kind="link")
    np.testing.assert_allclose(eta[unseen], linear_predictor(fit, new)[unseen])
    with pytest.raises(jg.DataError, match=r"'member'.*'ann', 'bob'.*row 1 .*integrate"):
        fit.predict(new, new_levels="error")
    assert len(fit.predict(rows, new_levels="error")) == 5


def test_training_rows_are_predicted_like_new_ones():
    fit, data = members(), visits()
    for effects in ("conditional", "mode", "marginal", "population"):
        with_missing = fit.predict(data, effects=effects)
        assert np.isnan(with_missing[5]) and np.isnan(with_missing).sum() == 1
        np.testing.assert_allclose(fit.predict(effects=effects), np.delete(with_missing, 5), rtol=1e-13)


def test_a_missing_group_is_not_a_new_one(rows):
    fit, new = members(), rows.assign(member=[None, "ann", "m02", "m03", "m04"])
    assert np.isnan(fit.predict(new)).tolist() == [True, False, False, False, False]
    assert np.isfinite(fit.predict(new, effects="population")).all()
    fit.predict(new.assign(member=[None, "m01", "m02", "m03", "m04"]), new_levels="error")


def test_population_needs_no_group_column(rows):
    fit = members()
    bare = rows.drop(columns="member")
    np.testing.assert_array_equal(fit.predict(bare, effects="population"), fit.predict(rows, effects="population"))
    with pytest.raises(jg.DataError, match="'member'"):
        fit.predict(bare)


@pytest.mark.reference
def test_gaussian_predictions_are_linear(reference_dir):
    fit = sleepstudy(reference_dir, reml=True)
    new = pd.DataFrame({"Days": [0.5, 2.0, 3.0], "Subject": [308, 999, 309]})
    conditional = fit.predict(new)
    np.testing.assert_array_equal(conditional, fit.predict(new, kind="link"))
    np.testing.assert_array_equal(conditional, fit.predict(new, effects="mode"))
    population = fit.fixef["Intercept"] + fit.fixef["Days"] * new["Days"]
    np.testing.assert_allclose(fit.predict(new, effects="marginal"), population)
    b = fit.ranef()["estimate"].to_numpy().reshape(18, 2)
    shift = [b[0] @ [1, 0.5], 0, b[1] @ [1, 3]]
    np.testing.assert_allclose(conditional, population + shift, rtol=1e-13)


@pytest.mark.parametrize(
    ("link", "mean"),
    [
        ("logit", expit),
        ("probit", norm.cdf),
        ("cloglog", lambda e: -np.expm1(-np.exp(np.minimum(e, 700)))),
        ("cauchit", lambda e: 0.5 + np.arctan(e) / np.pi),
    ],
)
def test_normal_averages(link, mean):
    eta, sd = np.array([-3.0, -0.5, 0.0, 1.0, 4.0]), np.array([0.0, 0.3, 1.0, 4.0, 2.0])
    # A dense trapezoid of its own: quad misses narrow peaks.
    t = np.linspace(-12, 12, 200001)
    weight = norm.pdf(t) / norm.pdf(t).sum()
    expected = [np.sum(mean(e + s * t) * weight) for e, s in zip(eta, sd, strict=True)]
    np.testing.assert_allclose(normal_average(jg.Binomial(link), eta, sd**2), expected, rtol=2e-8)


def test_normal_averages_in_closed_form():
    eta, variance = np.array([-1.0, 0.0, 2.0]), np.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(normal_average(jg.Poisson(), eta, variance), np.exp(eta + variance / 2))
    np.testing.assert_allclose(normal_average(jg.Poisson(link="sqrt"), eta, variance), eta**2 + variance)


def test_bad_options_list_the_good_ones(rows):
    fit = members()
    for option, value in (("kind", "probability"), ("effects", "random"), ("new_levels", "zero")):
        with pytest.raises(jg.DataError, match=f"{option} must be one of .*found '{value}'"):
            fit.predict(rows, **{option: value})
    with pytest.raises(jg.DataError, match="interval must be a level"):
        fit.predict(rows, interval=90)


def test_an_offset_given_as_an_array_cannot_be_repeated():
    rng = np.random.default_rng(0)
    data = {"y": rng.normal(size=20), "x": rng.normal(size=20)}
    fit = jg.fit("y ~ x", data, offset=np.ones(20))
    np.testing.assert_allclose(fit.predict().mean(), data["y"].mean())
    with pytest.raises(jg.DataError, match=r"offset.*array.*column"):
        fit.predict(data)


def test_simulate_draws_new_effects():
    fit = members()
    draws = fit.simulate(400, seed=1)
    assert draws.shape == (fit.n, 400) and set(np.unique(draws)) == {0.0, 1.0}
    np.testing.assert_array_equal(draws, fit.simulate(400, seed=1))
    marginal = fit.predict(effects="marginal")
    # Each row's mean over 400 draws has a standard error of at most 0.025.
    assert np.abs(draws.mean(1) - marginal).max() < 0.11 and abs(draws.mean() - marginal.mean()) < 0.01
    member = visits().dropna()["member"].to_numpy()
    same = member[:-1] == member[1:]
    paired = [np.corrcoef(d[:-1][same], d[1:][same])[0, 1] for d in draws.T]
    assert np.mean(paired) > 0.15  # rows of one member go together
    with pytest.raises(jg.DataError, match="n must be a whole number of at least 1"):
        fit.simulate(0)


def test_marginal_coefficients_in_closed_form():
    """Random intercept: beta / sqrt(1 + tau^2) with the probit link, the intercept moved by tau^2/2 with the log."""
    rng = np.random.default_rng(11)
    g = np.repeat(np.arange(150), 6)
    x = rng.normal(size=900)
    eta = 0.3 + 0.5 * x + 0.8 * rng.normal(size=150)[g]
    probit = jg.fit("y ~ x + (1 | g)", {"y": (eta + rng.normal(size=900) > 0) * 1.0, "x": x, "g": g},
                    family=jg.Binomial(link="probit"), method="laplace")  # fmt: skip
    tau2, beta = probit.varcorr[0]["variance"], np.array(list(probit.fixef.values()))
    found = probit.marginal_coefficients()
    np.testing.assert_allclose(found["estimate"], beta / np.sqrt(1 + tau2), rtol=1e-9)
    np.testing.assert_allclose(found["conditional"], beta)
    # Delta method by hand, in (beta, tau).
    V = of_columns(probit, raw_covariance(probit.state))[:3, :3]
    J = np.column_stack([np.eye(2) / np.sqrt(1 + tau2), -beta * np.sqrt(tau2) / (1 + tau2) ** 1.5])
    np.testing.assert_allclose(found["se"], np.sqrt(np.diag(J @ V @ J.T)), rtol=1e-5)
    counts = jg.fit("y ~ x + (1 | g)", {"y": rng.poisson(np.exp(eta)), "x": x, "g": g}, family="poisson",
                    method="laplace")  # fmt: skip
    found = counts.marginal_coefficients({"x": x[:50], "g": g[:50]})
    moved = np.array([0.5 * counts.varcorr[0]["variance"], 0])
    np.testing.assert_allclose(found["estimate"], np.array(list(counts.fixef.values())) + moved, rtol=1e-9)


def test_marginal_coefficients_of_a_slope_are_those_of_the_averaged_curve():
    """Least squares of the marginal logits, each by numerical integration; a saved fit needs data."""
    fit = members()
    data = visits().dropna().iloc[:40]
    found = fit.marginal_coefficients(data).set_index("name")["estimate"]
    tau, eta = fit.varcorr[0]["sd"], linear_predictor(fit, data)
    mu = np.array(
        [quad(lambda b, e=e: expit(e + b) * norm.pdf(b, 0, tau), -9 * tau, 9 * tau, epsabs=1e-12)[0] for e in eta]
    )
    X = np.column_stack([np.ones(40), data["x"], data["arm"] == "placebo"])
    expected = np.linalg.lstsq(X, np.log(mu / (1 - mu)) - data["effort"], rcond=None)[0]
    np.testing.assert_allclose(found[["Intercept", "x", "arm[T.placebo]"]], expected, rtol=1e-8)
    assert (np.abs(found) < np.abs(np.array(list(fit.fixef.values())))).all()
