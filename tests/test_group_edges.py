"""Effects of groups with weights, offsets and counts, of groups that tie, and of those that a fold knows nothing of."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import jaxglmm as jg


@pytest.fixture(scope="module")
def case():
    """30 groups of 1 to 5 rows of counts, with an offset and weights; group "twin" has the rows of group "0"."""
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    n = len(g)
    data = pd.DataFrame({"g": g.astype(str), "x": rng.normal(size=n), "o": rng.normal(size=n)})
    data["m"], data["w"] = rng.integers(1, 9, n), rng.integers(1, 4, n)
    eta = -0.3 + 0.5 * data["x"] + data["o"] + rng.normal(size=30)[g]
    data["k"] = rng.binomial(data["m"], 1 / (1 + np.exp(-eta)))
    data = pd.concat([data, data[data["g"] == "0"].assign(g="twin")], ignore_index=True)
    fit = jg.fit(
        "cbind(k, m - k) ~ x + offset(o) + (1 | g)", data, family="binomial", weights="w", n_agq=25, progress=False
    )
    return fit, data


def brute_force(fit, data, b):
    """Levels, and the log density (m, points) of each one's effect at the points b, up to a constant."""
    x, o, k, m, w = data[["x", "o", "k", "m", "w"]].to_numpy().T[:, :, None]
    eta = fit.fixef["Intercept"] + fit.fixef["x"] * x + o + b
    levels, codes = np.unique(data["g"].to_numpy(), return_inverse=True)
    log = np.tile(norm.logpdf(b, 0, fit.varcorr[0]["sd"]), (len(levels), 1))
    np.add.at(log, codes, w * (k * eta - m * np.logaddexp(0, eta)))
    return levels, log


def test_posteriors_with_weights_offsets_and_counts(case):
    fit, data = case
    b = np.linspace(-12, 12, 24001)
    levels, log = brute_force(fit, data, b)
    density = np.exp(log - log.max(1, keepdims=True))
    density /= density.sum(1, keepdims=True)
    mean = pd.Series(density @ b, levels)
    sd = np.sqrt(pd.Series(density @ b**2, levels) - mean**2)
    for table in (fit.ranef("g"), fit.score(data)):
        found = table.set_index("level")
        np.testing.assert_allclose(found["mean"], mean[found.index], atol=1e-7)
        np.testing.assert_allclose(found["sd_mean"], sd[found.index], rtol=1e-6)
    known = fit.predict(data)
    assert known.shape == (len(data),) and ((known > 0) & (known < 1)).all()


def test_groups_with_the_same_rows_tie(case):
    fit, _ = case
    table = fit.rank("g").set_index("level")
    own, twin = table.loc["0"], table.loc["twin"]
    for column in table.columns.difference(["group", "term", "n", "position"]):
        assert own[column] == pytest.approx(twin[column], rel=1e-10), column
    m = len(table)
    assert table["rank"].sum() == pytest.approx(m * (m + 1) / 2, rel=1e-8)


def test_an_id_of_one_fold_alone_has_the_prior(case):
    from jaxglmm.encoder import RandomEffectEncoder

    _, data = case
    ids, y = data[["g"]], (data["k"] > 0).to_numpy() * 1
    counts = ids["g"].map(ids["g"].value_counts()).to_numpy()
    found = np.asarray(RandomEffectEncoder(cv=4).fit_transform(ids, y))
    assert (counts == 1).any()
    # Nothing is known out of fold of an ID with a single row: no effect, no reliability, the count of what is known.
    np.testing.assert_allclose(found[counts == 1][:, [0, 2]], 0, atol=1e-10)
    assert len(np.unique(found[counts == 1, 1].round(9))) <= 4  # the standard deviation that each fold's fit has
