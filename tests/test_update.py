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
    found = updated.ranef(interval=0.9).set_index("level")
    for name in [*COLUMNS, "lower", "upper"]:
        np.testing.assert_allclose(found[name], together.loc[found.index, name], rtol=1e-7, atol=1e-9)
    twice = fit.update(more.iloc[:3]).update(more.iloc[3:])
    pd.testing.assert_frame_equal(twice.ranef(), updated.ranef(), rtol=1e-9)
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
