"""Posteriors of groups against brute-force integration, for every family; the parameters' part against differences."""

import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from fitted_models import members, sleepstudy
from scipy.interpolate import CubicSpline
from scipy.special import expit
from scipy.stats import beta, binom, cauchy, gamma, nbinom, norm, poisson

import jaxglmm as jg
from jaxglmm.fitted import conditional as natively
from jaxglmm.fitted.conditional import conditional
from jaxglmm.fitted.history import History, Prior, nodes_for, posteriors
from jaxglmm.fitted.lattice import quantiles
from jaxglmm.fitted.scoring import own_prior, score_columns
from jaxglmm.inference.coordinates import coordinates, raw_covariance
from jaxglmm.model.families import Binomial, Gaussian, get_family


PROBABILITIES = np.array([0.005, 0.025, 0.5, 0.8, 0.975])
PHI = 1.7
# Family -> (standard deviation of the effects, log-density of the rows by scipy).
FAMILIES = {
    "binomial": (4.0, lambda y, w, eta: binom.logpmf(np.round(w * y), w, expit(eta))),
    "probit": (1.5, lambda y, w, eta: w * (y * norm.logcdf(eta) + (1 - y) * norm.logcdf(-eta))),
    "cloglog": (1.3, lambda y, w, eta: w * (y * np.log(-np.expm1(-np.exp(eta))) - (1 - y) * np.exp(eta))),
    "cauchit": (1.0, lambda y, w, eta: w * (y * cauchy.logcdf(eta) + (1 - y) * cauchy.logcdf(-eta))),
    "poisson": (0.9, lambda y, w, eta: w * poisson.logpmf(y, np.exp(eta))),
    "negativebinomial": (1.2, lambda y, w, eta: w * nbinom.logpmf(y, PHI, PHI / (PHI + np.exp(eta)))),
    "gamma": (0.7, lambda y, w, eta: w * gamma.logpdf(y, PHI, scale=np.exp(eta) / PHI)),
    "gaussian": (0.8, lambda y, w, eta: norm.logpdf(y, np.exp(eta), PHI / np.sqrt(w))),  # log link; else normal
    "beta": (1.1, lambda y, w, eta: w * beta.logpdf(y, expit(eta) * PHI, expit(-eta) * PHI)),
}


LINKS = {"probit", "cloglog", "cauchit"}  # of binomial responses


def family_of(name):
    return Binomial(link=name) if name in LINKS else Gaussian(link="log") if name == "gaussian" else get_family(name)


def rows_of(name, groups=500, seed=0):
    """A history of groups of 1 to 8 rows, with weights, whose responses have nothing to do with their effects."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(groups), rng.integers(1, 9, groups))[::-1]
    n = len(codes)
    z, eta = rng.uniform(0.3, 1.5, n), rng.normal(size=n)
    w = rng.integers(1, 4, n).astype(float)
    y = {
        "binomial": lambda: rng.binomial(w.astype(int), 0.4) / w,
        "poisson": lambda: rng.poisson(1.3, n).astype(float),
        "negativebinomial": lambda: rng.poisson(2, n).astype(float),
        "gamma": lambda: rng.gamma(2, 0.7, n),
        "beta": lambda: rng.beta(1.5, 2, n),
        "gaussian": lambda: rng.normal(0, 2, n),
    }["binomial" if name in LINKS else name]()
    return History(codes, y, w, eta, z[None], groups)


def brute(history, tau, log_density):
    """Mean, sd, density and distribution function of each group's posterior on a fine grid."""
    b = np.linspace(-10 * tau, 10 * tau, 3001)
    by_group = np.argsort(history.codes, kind="stable")
    column = lambda v: v[by_group, None]
    eta = column(history.eta) + column(history.z[0]) * b
    starts = np.searchsorted(history.codes[by_group], np.arange(history.n_groups))
    f = np.add.reduceat(log_density(column(history.y), column(history.weights), eta), starts) + norm.logpdf(b, 0, tau)
    p = np.exp(f - f.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = p @ b
    density = CubicSpline(b, p.T / (b[1] - b[0]))
    return mean, np.sqrt((p * (b - mean[:, None]) ** 2).sum(1)), density, density.antiderivative()


@pytest.mark.parametrize("name", FAMILIES)
def test_moments_and_quantiles_are_those_of_brute_force(name):
    tau, log_density = FAMILIES[name]
    history, family, prior = rows_of(name), family_of(name), Prior(np.zeros(1), np.array([[tau]]))
    nodes = nodes_for(family, prior, history)
    mean, sd, density, F = brute(history, tau, log_density)
    for groups, p in posteriors(family, float(np.log(PHI)), history, prior, nodes, keep=True):
        assert np.abs((p.mean[0] - mean[groups]) / sd[groups]).max() < 1e-8
        assert np.abs(np.sqrt(p.covariance[0, 0]) / sd[groups] - 1).max() < 1e-8
        found = quantiles(p.first, p.step, p.weights, PROBABILITIES)
        for probability, x in zip(PROBABILITIES, found.T, strict=True):
            at = lambda spline, x=x, groups=groups: np.array([spline(v)[g] for v, g in zip(x, groups, strict=True)])
            assert np.abs((at(F) - probability) / at(density)).max() < 1e-6


def test_a_prior_of_its_own_for_each_group():
    """As `Fit.update` has it: N(mean_g, sd_g^2)."""
    history, family = rows_of("poisson", 12, 1), get_family("poisson")
    rng = np.random.default_rng(2)
    mean, sd = rng.normal(size=(12, 1)), rng.uniform(0.3, 0.9, (12, 1, 1))
    prior = Prior(mean, sd)
    for groups, p in posteriors(family, 0.0, history, prior, nodes_for(family, prior, history)):
        for i, g in enumerate(groups):
            own, b = history.codes == g, mean[g] + sd[g, 0] * np.linspace(-10, 10, 4001)
            eta = history.eta[own][:, None] + history.z[0, own][:, None] * b
            f = FAMILIES["poisson"][1](history.y[own][:, None], history.weights[own][:, None], eta).sum(0)
            weight = np.exp(f - f.max()) * norm.pdf(b, mean[g], sd[g, 0])
            assert p.mean[0, i] == pytest.approx(np.average(b, weights=weight), abs=1e-8)


def differences(fit):
    """d'V d of the posterior means by central differences in every parameter."""
    at, V = coordinates(fit.state), raw_covariance(fit.state)
    zero = np.zeros_like(V)
    mean = lambda x: conditional(fit.state, fit._problem, x, zero)[0]
    step = 1e-4 * np.where(np.diag(V) > 0, np.sqrt(np.diag(V)), 0)
    J = [(mean(at.x + h) - mean(at.x - h)) / 2 / h.max() if h.any() else 0 * mean(at.x) for h in np.diag(step)]
    return np.einsum("ags,ab,bgs->gs", np.stack(J), V, np.stack(J))


def test_the_parameters_add_d_V_d():
    fit = members()
    added = conditional(fit.state, fit._problem)[2]
    np.testing.assert_allclose(np.diagonal(added, axis1=1, axis2=2), differences(fit), rtol=1e-5)


@pytest.mark.native
@pytest.mark.parametrize("name", ["binomial", "negativebinomial", "gamma"])
def test_native_effects_are_those_of_the_plain_way(monkeypatch, name):
    """On an effect of a column and of a group of 100 rows too."""
    rng = np.random.default_rng(5)
    codes = np.repeat(np.arange(120), [*rng.integers(1, 9, 119), 100])
    x, z, n = rng.normal(size=len(codes)), rng.uniform(0.5, 1.5, len(codes)), len(codes)
    mean = np.exp(0.3 * x + z * rng.normal(0, 0.7, 120)[codes])
    y = {
        "binomial": lambda: (rng.random(n) < 1 / (1 + 1 / mean)) * 1,
        "negativebinomial": lambda: rng.poisson(mean * rng.gamma(2, 0.5, n)),
        "gamma": lambda: mean * rng.gamma(3, 1 / 3, n),
    }[name]()
    fit = jg.fit("y ~ x + (0 + z | g)", {"y": y, "x": x, "z": z, "g": codes}, family=name, method="laplace")
    asked, way = [], natively.group_effects
    monkeypatch.setattr(natively, "group_effects", lambda *a: asked.append(a) or way(*a))
    found = conditional(fit.state, fit._problem)
    monkeypatch.setenv("JAXGLMM_KERNELS", "plain")
    plain = conditional(fit.state, fit._problem)
    assert len(asked) == 1
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8)


@pytest.mark.reference
def test_the_parameters_add_d_V_d_to_several_normal_effects(reference_dir):
    fit = sleepstudy(reference_dir)
    added = conditional(fit.state, fit._problem)[2]
    np.testing.assert_allclose(np.diagonal(added, axis1=1, axis2=2), differences(fit), rtol=1e-5)
    table = fit.ranef()
    assert fit.effects_method() == "delta" and (table["sd_eb"] > table["sd_mean"]).all()
    np.testing.assert_allclose(table["mean"], table["estimate"], rtol=1e-12)


@pytest.fixture(scope="module")
def many():
    """A binary fit with more than 100 groups and a clear variance."""
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(160), rng.integers(1, 9, 160))
    x = rng.normal(size=len(g))
    eta = -0.5 + 0.5 * x + 1.5 * rng.normal(size=160)[g]
    data = pd.DataFrame({"y": (rng.random(len(g)) < expit(eta)) * 1.0, "x": x, "g": g})
    return data, jg.fit("y ~ x + (1 | g)", data, family="binomial", n_agq=15, method="agq")


def test_intervals_of_many_groups(many):
    _, fit = many
    assert fit.effects_method("g") == "delta"
    table = fit.ranef("g", interval=0.9)
    given = fit.ranef("g", interval=0.9, uncertainty=False)
    ratio = (table["sd_eb"] / table["sd_mean"]).to_numpy()
    assert (ratio > 1).all()
    np.testing.assert_allclose(table["upper"] - table["mean"], ratio * (given["upper"] - given["mean"]), rtol=1e-9)
    history = fit._history("")[0]
    b = np.linspace(-12, 12, 40001)
    for g in (0, 80, 159):
        own = history.codes == g
        f = -np.logaddexp(0, np.where(history.y[own] > 0, -1, 1)[:, None] * (history.eta[own][:, None] + b)).sum(0)
        F = np.cumsum(p := np.exp(f) * norm.pdf(b, 0, fit.varcorr[0]["sd"])) - p / 2
        ends = np.interp([0.05, 0.95], F / p.sum(), b)
        np.testing.assert_allclose(given.loc[g, ["lower", "upper"]].astype(float), ends, atol=1e-6)
    with pytest.raises(jg.DataError, match=r"interval must be a level within \(0, 1\).*95"):
        fit.ranef(interval=95)


def test_few_groups_are_integrated_over_the_parameters():
    """Against the exact posterior on a grid of (tau, beta, b) under the same prior."""
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(12), rng.integers(2, 9, 12))
    y = (rng.random(len(g)) < expit(-0.4 + rng.normal(size=12)[g])) * 1.0
    fit = jg.fit("y ~ 1 + (1 | g)", pd.DataFrame({"y": y, "g": g}), family="binomial", method="agq", n_agq=25)
    assert fit.effects_method() == "integrated"
    taus, betas = np.linspace(1e-3, 15, 100), np.linspace(-6, 6, 61)
    b = np.linspace(-45, 45, 601)
    n, s = np.bincount(g), np.bincount(g, y)
    total, first, second = 0.0, np.zeros(12), np.zeros(12)
    rows = -np.logaddexp(0, -(betas[:, None] + b)), -np.logaddexp(0, betas[:, None] + b)
    likelihood = np.exp(s[:, None, None] * rows[0] + (n - s)[:, None, None] * rows[1])
    for tau in taus:
        prior = norm.pdf(b, 0, tau)
        prior = prior / prior.sum() if tau > 0.15 else np.where(b == 0, 1.0, 0.0)
        mass, m1, m2 = (likelihood @ (prior * b**k) for k in (0, 1, 2))
        weight = mass.prod(0) * (1 + (tau / 2.5) ** 2 / 3) ** -2
        total += weight.sum()
        first += (weight * m1 / mass).sum(1)
        second += (weight * m2 / mass).sum(1)
    mean = first / total
    sd = np.sqrt(second / total - mean**2)
    table = fit.ranef(prior=jg.HalfStudentPrior(3, 2.5))
    # The integral over beta is Laplace's approximation, the mixture's parts the delta method.
    np.testing.assert_allclose(table["sd_eb"], sd, rtol=0.1)
    assert "HalfStudent(3, 2.5)" in table.attrs["sd_eb"]
    assert "UniformShrinkage(0.75)" in fit.ranef().attrs["sd_eb"]


def test_a_standard_deviation_beyond_numbers_is_left_out():
    """Groups that are nearly all alike: at large sds a complementary log-log likelihood leaves the range of numbers."""
    rng = np.random.default_rng(8)
    G, n = int(rng.integers(5, 90)), int(rng.integers(2, 8))
    g, x = np.repeat(np.arange(G), n), rng.normal(size=G * n)
    eta = -0.5 + x * rng.normal() + rng.choice([0.5, 1, 2, 4, 8]) * rng.normal(size=G)[g]
    y = (rng.random(G * n) < -np.expm1(-np.exp(eta))) * 1.0
    fit = jg.fit("y ~ x + (1 | g)", {"y": y, "x": x, "g": g}, family=Binomial("cloglog"))
    assert fit.effects_method() == "integrated"
    table = pd.DataFrame(fit.ranef(interval=0.9))
    assert np.isfinite(table[["mean", "sd_eb", "lower", "upper"]].to_numpy()).all()


def test_gaussian_posteriors_are_exact():
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(120), rng.integers(1, 6, 120))
    w = rng.uniform(0.5, 2, len(g))
    data = pd.DataFrame({"y": rng.normal(size=120)[g] + rng.normal(size=len(g)) / np.sqrt(w), "g": g, "w": w})
    fit = jg.fit("y ~ 1 + (1 | g)", data, weights="w")
    assert fit.dispersion is not None
    tau2, sigma2 = fit.varcorr[0]["variance"], fit.dispersion["value"] ** 2
    table, total = fit.ranef(), np.bincount(g, w)
    share = tau2 / (tau2 + sigma2 / total)
    np.testing.assert_allclose(table["reliability"], share, rtol=1e-9)
    mean = share * np.bincount(g, w * (data["y"] - fit.fixef["Intercept"])) / total
    np.testing.assert_allclose(table["mean"], mean, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(table["sd_mean"], np.sqrt(tau2 * (1 - share)), rtol=1e-9)
    scored = score_columns(fit.state, fit._history("")[0], own_prior(fit.state))
    np.testing.assert_allclose(scored["mean"], mean, rtol=1e-8, atol=1e-12)


def test_a_variance_of_zero_is_no_certainty():
    """At an estimate of zero the posterior given the parameters is a point; with their uncertainty it is not."""
    data = pd.DataFrame({"y": np.arange(390) // 130 % 2 * 1.0, "g": np.arange(390) % 130})
    fit = jg.fit("y ~ 1 + (1 | g)", data, family="binomial", n_agq=9, method="agq")
    assert fit.varcorr[0]["sd"] == 0 and fit.effects_method() == "integrated"
    table = fit.ranef(interval=0.95)
    assert (table["sd_mean"] == 0).all() and (table["reliability"] == 0).all()
    assert (table["sd_eb"] > 0.05).all() and (table["lower"] < 0).all() and (table["upper"] > 0).all()


def test_saved_rows_give_the_same_intervals(many, tmp_path):
    _, fit = many
    fit.save(tmp_path / "rows", rows=True)
    fit.save(tmp_path / "none")
    pd.testing.assert_frame_equal(jg.load(tmp_path / "rows").ranef(interval=0.9), fit.ranef(interval=0.9))
    without = jg.load(tmp_path / "none")
    pd.testing.assert_frame_equal(without.ranef(), fit.ranef())
    with pytest.raises(jg.DataError, match="rows=True"):
        without.ranef(interval=0.9)


def test_pieces_do_not_change_a_posterior(monkeypatch):
    """Groups in several pieces, among them a long one, as in one."""
    history = rows_of("poisson", 60, 7)
    codes = np.append(history.codes, np.full(100, 60))
    more = lambda v: np.concatenate([v, v[..., :100]], -1)
    history = History(codes, more(history.y), more(history.weights), more(history.eta), more(history.z), 61)
    family, prior = get_family("poisson"), Prior(np.zeros(1), np.array([[0.9]]))

    def means():
        out = np.zeros(61)
        for groups, p in posteriors(family, 0.0, history, prior, nodes_for(family, prior, history)):
            out[groups] = p.mean[0]
        return out

    whole = means()
    monkeypatch.setattr("jaxglmm.fitted.history._PIECE", 2)
    np.testing.assert_array_equal(means(), whole)
    assert jax.config.read("jax_enable_x64") is False


def test_intervals_of_few_groups_cover(run_python):
    """Simulated as in bench/coverage.py, which has the full run: nominal 95 %, and far less given the parameters.

    In a process of its own, whose programs are optimised: plain JAX takes a quarter of the time for a hundred fits.
    """
    code = f"""
import json, sys; sys.path.insert(0, {str(Path(__file__).resolve().parent.parent)!r})
from bench.coverage import simulate
print(json.dumps(simulate(30, 0.5, 100)))
"""
    found = json.loads(run_python(code))
    assert 0.92 - 2 * found["with_se"] < found["with"] < 0.98 + 2 * found["with_se"]
    assert found["given"] < 0.85
    for kind in ("known", "new"):
        assert 0.92 - 2 * found[f"{kind}_se"] < found[kind] < 0.985 + 2 * found[f"{kind}_se"]
