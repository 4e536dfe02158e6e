"""What a prior weight is: the same in fits, simulations, bootstrap and residuals; none at all where it is zero."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxglmm as jg


def counts(seed=0, groups=30, rows=6):
    rng = np.random.default_rng(seed)
    g, x = np.repeat(np.arange(groups), rows), rng.normal(size=groups * rows)
    mu = np.exp(0.5 + 0.4 * x + 0.5 * rng.normal(size=groups)[g])
    return pd.DataFrame({"y": rng.poisson(mu), "x": x, "g": g})


def test_a_weighted_poisson_bootstrap_has_the_fit_s_standard_errors():
    """Weight 10, no groups: Wald's standard error 0.030 where the bootstrap had sqrt(10) times as much."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=100)
    data = {"y": rng.poisson(np.exp(0.1 + 0.3 * x)), "x": x, "w": np.full(100, 10.0)}
    fit = jg.fit("y ~ x", data, family="poisson", weights="w")
    for kind in ("parametric", "cases"):
        se = np.asarray(fit.bootstrap(400, kind, seed=2).table()["se"])
        np.testing.assert_allclose(se, list(fit.fixef_se.values()), rtol=0.15)
    draws = fit.simulate(2000, seed=3)
    np.testing.assert_allclose(draws.var(1).sum(), fit.fitted.sum() / 10, rtol=0.03)
    # A simulated response is one that can be fitted, and its quantile residuals are those of its distribution.
    again = jg.fit("y ~ x", data | {"y": draws[:, 0]}, family="poisson", weights="w")
    assert abs(again.fixef["x"] - fit.fixef["x"]) < 5 * fit.fixef_se["x"]
    assert stats.kstest(again.residuals("quantile"), "norm").pvalue > 1e-3
    with pytest.raises(jg.DataError, match="whole number"):
        jg.fit("y ~ x", data | {"y": draws[:, 0] + 0.05}, family="poisson", weights="w")


@pytest.mark.parametrize("family", ["negativebinomial", "gamma", "beta"])
def test_copies_that_one_response_cannot_stand_for(family):
    rng = np.random.default_rng(4)
    n = 60
    x = rng.normal(size=n)
    y = {"negativebinomial": rng.negative_binomial(2, 0.4, n), "gamma": rng.gamma(3, size=n), "beta": rng.beta(2, 3, n)}
    w = rng.integers(1, 5, n)
    data = pd.DataFrame({"y": y[family] * 1.0, "x": x, "w": w})
    fit = jg.fit("y ~ x", data, family=family, weights="w")
    written = jg.fit("y ~ x", data.loc[np.repeat(np.arange(n), w)], family=family)
    assert fit.bic == pytest.approx(written.bic, rel=1e-9) and fit.n == written.n == w.sum()
    with pytest.raises(jg.DataError, match=f"{family} a weight is a number of copies"):
        fit.simulate()
    for kind in ("parametric", "cases"):
        found = fit.bootstrap(20, kind, seed=5)
        np.testing.assert_allclose(found.replicates, written.bootstrap(20, kind, seed=5).replicates, rtol=1e-6)
    half = jg.fit("y ~ x", data, family=family, weights=w + 0.5)
    with pytest.raises(jg.DataError, match=f"{family} model.*whole numbers.*found weights of [1-4].5"):
        half.bootstrap(20)


def test_precisions_and_trials_are_simulated():
    rng = np.random.default_rng(6)
    g = np.repeat(np.arange(20), 5)
    w = rng.integers(1, 9, 100)
    normal = jg.fit("y ~ 1 + (1 | g)", {"y": rng.normal(size=20)[g] + rng.normal(size=100), "g": g}, weights=w)
    p = stats.binom.rvs(w, 0.4, random_state=rng) / w
    trials = jg.fit("p ~ 1 + (1 | g)", {"p": p, "g": g}, weights=w, family="binomial")
    for fit in (normal, trials):
        se = np.asarray(fit.bootstrap(200, seed=7).table()["se"])[0]
        assert se == pytest.approx(fit.fixef_se["Intercept"], rel=0.2)


MODELS = {
    "gaussian": ("y ~ x + f + (1 + x | g)", {"family": "gaussian"}),
    "reml": ("y ~ x + f + (1 | g) + (1 | h)", {"family": "gaussian", "reml": True}),
    "poisson": ("y ~ x + f + (1 | g)", {"family": "poisson"}),
    "negative binomial": ("y ~ x + f", {"family": "negativebinomial"}),
    "counts of trials": ("cbind(s, t) ~ x + f + (1 | g)", {"family": "binomial"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_weight_zero_count_nowhere(name, tmp_path):
    formula, options = MODELS[name]
    data = counts().assign(f=np.tile(list("abc"), 60), h=np.tile(np.arange(9), 20), w=np.tile([1.0, 2.0], 90))
    data = data.assign(s=data["y"].clip(upper=5), t=2)
    nowhere = data.iloc[:7].assign(w=0.0, g=[91, 92, 93, 1, 2, 3, 94], f=["d", "a", "e", "a", "b", "c", "d"], s=0, t=0)
    nowhere.loc[3, "x"] = np.nan
    weights = {} if name == "counts of trials" else {"weights": "w"}
    fit = jg.fit(formula, data, **options, **weights)
    more = jg.fit(formula, pd.concat([nowhere, data, nowhere], ignore_index=True), **options, **weights)
    if weights:
        assert (more.n_dropped, more.state.dropped_by) == (0, {})
        array = np.concatenate([nowhere["w"], data["w"], nowhere["w"]])
        given = jg.fit(formula, pd.concat([nowhere, data, nowhere], ignore_index=True), **options, weights=array)
        assert given.to_dict()["fixef"] == more.to_dict()["fixef"]
    plain, other = fit.to_dict(), more.to_dict()
    assert {k: v for k, v in plain.items() if k != "convergence"} == {
        k: v for k, v in other.items() if k != "convergence"
    }
    for part in ("residuals", "predict"):
        np.testing.assert_array_equal(getattr(fit, part)(), getattr(more, part)())
    assert str(fit.summary()) == str(more.summary()).replace("2 dropped", "") or not weights
    if fit.groups:
        pd.testing.assert_frame_equal(fit.ranef("g"), more.ranef("g"))
    if name != "negative binomial":
        np.testing.assert_array_equal(fit.simulate(2, seed=1), more.simulate(2, seed=1))
    assert fit.overdispersion == more.overdispersion


def test_members_of_weight_zero_are_not_scored():
    data = counts().assign(w=1.0)
    fit = jg.fit("y ~ x + (1 | g)", data, family="poisson", weights="w")
    more = pd.concat([data, data.iloc[:3].assign(g=99, w=0.0)], ignore_index=True)
    pd.testing.assert_frame_equal(fit.score(more), fit.score(data))


def test_a_stratum_of_weight_zero():
    data = counts().assign(by=lambda d: d["g"] % 3, w=1.0)
    data.loc[data["by"] == 1, "w"] = 0.0
    data.loc[3, "w"] = 0.0
    fits = jg.fit_each("y ~ x + (1 | g)", data, by="by", family="poisson", weights="w")
    assert list(fits.failed) == [1] and "weight zero" in fits.failed[1]
    alone = jg.fit("y ~ x + (1 | g)", data[(data["by"] == 0) & (data["w"] > 0)], family="poisson")
    assert fits[0].loglik == pytest.approx(alone.loglik, rel=1e-9)


def test_all_weights_zero_are_refused():
    for w in (np.zeros(180), "w"):
        with pytest.raises(jg.DataError, match="0 in every row"):
            jg.fit("y ~ x", counts().assign(w=0.0), family="poisson", weights=w)
