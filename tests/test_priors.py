"""Fits at the posterior mode: densities against scipy, ridge as a normal prior, variances kept from zero."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxglmm as jg


@pytest.fixture(scope="module")
def members():
    """80 groups of 4 rows; `flat` has no variance between groups."""
    rng = np.random.default_rng(3)
    g, x = np.repeat(np.arange(80), 4), rng.standard_normal((320, 2))
    eta = x[:, 0] + 0.8 * rng.standard_normal(80)[g]
    draw = lambda eta: (rng.random(320) < 1 / (1 + np.exp(-eta))) * 1.0
    # Each group of `flat` has two events in four rows.
    return pd.DataFrame({"x0": x[:, 0], "x1": x[:, 1], "g": g, "y": draw(eta), "flat": np.tile([0.0, 1, 1, 0], 80)})


FORMULA = "y ~ x0 + x1 + (1 | g)"
OPTIONS = {"family": "binomial", "n_agq": 5}


def test_densities(x64):
    x = np.array([0.1, 1.0, 4.0])
    for prior, truth in (
        (jg.NormalPrior(2.0, 0.5), stats.norm.logpdf(x, 0.5, 2)),
        (jg.StudentPrior(4.0, 2.0, -1.0), stats.t.logpdf(x, 4, -1, 2)),
        (jg.HalfStudentPrior(3.0, 2.5), np.log(2) + stats.t.logpdf(x, 3, 0, 2.5)),
        (jg.HalfCauchyPrior(1.5), stats.halfcauchy.logpdf(x, 0, 1.5)),
        (jg.GammaPrior(2.5, 0.3), stats.gamma.logpdf(x, 2.5, scale=1 / 0.3)),
        # The shrinkage is uniform, so that (x / scale)^2 has the odds of a uniform variable: beta prime(1, 1).
        (jg.UniformShrinkagePrior(0.7), stats.betaprime.logpdf((x / 0.7) ** 2, 1, 1) + np.log(2 * x / 0.49)),
    ):
        np.testing.assert_allclose(prior.log_density(x), truth, rtol=1e-12)


def test_a_normal_prior_is_a_ridge(members):
    prior = jg.fit(FORMULA, members, prior={"beta": jg.NormalPrior(0.3)}, **OPTIONS)
    ridge = jg.fit(FORMULA, members, penalty=jg.Ridge(1 / (320 * 0.3**2)), **OPTIONS)
    np.testing.assert_allclose(list(prior.fixef.values()), list(ridge.fixef.values()), atol=1e-8)
    np.testing.assert_allclose(list(prior.fixef_se.values()), list(ridge.fixef_se.values()), rtol=1e-6)
    assert prior.varcorr[0]["sd"] == pytest.approx(ridge.varcorr[0]["sd"], abs=1e-7)
    assert prior.loglik == pytest.approx(ridge.loglik, abs=1e-7)
    text = prior.summary().text
    assert "beta ~ Normal(0.3, 0); estimates are at the posterior mode" in text and text.startswith("Penalised")


@pytest.mark.parametrize(
    "density", [jg.HalfStudentPrior(3.0, 0.3), jg.GammaPrior(2.0, 3.0), jg.UniformShrinkagePrior(0.4)]
)
def test_the_mode_in_the_sd(members, density):
    """The profile log-likelihood in the sd, by fits with it held, plus the log density has its maximum there."""
    fit = jg.fit(FORMULA, members, prior={"g": density, "x0": jg.StudentPrior(3.0, 0.5)}, **OPTIONS)
    sd, h = fit.varcorr[0]["sd"], 1e-4
    import jax

    def posterior(at):
        held = jg.fit(FORMULA, members, prior={"x0": jg.StudentPrior(3.0, 0.5)}, theta={"g": at}, **OPTIONS)
        with jax.enable_x64(True):
            student = float(jg.StudentPrior(3.0, 0.5).log_density(held.fixef["x0"]))
            return held.loglik + student + float(density.log_density(at))

    values = [posterior(sd + d) for d in (-h, 0, h)]
    assert abs(values[2] - values[0]) / (2 * h) < 1e-4 and values[1] > max(values[0], values[2]) - 1e-9


def test_a_gamma_prior_keeps_a_variance_from_zero(members):
    plain = jg.fit("flat ~ x0 + (1 | g)", members, **OPTIONS)
    fit = jg.fit("flat ~ x0 + (1 | g)", members, prior={"sd": jg.GammaPrior()}, **OPTIONS)
    assert plain.convergence.singular and not fit.convergence.singular
    assert 0.05 < fit.varcorr[0]["sd"] < 1 and fit.loglik < plain.loglik


def test_a_prior_makes_a_separated_estimate_finite(members):
    data = members.assign(x1=(members.y > 0.5) * 2.0 - 1)
    fit = jg.fit("y ~ x0 + x1", data, family="binomial", prior={"x1": jg.StudentPrior()})
    assert 1 < fit.fixef["x1"] < 50 and np.isfinite(fit.fixef_se["x1"])


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (2.5, "map names"),
        ({"beta": 2.5}, "jg.NormalPrior"),
        ({"z": jg.NormalPrior(1.0)}, "no column 'z'"),
        ({"x0": jg.GammaPrior()}, "no grouping factor 'x0'"),
    ],
)
def test_bad_priors_are_named(members, prior, message):
    with pytest.raises(jg.DataError, match=message):
        jg.fit(FORMULA, members, prior=prior, **OPTIONS)
    with pytest.raises(jg.DataError, match="scale"):
        jg.NormalPrior(-1.0)
