"""Further rows of the groups of a fit: the fit that knows them, against one that is given all rows at once."""

import numpy as np
import pandas as pd
import pytest
from fitted_models import members, visits

import jaxglmm as jg


COLUMNS = ["n", "estimate", "sd", "mean", "sd_mean", "reliability"]


def later():
    """Further visits of two members, and of one who is new."""
    data = visits().dropna()
    more = data[data["member"].isin(["m01", "m05"])].assign(x=0.3)
    return pd.concat([more, more.iloc[:2].assign(member="zed")])


def test_an_update_is_exact_where_the_rows_are_there(tmp_path):
    fit, data, more = members(), visits().dropna(), later()
    updated = fit.update(more)
    assert updated.effects_method() == "updated" and updated.groups == {"member": 41} and updated.n == fit.n + len(more)
    together = fit.score(pd.concat([data, more]), interval=0.9).set_index("level")
    found = updated.ranef(interval=0.9, uncertainty=False).set_index("level")
    for name in [*COLUMNS, "lower", "upper"]:
        np.testing.assert_allclose(found[name], together.loc[found.index, name], rtol=1e-7, atol=1e-9)
    twice = fit.update(more.iloc[:3]).update(more.iloc[3:])
    without = lambda fit: fit.ranef().drop(columns="sd_eb")  # in which rows weigh as at the mean of their time
    pd.testing.assert_frame_equal(without(twice), without(updated), rtol=1e-9)
    np.testing.assert_allclose(twice.ranef()["sd_eb"], updated.ranef()["sd_eb"], rtol=1e-3)
    fit.save(tmp_path / "rows", rows=True)
    pd.testing.assert_frame_equal(jg.load(tmp_path / "rows").update(more).ranef(), updated.ranef(), rtol=1e-12)
    updated.save(tmp_path / "updated", rows=True)
    again = jg.load(tmp_path / "updated")
    pd.testing.assert_frame_equal(again.ranef(interval=0.9), updated.ranef(interval=0.9))
    np.testing.assert_array_equal(again.predict(more), updated.predict(more))


def test_an_updated_fit_predicts_and_ranks(tmp_path):
    fit, data, more = members(), visits().dropna(), later()
    updated = fit.update(more)
    everything = pd.concat([data, more])
    pd.testing.assert_frame_equal(
        updated.rank().sort_values("level", ignore_index=True)[["level", "n", "rank", "p_top"]],
        fit.rank(data=everything).sort_values("level", ignore_index=True)[["level", "n", "rank", "p_top"]],
        rtol=1e-7,
    )
    # The mean of mu over the posterior, by brute force.
    rows = more.iloc[[0, -1]].assign(x=[0.5, -1.0])
    eta, tau = fit.predict(everything, kind="link", effects="population"), fit.varcorr[0]["sd"]
    own = fit.predict(rows, kind="link", effects="population")
    sign = np.where(everything["sick"] == "yes", 1, -1)
    b = np.linspace(-9 * tau, 9 * tau, 4001)
    for (_, row), at, found in zip(rows.iterrows(), own, updated.predict(rows), strict=True):
        here = (everything["member"] == row["member"]).to_numpy()
        density = np.exp(-0.5 * (b / tau) ** 2 - np.logaddexp(0, -sign[here, None] * (eta[here, None] + b)).sum(0))
        np.testing.assert_allclose(found, np.sum(density / (1 + np.exp(-at - b))) / np.sum(density), rtol=1e-6)
    others = data[~data["member"].isin(["m01", "m05"])]
    np.testing.assert_array_equal(updated.predict(others), fit.predict(others))
    ends = updated.predict(rows, interval=0.9)
    assert (ends["lower"] < ends["prediction"]).all() and (ends["prediction"] < ends["upper"]).all()
    with pytest.raises(jg.DataError, match="needs the rows of the fit"):
        updated.residuals()


def test_without_rows_a_normal_prior_stands_for_them(tmp_path):
    fit, more = members(), later()
    fit.save(tmp_path / "none")
    near, exact = jg.load(tmp_path / "none").update(more), fit.update(more)
    assert near.effects_method() == "approximated" and "N(mode, curvature)" in near.ranef().attrs["sd_eb"]
    assert near.update(more.iloc[:1]).effects_method() == "approximated"
    found, expected = near.ranef(), exact.ranef()
    assert found["n"].tolist() == expected["n"].tolist()
    np.testing.assert_allclose(found["mean"], expected["mean"], atol=0.1)
    moved = np.abs(found["mean"] - expected["mean"]) > 1e-6
    assert set(found["level"][moved]) == {"m01", "m05"}  # all is known of the new one


@pytest.mark.parametrize("slopes", [False, True])
def test_gaussian_updates_compose(tmp_path, slopes):
    """Rows in three parts, from a fit that was saved without rows, against all of them at the same parameters."""
    rng = np.random.default_rng(9)
    g = np.repeat(np.arange(130), 4)
    data = pd.DataFrame({"g": g, "x": rng.normal(size=520), "w": rng.uniform(0.5, 2, 520)})
    data["y"] = rng.normal(size=130)[g] + rng.normal(0, 0.7, 130)[g] * data["x"] + rng.normal(size=520)
    fit = jg.fit(f"y ~ x + ({'x' if slopes else '1'} | g)", data[g < 120], weights="w")
    fit.save(tmp_path / "fit")
    parts = [data[g >= 115], data[g < 9].assign(y=1.0), data[(g > 5) & (g < 119)].assign(x=2.0)]
    updated = jg.load(tmp_path / "fit")
    for part in parts:
        updated = updated.update(part)
    together = fit.score(pd.concat([data[g < 120], *parts])).set_index(["level", "term"])
    found = updated.ranef().set_index(["level", "term"])
    assert updated.effects_method() == "updated" and len(found) == len(together)
    for name in COLUMNS:
        np.testing.assert_allclose(found[name], together.loc[found.index, name], rtol=1e-9, atol=1e-11)
    new = pd.DataFrame({"g": [3, 125], "x": [1.0, 1.0]})
    effects = together["mean"].unstack().loc[[3, 125]].sum(axis=1).to_numpy()
    np.testing.assert_allclose(updated.predict(new), sum(fit.fixef.values()) + effects, rtol=1e-9)


def test_several_effects_of_binary_responses():
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(60), 8)
    data = pd.DataFrame({"g": g, "x": rng.normal(size=480)})
    eta = rng.normal(size=60)[g] + rng.normal(0, 0.8, 60)[g] * data["x"]
    data["y"] = (rng.random(480) < 1 / (1 + np.exp(-eta))) * 1.0
    fit = jg.fit("y ~ x + (x | g)", data, family="binomial", method="laplace")
    updated, everything = fit.update(data[g < 3]), pd.concat([data, data[g < 3]])
    found, expected = updated.ranef(), fit.score(everything)
    for name in COLUMNS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-7)
    # Predictions come from nodes about the mode: those of members without new rows are what they were.
    np.testing.assert_array_equal(updated.predict(data[g >= 3]), fit.predict(data[g >= 3]))
    again = updated.update(data[g == 5].assign(y=1.0))
    assert (again.predict(data[g == 5]) > updated.predict(data[g == 5])).all()
    rule = updated._rule()
    assert rule is not None
    nodes = rule.origin[:3, :, None] + rule.root[:3] @ rule.points
    # Nodes are of effects of the centred column.
    mean = np.linalg.solve(fit.state.terms[0].basis, found["mean"].to_numpy().reshape(-1, 2)[:3].T).T
    np.testing.assert_allclose(np.einsum("gsk,gk->gs", nodes, rule.weights[:3]), mean, rtol=1e-6)


@pytest.mark.parametrize("rows", [False, True])
def test_intervals_after_an_update_have_the_dense_variance(tmp_path, rows):
    """Mixed model equations of all rows, with beta's covariance that of the fit: frozen parameters learn nothing."""
    rng = np.random.default_rng(8)
    g, x = np.repeat(np.arange(5), 60), rng.normal(size=300)
    data = pd.DataFrame({"y": 1 + x + rng.normal(size=5)[g] + rng.normal(size=300), "x": x, "g": g})
    first = np.arange(300) % 60 < 40
    fit = jg.fit("y ~ x + (1 | g)", data[first], theta={"g": 1.0})
    s2 = (fit.dispersion or {})["value"] ** 2
    fit.save(tmp_path / "fit", rows=rows)
    found = jg.load(tmp_path / "fit").update(data[~first]).predict(data.iloc[::60], interval=0.95)
    V, X = np.array(fit.vcov), np.column_stack([np.ones(300), x])
    n, sums = 60, np.add.reduceat(X, np.arange(0, 300, 60))
    spread = 1 / (n / s2 + 1)
    to_beta = X[::60] - spread * sums / s2
    half = 1.959964 * np.sqrt(spread + np.einsum("ma,ab,mb->m", to_beta, V, to_beta))
    np.testing.assert_allclose((found["upper"] - found["lower"]) / 2, half, rtol=1e-3)


def test_new_combinations_of_columns_are_named():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"a": np.repeat(["u", "v"], 60), "b": np.tile(np.arange(6), 20), "y": rng.normal(size=120)})
    fit = jg.fit("y ~ 1 + (1 | a:b)", data)
    assert fit.update(data.head(3)).groups == fit.groups
    with pytest.raises(jg.DataError, match="'a:b' gets no new combinations yet, such as 'u:9'"):
        fit.update(data.head(3).assign(b=9))


def test_the_parameters_stay_as_uncertain_as_they_were():
    """Gaussian responses: the posterior mean of all rows as a function of (beta, tau, sigma), by differences."""
    rng = np.random.default_rng(2)
    g, x = np.repeat(np.arange(60), 12), rng.normal(size=720) + 3
    data = pd.DataFrame({"y": 1 + x + rng.normal(size=60)[g] + rng.normal(size=720), "x": x, "g": g})
    first = np.arange(720) % 12 < 8
    fit = jg.fit("y ~ x + (1 | g)", data[first])
    assert fit.effects_method() == "delta" and fit.dispersion is not None
    updated = fit.update(data[~first])
    found, scaling = updated.ranef(), fit.state.estimate.scaling
    X, y = scaling.rows(np.column_stack([np.ones(720), x])), data["y"].to_numpy()
    beta = scaling.beta_from_columns(np.array(list(fit.fixef.values())))
    at = np.array([*beta, np.log(fit.varcorr[0]["sd"]), np.log(fit.dispersion["value"])])

    def mean(v):
        s2, t2 = np.exp(2 * v[3]), np.exp(2 * v[2])
        return np.bincount(g, y - X @ v[:2]) * t2 / (s2 + 12 * t2)

    D = np.stack([(mean(at + h) - mean(at - h)) / 2e-5 for h in 1e-5 * np.eye(4)], 1)
    V = fit.state.estimate.covariance
    spread = np.sqrt(np.square(found["sd_mean"]) + np.einsum("ia,ab,ib->i", D, V, D))
    np.testing.assert_allclose(found["sd_eb"], spread, rtol=1e-6)
    # Of rows: with the covariance of effects and fixed effects, the sds' part of it included.
    rows = data.iloc[::12]
    ends = updated.predict(rows, interval=0.95)
    to_eta = D + np.pad(X[::12], ((0, 0), (0, 2)))
    half = 1.959964 * np.sqrt(np.square(found["sd_mean"]) + np.einsum("ia,ab,ib->i", to_eta, V, to_eta))
    np.testing.assert_allclose((ends["upper"] - ends["lower"]) / 2, half, rtol=1e-5)


def test_an_integrated_posterior_is_updated_part_by_part(tmp_path):
    """Against integration over (beta, tau), whose posterior stays that of the first rows, and b given all rows."""
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(25), 4)
    y = (rng.random(100) < 1 / (1 + np.exp(0.5 - rng.normal(size=25)[g]))) * 1.0
    fit = jg.fit("y ~ 1 + (1 | g)", pd.DataFrame({"y": y, "g": g}), family="binomial")
    assert fit.effects_method() == "integrated"
    more = pd.DataFrame({"y": [1.0, 1, 0, 1, 0, 0], "g": [3, 3, 3, 3, 99, 99]})
    updated = fit.update(more)
    fit.save(tmp_path / "fit")
    updated.save(tmp_path / "updated")
    betas = next(iter(fit.fixef.values())) + np.linspace(-1.5, 1.5, 41)
    taus = 0.75 * np.expm1(np.linspace(0.02, 2.2, 50))
    u, at = np.linspace(-8, 8, 321), np.linspace(-12, 12, 1201)
    eta = betas[:, None, None] + taus[:, None] * u
    of = lambda events, rows: events * eta - rows * np.logaddexp(0, eta) - 0.5 * u * u
    events = np.bincount(g, y)
    marginal = {k: np.log(np.exp(of(k, 4)).sum(-1)) for k in range(5)}
    log = sum(marginal[int(k)] for k in events) + np.log(taus * (0.75 + taus) / (0.75**2 + taus**2) ** 2)
    weight = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    new = pd.DataFrame({"g": [3, 99, 0]})
    ends_of = lambda fit: fit.predict(new, kind="link", interval=0.9)[["lower", "upper"]].to_numpy()
    ends, rough = ends_of(updated), ends_of(jg.load(tmp_path / "fit").update(more))
    for found, near, (k, rows) in zip(ends, rough, [(events[3] + 3, 8), (0, 2), (events[0], 4)], strict=True):
        mass = np.exp(of(k, rows) - of(k, rows).max(-1, keepdims=True))
        F = (np.cumsum(mass, -1) - 0.5 * mass) / mass.sum(-1, keepdims=True)
        cdf = sum(weight[b, t] * np.interp(at, eta[b, t], F[b, t], 0, 1) for b, t in np.argwhere(weight > 1e-8))
        exact = np.interp([0.05, 0.95], cdf, at)
        np.testing.assert_allclose(found, exact, atol=0.03 * (exact[1] - exact[0]))
        np.testing.assert_allclose(near, exact, atol=0.08 * (exact[1] - exact[0]))  # without the first rows
    np.testing.assert_array_equal(ends_of(jg.load(tmp_path / "updated")), ends)
