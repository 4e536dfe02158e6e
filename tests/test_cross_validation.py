"""Cross-validation against fits and integrals one by one; climbs from many places."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

import jaxglmm as jg


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(15), rng.integers(3, 8, 15))
    x = rng.normal(size=len(g))
    eta = 0.5 * x + rng.normal(size=15)[g]
    y = (rng.random(len(g)) < 1 / (1 + np.exp(-eta))) * 1.0
    return pd.DataFrame({"v": 1 + eta + rng.normal(size=len(g)), "y": y, "x": x, "g": g})


@pytest.mark.parametrize("by", ["rows", "groups"])
@pytest.mark.parametrize("reml", [False, True])
def test_gaussian_folds_have_the_conditional_density(data, by, reml):
    """Of a multivariate normal, formed densely."""
    fit = jg.fit("v ~ x + (1 | g)", data, reml=reml)
    found = fit.cross_validate(4, by, seed=1)
    same = data["g"].to_numpy()[:, None] == data["g"].to_numpy()
    if by == "groups":
        assert all(len(set(found.folds[data["g"] == g])) == 1 for g in range(15))
    for k in range(4):
        held = found.folds == k
        alone = jg.fit("v ~ x + (1 | g)", data[~held], reml=reml)
        np.testing.assert_allclose(found.estimate[k], alone.confint()["estimate"], rtol=1e-6)
        mean = alone.predict(data, kind="link", effects="population")
        V = alone.varcorr[0]["variance"] * same + dict(alone.dispersion or {})["value"] ** 2 * np.eye(len(data))
        every = np.ones(len(data), bool)
        of_all, of_others = (
            multivariate_normal(mean[rows], V[np.ix_(rows, rows)]).logpdf(data["v"][rows]) for rows in (every, ~held)
        )
        assert found.loglik[k] == pytest.approx(of_all - of_others, abs=1e-7)
    assert found.total == pytest.approx(found.loglik.sum()) and found.rows.sum() == len(data)
    assert list(found.table().columns) == ["fold", "rows", "loglik", "loglik_per_row"]


def test_new_groups_of_binary_rows(data):
    """Against a trapezoid rule for each group left out."""
    fit = jg.fit("y ~ x + (1 | g)", data, family="binomial", n_agq=25)
    folds = data["g"].to_numpy() % 3
    found = fit.cross_validate(folds)
    alone = jg.fit("y ~ x + (1 | g)", data[folds != 1], family="binomial", n_agq=25)
    sd, b = alone.varcorr[0]["sd"], np.linspace(-10, 10, 4001)
    total = 0.0
    for _, rows in data[folds == 1].groupby("g"):
        eta = alone.fixef["Intercept"] + alone.fixef["x"] * rows["x"].to_numpy()[:, None] + sd * b
        log = (rows["y"].to_numpy()[:, None] * eta - np.logaddexp(0, eta)).sum(0) - 0.5 * b**2 - 0.5 * np.log(2 * np.pi)
        total += np.log(np.trapezoid(np.exp(log), b))
    assert found.loglik[1] == pytest.approx(total, abs=1e-5)


def test_a_better_model_has_a_larger_density(data):
    score = lambda formula: jg.fit(formula, data).cross_validate(5, seed=3).total
    assert score("v ~ x + (1 | g)") > score("v ~ x") > score("v ~ 1")


def test_folds_that_make_no_sense_are_refused(data):
    fit = jg.fit("v ~ x + (1 | g)", data)
    for folds, by, words in ((1, "rows", "between 2"), (16, "groups", "15"), (5, "columns", "'columns'")):
        with pytest.raises(jg.DataError, match=words):
            fit.cross_validate(folds, by)
    with pytest.raises(jg.DataError, match="each of the fit's"):
        fit.cross_validate(np.zeros(3))


@pytest.mark.parametrize("response, family", [("y", "binomial"), ("v", "gaussian")])
def test_climbs_from_many_places_end_at_the_fit(data, response, family):
    fit = jg.fit(f"{response} ~ x + (1 | g)", data, family=family)
    found = fit.multistart(12, seed=0)
    assert found.converged.sum() >= 8 and found.is_best
    np.testing.assert_allclose(found.loglik[found.converged].max(), fit.loglik, atol=1e-6)
    best = np.flatnonzero(found.converged)[np.argmax(found.loglik[found.converged])]
    assert found.sd[best, 0] == pytest.approx(fit.varcorr[0]["sd"], abs=1e-5)
    assert list(found.table().columns) == ["start", "loglik", "converged", "sd[Intercept|g]"]
