"""Bootstrap, jackknife and pooling against fits one by one."""

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(12), rng.integers(4, 9, 12))
    x = rng.normal(size=len(g))
    return pd.DataFrame({"y": 1 + 2 * x + rng.normal(size=12)[g] + rng.normal(size=len(g)), "x": x, "g": g})


@pytest.fixture(scope="module")
def fit(data):
    return jg.fit("y ~ x + (1 | g)", data)


def estimates(fit):
    return fit.confint()["estimate"].to_numpy()


def test_the_jackknife_leaves_out_each_group(data, fit):
    found = fit.jackknife()
    alone = np.array([estimates(jg.fit("y ~ x + (1 | g)", data[data["g"] != k])) for k in range(12)])
    np.testing.assert_allclose(found.replicates, alone, rtol=1e-7)
    table = found.table()
    se = np.sqrt(11 / 12 * np.sum((alone - alone.mean(0)) ** 2, 0))
    np.testing.assert_allclose(table["se"], se, rtol=1e-6)
    np.testing.assert_allclose(table["bias"], 11 * (alone.mean(0) - estimates(fit)), rtol=1e-5, atol=1e-7)


def test_the_parametric_bootstrap_refits_simulated_responses(data, fit):
    found = fit.bootstrap(300, seed=1)
    first = fit.simulate(300, np.random.default_rng(1))[:, 0]
    np.testing.assert_allclose(
        found.replicates[0], estimates(jg.fit("y ~ x + (1 | g)", data.assign(y=first))), rtol=1e-7
    )
    table = found.table()
    np.testing.assert_allclose(table["se"].iloc[:2], list(fit.fixef_se.values()), rtol=0.2)
    lower, upper = np.quantile(found.replicates, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(table["lower"], lower)
    np.testing.assert_allclose(table["upper"], upper)
    assert list(table["parameter"]) == ["Intercept", "x", "sd[Intercept|g]", "sigma"]


def test_the_cases_bootstrap_draws_groups(fit):
    found = fit.bootstrap(200, "cases", seed=2)
    assert found.replicates.shape == (200, 4) and not found.failed
    np.testing.assert_allclose(found.table()["se"].iloc[:2], list(fit.fixef_se.values()), rtol=0.35)


def test_bca_intervals(fit):
    """Shares by Efron & Tibshirani's formulas, written out for one parameter."""
    from statistics import NormalDist

    boot, jack, normal = fit.bootstrap(400, seed=3), fit.jackknife(), NormalDist()
    table = boot.table(0.9, jackknife=jack)
    k = boot.parameters.index("sd[Intercept|g]")
    values, left = boot.replicates[:, k], jack.replicates[:, k]
    z0 = normal.inv_cdf(np.mean(values < boot.estimate[k]))
    d = left.mean() - left
    a = np.sum(d**3) / (6 * np.sum(d**2) ** 1.5)
    for share, bound in ((0.05, "lower"), (0.95, "upper")):
        z = z0 + normal.inv_cdf(share)
        assert table[bound][k] == pytest.approx(np.quantile(values, normal.cdf(z0 + z / (1 - a * z))), rel=1e-9)
    assert abs(z0) > 0.01 and table["lower"][k] != boot.table(0.9)["lower"][k]
    with pytest.raises(jg.DataError, match="jackknife"):
        boot.table(jackknife=boot)


@pytest.mark.parametrize("kind", ["bootstrap", "jackknife"])
def test_replicates_are_drawn(fit, kind, tmp_path):
    replicates = fit.bootstrap(100, seed=1) if kind == "bootstrap" else fit.jackknife()
    fig = replicates.plot(path=tmp_path / "replicates.png")
    assert (tmp_path / "replicates.png").read_bytes().startswith(b"\x89PNG")
    assert [ax.get_title(loc="left") for ax in fig.axes] == list(replicates.parameters)


def test_what_cannot_be_replicated_is_told(data, fit):
    with pytest.raises(jg.DataError, match="'rows'"):
        fit.bootstrap(10, "rows")
    with pytest.raises(jg.DataError, match="at least 2"):
        fit.bootstrap(1)
    with pytest.raises(jg.NotYetError, match="all estimated"):
        jg.fit("y ~ x + (1 | g)", data, theta={"g": 1.0}).bootstrap(10)


def test_pooling_is_rubins(data):
    rng = np.random.default_rng(3)
    fits = [jg.fit("y ~ x + (1 | g)", data.assign(x=data["x"] + 0.1 * rng.normal(size=len(data)))) for _ in range(4)]
    pooled = jg.pool(fits)
    beta = np.array([fit.fixef["x"] for fit in fits])
    within, between = np.mean([fit.fixef_se["x"] ** 2 for fit in fits]), beta.var(ddof=1)
    assert pooled.estimate[1] == pytest.approx(beta.mean())
    assert pooled.se[1] == pytest.approx(np.sqrt(within + 1.25 * between))
    assert pooled.missing[1] == pytest.approx(1.25 * between / pooled.se[1] ** 2)
    complete = len(data) - 2
    old, seen = 3 / pooled.missing[1] ** 2, (complete + 1) / (complete + 3) * complete * (1 - pooled.missing[1])
    assert pooled.df[1] == pytest.approx(old * seen / (old + seen))
    assert list(pooled.table()["parameter"]) == ["Intercept", "x"]
    with pytest.raises(jg.DataError, match="at least two"):
        jg.pool(fits[:1])
    with pytest.raises(jg.DataError, match="one model"):
        jg.pool([fits[0], jg.fit("y ~ 1 + (1 | g)", data)])
