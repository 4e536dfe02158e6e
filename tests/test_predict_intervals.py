"""Intervals of predictions against simulation from the posterior and dense linear algebra."""

import numpy as np
import pandas as pd
import pytest
from fitted_models import members, of_columns, visits
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
    sigma = sigma_of(fit)
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


def crossed(seed=0, rows=10):
    """20 x 20 crossed levels with so many rows a cell, their coordinates and the two matrices of indicators."""
    rng = np.random.default_rng(seed)
    g, h = (np.repeat(v.ravel(), rows) for v in np.meshgrid(np.arange(20), np.arange(20)))
    x = rng.normal(size=len(g))
    eta = 0.3 + 0.5 * x + rng.normal(size=20)[g] + 0.7 * rng.normal(size=20)[h]
    Z = np.hstack([(g[:, None] == np.arange(20)) * 1.0, (h[:, None] == np.arange(20)) * 1.0])
    return rng, pd.DataFrame({"x": x, "g": g, "h": h}), eta, np.column_stack([np.ones(len(g)), x]), Z


def sigma_of(fit) -> float:
    return (fit.dispersion or {})["value"]


def saved(fit, folder):
    fit.save(folder / "fit")
    return jg.load(folder / "fit")


@pytest.mark.parametrize("reml", [False, True])
def test_crossed_gaussian_factors_have_the_dense_prediction_variance(tmp_path, reml):
    """Mixed model equations (Henderson 1975) and the delta method's part for both sds and sigma."""
    rng, data, eta, X, Z = crossed()
    data["y"] = eta + 0.6 * rng.normal(size=len(eta))
    fit = jg.fit("y ~ x + (1 | g) + (1 | h)", data, reml=reml)
    C, beta = np.hstack([X, Z]), np.array(list(fit.fixef.values()))
    theta = np.array([fit.varcorr[0]["sd"], fit.varcorr[1]["sd"], np.log(sigma_of(fit))])
    precision = lambda t: np.repeat(t[:2] ** -2, 20)
    modes = lambda t: np.linalg.solve(
        Z.T @ Z * np.exp(-2 * t[2]) + np.diag(precision(t)), Z.T @ (data["y"] - X @ beta) * np.exp(-2 * t[2])
    )
    full = np.linalg.inv(C.T @ C * np.exp(-2 * theta[2]) + np.diag(np.r_[0, 0, precision(theta)]))
    J = np.stack([(modes(theta + e) - modes(theta - e)) / 2e-4 for e in 1e-4 * np.eye(3)], 1)
    V = fit.state.estimate.covariance[2:, 2:] * np.outer([*theta[:2], 1], [*theta[:2], 1])
    full[2:, 2:] += J @ V @ J.T
    at = [0, 7, 333, 3999]
    half = norm.ppf(0.975) * np.sqrt(np.einsum("ma,ab,mb->m", C[at], full, C[at]))
    found = fit.predict(data.iloc[at], interval=0.95)
    np.testing.assert_allclose((found["upper"] - found["lower"]) / 2, half, rtol=1e-4)
    eb = np.concatenate([fit.ranef(factor)["sd_eb"] for factor in "gh"])
    np.testing.assert_allclose(eb, np.sqrt(np.diag(full)[2:]), rtol=1e-4)
    pd.testing.assert_frame_equal(saved(fit, tmp_path).predict(data.iloc[at], interval=0.95), found)


def test_levels_that_never_met_have_the_dense_variance_too(tmp_path):
    rng, data, eta, X, Z = crossed(1, 3)
    data["y"] = eta + 0.6 * rng.normal(size=len(eta))
    kept = ((data["g"] + data["h"]) % 3 > 0).to_numpy()
    fit = jg.fit("y ~ x + (1 | g) + (1 | h)", data[kept], theta={"g": 1.0, "h": 0.7})
    C, s = np.hstack([X, Z]), sigma_of(fit)
    precision = np.diag(np.r_[0, 0, np.repeat([1.0, 0.49**-1], 20)])
    inverse = np.linalg.inv(C[kept].T @ C[kept] / s**2 + precision)
    new = C[~kept][::50]
    beta, b = np.array(list(fit.fixef.values())), np.concatenate([fit.ranef(f)["mean"] for f in "gh"])
    slope = (
        -np.linalg.solve(
            Z[kept].T @ Z[kept] / s**2 + precision[2:, 2:],
            2 * Z[kept].T @ (data["y"][kept] - X[kept] @ beta - Z[kept] @ b),
        )
        / s**2
    )  # in log sigma
    variance = np.einsum("ma,ab,mb->m", new, inverse, new)
    variance += (new[:, 2:] @ slope) ** 2 * fit.state.estimate.covariance[-1, -1]
    for one in (fit, saved(fit, tmp_path)):
        found = one.predict(data[~kept].iloc[::50], interval=0.95)
        np.testing.assert_allclose((found["upper"] - found["lower"]) / 2, norm.ppf(0.975) * variance**0.5, rtol=1e-5)


@pytest.mark.parametrize(
    "formula", ["y ~ x + (1 | g) + (1 | h)", "y ~ x + (1 | h / g)", "y ~ x + (1 + x | g) + (1 | h)"]
)
def test_counts_have_the_variance_of_the_joint_hessian(tmp_path, formula):
    """(beta, u) together at held sds, as glmmTMB's standard errors of predictions are, without a part for theta."""
    rng, data, eta, X, Z = crossed(2)
    data["y"] = rng.poisson(np.exp(eta))
    if "/" in formula:
        cell = (data["h"] * 20 + data["g"]).to_numpy()
        Z, theta = np.hstack([Z[:, 20:], (cell[:, None] == np.arange(400)) * 1.0]), {"h": 0.7, "h:g": 0.3}
        precision = np.repeat([0.7**-2, 0.3**-2], [20, 400])
    else:
        theta, precision = {"g": 1.0, "h": 0.7}, np.repeat([1, 0.7**-2], 20)
    if "+ x |" in formula:
        Z = np.hstack([Z, Z[:, :20] * X[:, 1:]])
        theta, precision = {"g": [1.0, 0.2], "h": 0.7}, np.r_[precision, np.repeat(25, 20)]
    names = [n for n in theta]
    fit = jg.fit(formula, data, family="poisson", theta=theta, method="laplace")
    assert set(fit.groups) == set(names)
    C = np.hstack([X, Z])
    mu = fit.predict(effects="mode")
    inverse = np.linalg.inv((C * mu[:, None]).T @ C + np.diag(np.r_[0, 0, precision]))
    at = [0, 7, 333, 3999]
    half = norm.ppf(0.975) * np.sqrt(np.einsum("ma,ab,mb->m", C[at], inverse, C[at]))
    found = fit.predict(data.iloc[at], kind="link", interval=0.95)
    np.testing.assert_allclose((found["upper"] - found["lower"]) / 2, half, rtol=5e-3)
    pd.testing.assert_frame_equal(saved(fit, tmp_path).predict(data.iloc[at], kind="link", interval=0.95), found)


def test_few_groups_of_many_rows_are_known_well(tmp_path):
    """4 groups of 100 rows, sigma 1: a group's mean has the standard error 0.1, a little less for being shrunken."""
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(4), 100)
    data = pd.DataFrame({"y": 1 + rng.normal(size=4)[g] + rng.normal(size=400), "g": g})
    fit = jg.fit("y ~ 1 + (1 | g)", data)
    one = data.iloc[::100]
    found = fit.predict(one, interval=0.95)
    half = (found["upper"] - found["lower"]) / 2 / norm.ppf(0.975)
    np.testing.assert_allclose(half, sigma_of(fit) / 10, rtol=0.05)
    pd.testing.assert_frame_equal(saved(fit, tmp_path).predict(one, interval=0.95), found, rtol=1e-12)


@pytest.mark.parametrize("groups", [10, 120])
def test_logistic_groups_have_the_variance_of_the_joint_hessian(tmp_path, groups):
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(groups), 400)
    x = rng.normal(size=len(g))
    y = (rng.random(len(g)) < expit(0.2 * x + rng.normal(size=groups)[g])) * 1.0
    data = pd.DataFrame({"y": y, "x": x, "g": g})
    fit = jg.fit("y ~ x + (1 | g)", data, family="binomial", theta={"g": 1.0})
    C = np.column_stack([np.ones(len(g)), x, (g[:, None] == np.arange(groups))])
    mu = fit.predict(effects="mode")
    inverse = np.linalg.inv((C * (mu * (1 - mu))[:, None]).T @ C + np.diag(np.r_[0, 0, np.ones(groups)]))
    half = norm.ppf(0.975) * np.sqrt(np.einsum("ma,ab,mb->m", C[::400], inverse, C[::400]))
    for one in (fit, saved(fit, tmp_path)):
        found = one.predict(data.iloc[::400], kind="link", interval=0.95)
        np.testing.assert_allclose((found["upper"] - found["lower"]) / 2, half, rtol=0.01)
    free = jg.fit("y ~ x + (1 | g)", data, family="binomial").predict(data.iloc[::400], kind="link", interval=0.95)
    np.testing.assert_allclose((free["upper"] - free["lower"]) / 2, half, rtol=0.03)


def test_the_uncertainty_of_the_sd_is_in_new_members_intervals():
    """Quantiles by simulation from the fit's own posterior of (tau, beta), and another prior of the caller's."""
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(30), 3)
    data = pd.DataFrame({"y": (rng.random(90) < expit(rng.normal(size=30)[g])) * 1.0, "g": g})
    fit = jg.fit("y ~ 1 + (1 | g)", data, family="binomial")
    new = pd.DataFrame({"g": [99]})
    assert fit.effects_method() == "integrated" and "prior UniformShrinkage(0.75)" in fit.summary().text
    of = fit._effects(0).mixture
    assert of is not None
    which = rng.choice(len(of.weights), 400_000, p=of.weights)
    draws = of.beta[which, 0] + np.sqrt(of.vcov[which, 0, 0] + of.sds[which] ** 2) * rng.normal(size=len(which))
    found = fit.predict(new, kind="link", interval=0.9)
    np.testing.assert_allclose([*found["lower"], *found["upper"]], np.quantile(draws, [0.05, 0.95]), atol=0.02)
    wide = fit.predict(new, kind="link", interval=0.9, prior=jg.HalfStudentPrior(3, 5.0))
    assert wide["upper"][0] - wide["lower"][0] > 1.1 * (found["upper"][0] - found["lower"][0])
    own = jg.fit("y ~ 1 + (1 | g)", data, family="binomial", prior={"g": jg.HalfStudentPrior(3, 5.0)})
    assert "prior HalfStudent(3, 5)" in own.summary().text
    np.testing.assert_allclose(own.predict(new, kind="link", interval=0.9), wide, rtol=0.1, atol=0.15)
    with pytest.raises(jg.DataError, match="density of a standard deviation"):
        fit.predict(new, interval=0.9, prior=jg.NormalPrior(1.0))


@pytest.mark.parametrize(("groups", "tau", "options"), [(20, 1.0, {}), (150, 0.4, {"method": "laplace"})])
def test_ends_are_quantiles_of_the_exact_posterior(groups, tau, options):
    """Against integration over (tau, beta, b) on a grid: of groups of 3 binary rows only the events count."""
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(groups), 3)
    y = (rng.random(len(g)) < expit(-0.5 + tau * rng.normal(size=groups)[g])) * 1.0
    events = np.bincount(g, y).astype(int)
    fit = jg.fit("y ~ 1 + (1 | g)", pd.DataFrame({"y": y, "g": g}), family="binomial", **options)
    assert fit.effects_method() == "integrated"
    betas = next(iter(fit.fixef.values())) + np.linspace(-1, 1, 41) * 7 / np.sqrt(groups)
    taus = 0.75 * np.expm1(np.linspace(0.02, 2.5, 60))
    u, at = np.linspace(-8, 8, 321), np.linspace(-12, 9, 1201)
    eta = betas[:, None, None] + taus[:, None] * u
    k = np.arange(4)[:, None, None, None]
    mass = expit(eta) ** k * expit(-eta) ** (3 - k) * norm.pdf(u)  # (events, beta, tau, u)
    prior = np.log(taus) - 2 * np.log(0.75**2 + taus**2) + np.log(0.75 + taus)
    log = np.einsum("k,kbt->bt", np.bincount(events, minlength=4), np.log(mass.sum(-1))) + prior
    weight = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    cdf = np.zeros((5, len(at)))
    for b, t in np.argwhere(weight > 1e-9):
        for j in range(4):
            F = np.cumsum(mass[j, b, t]) - 0.5 * mass[j, b, t]
            cdf[j] += weight[b, t] * np.interp(at, eta[b, t], F / mass[j, b, t].sum(), 0, 1)
        cdf[4] += weight[b, t] * norm.cdf(at, betas[b], taus[t])
    exact = np.array([np.interp([0.025, 0.975], F, at) for F in cdf])
    rows = [*(int(np.flatnonzero(events == j)[0]) for j in range(4)), groups + 1]
    found = fit.predict(pd.DataFrame({"g": rows}), kind="link", interval=0.95)[["lower", "upper"]].to_numpy()
    # What is left: beta normal at each tau.
    length = exact[:, 1] - exact[:, 0]
    np.testing.assert_array_less(np.abs(found - exact) / length[:, None], 0.03 if groups == 20 else 0.006)


def test_where_the_sd_is_clear_its_logarithm_is_normal():
    """New members of many groups: draws of (beta, log tau) from their joint normal distribution."""
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(60), 20)
    x = rng.normal(size=1200)
    data = pd.DataFrame({"y": rng.poisson(np.exp(0.3 * x + rng.normal(size=60)[g])), "x": x, "g": g})
    fit = jg.fit("y ~ x + (1 | g)", data, family="poisson")
    assert fit.effects_method() == "delta"
    covariance = of_columns(fit, fit.state.estimate.covariance)
    draws = rng.multivariate_normal([*fit.fixef.values(), np.log(fit.varcorr[0]["sd"])], covariance, 400_000)
    eta = draws[:, 0] + 2 * draws[:, 1] + np.exp(draws[:, 2]) * rng.normal(size=len(draws))
    found = fit.predict(pd.DataFrame({"x": [2.0], "g": [99]}), kind="link", interval=0.95)
    np.testing.assert_allclose([*found["lower"], *found["upper"]], np.quantile(eta, [0.025, 0.975]), atol=0.02)


def test_a_saved_fit_and_bad_levels(rows, tmp_path):
    fit = members()
    fit.save(tmp_path / "fit", rows=True)
    loaded = jg.load(tmp_path / "fit")
    given = {"interval": 0.9, "uncertainty": False}
    pd.testing.assert_frame_equal(loaded.predict(rows, **given), fit.predict(rows, **given))
    wide, exact = loaded.predict(rows, kind="link", interval=0.9), fit.predict(rows, kind="link", interval=0.9)
    pd.testing.assert_frame_equal(wide, exact)
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


@pytest.mark.parametrize("family", ["poisson", "gaussian"])
def test_by_conjugate_gradients_intervals_are_the_dense_ones(family, monkeypatch):
    """Crossed factors whose covariances are too many for a dense matrix, levels that meet in the data and others."""
    from jaxglmm.fitted import joint

    rng = np.random.default_rng(0)
    a, b, x = rng.integers(0, 40, 600), rng.integers(0, 25, 600), rng.normal(size=600)
    eta = 0.2 + 0.3 * x + 0.6 * rng.normal(size=40)[a] + 0.4 * rng.normal(size=25)[b]
    y = rng.poisson(np.exp(eta)) if family == "poisson" else eta + rng.normal(size=600)
    data = pd.DataFrame({"y": y, "a": a, "b": b, "x": x})
    apart = next((i, j) for i in range(40) for j in range(25) if not ((a == i) & (b == j)).any())
    new = pd.DataFrame({"a": [a[0], apart[0], 5, 999], "b": [b[0], apart[1], 999, 2], "x": 0.5})

    def found():
        fit = jg.fit("y ~ x + (1 | a) + (1 | b)", data, family=family)
        tables = [fit.predict(new, kind="link", interval=0.95, uncertainty=u) for u in (True, False)]
        return [table[["lower", "upper"]].to_numpy() for table in (*tables, fit.ranef("a", interval=0.9))]

    dense, asked, choose = found(), [], joint.choose_solver
    monkeypatch.setattr(joint, "choose_solver", lambda design: asked.append(1) or choose(design, "krylov"))
    for ours, theirs in zip(found(), dense, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)
    assert asked
