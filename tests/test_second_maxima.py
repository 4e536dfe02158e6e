"""Variances of zero and correlations of one in size that are not the highest maximum of the likelihood used.

The value at the fit's parameters is that of dense linear algebra (`bench.search_fuzz.Dense`), higher than the maximum
on the boundary, at which the score of the variance is negative.
"""

import numpy as np
import pytest
from scipy.special import expit, ndtr

import jaxglmm as jg
from bench.search_fuzz import Dense, Model
from jaxglmm.optimise.boundary import LinePoint, few_rule, promising


def dense_value(fit, effects, data):
    family = fit.family
    dense = Dense(Model(0, family.name, family.link, effects, data, False, False))
    return dense.value(np.array(list(fit.fixef.values())), list(fit.state.column_factors), 1.0)


@pytest.mark.parametrize(("link", "seed", "at_zero", "sd"), [
    ("logit", 20, -1309.803774, 1.2021), ("logit", 24, -1349.498355, 1.0434), ("probit", 1, None, 0.7009),
])  # fmt: skip
def test_one_group_does_not_hide_the_variance_of_the_others(link, seed, at_zero, sd):
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(61), np.concatenate([[2000], rng.integers(1, 5, 60)]))
    b = rng.normal(0, 1.0, 61)
    x = rng.normal(size=len(g))
    data = {
        "y": (rng.random(len(g)) < {"logit": expit, "probit": ndtr}[link](-0.5 + 0.5 * x + b[g])) * 1.0,
        "x": x,
        "g": g,
    }
    family = jg.Binomial(link=link)
    fit = jg.fit("y ~ x + (1 | g)", data, family=family)
    plain = jg.fit("y ~ x", data, family=family)
    assert not fit.convergence.singular and fit.varcorr[0]["sd"] == pytest.approx(sd, abs=2e-3)
    assert at_zero is None or plain.loglik == pytest.approx(at_zero, abs=1e-5)
    laplace = jg.fit("y ~ x + (1 | g)", data, family=family, method="laplace")
    assert laplace.loglik == pytest.approx(dense_value(laplace, "one", data), abs=1e-6)
    assert fit.loglik > plain.loglik + 0.05
    lanes = jg.fit_many("~ x + (1 | g)", data, responses=["y"], family=family)
    assert lanes.loglik[0] == pytest.approx(fit.loglik, abs=1e-6)
    penalised = jg.fit("y ~ x + (1 | g)", data, family=family, penalty=jg.Ridge(1e-9))
    assert penalised.loglik == pytest.approx(fit.loglik, abs=1e-6)
    path = jg.fit_path("y ~ x + (1 | g)", data, family=family, lambdas=[0.05, 1e-9])
    assert path.loglik[-1] == pytest.approx(fit.loglik, abs=1e-6)


@pytest.mark.parametrize(("kind", "seed", "boundary"), [
    ("slope", 7, -25.141666), ("nested", 19, -1089.519565), ("crossed", 21, -1070.332388),
])  # fmt: skip
def test_beyond_the_boundary(kind, seed, boundary):
    """`boundary` is the maximum where a variance is zero or a correlation one."""
    rng = np.random.default_rng(seed)
    if kind == "slope":
        g, x = np.repeat(np.arange(8), 6), rng.normal(size=48)
        b = rng.normal(size=(8, 2))
        eta, more, term = b[g, 0] + (0.5 + b[g, 1]) * x, {}, "(1 + x | g)"
    else:
        g = np.repeat(np.arange(61), np.concatenate([[1500], rng.integers(1, 5, 60)]))
        n = len(g)
        x, b = rng.normal(size=n), rng.normal(0, 1, 61)
        eta = -0.5 + 0.5 * x + b[g]
    if kind == "nested":
        k = np.where(g == 0, rng.integers(0, 300, n) + 1000, g * 4 + rng.integers(0, 2, n))
        eta = eta + 0.3 * rng.normal(size=2000)[k]
        more, term = {"k": k}, "(1 | g) + (1 | k)"
    elif kind == "crossed":
        h = rng.integers(0, 12, n)
        eta = eta + 0.4 * rng.normal(size=12)[h]
        more, term = {"h": h}, "(1 | g) + (1 | h)"
    data = {"y": (rng.random(len(g)) < expit(eta)) * 1.0, "x": x, "g": g, **more}
    fit = jg.fit(f"y ~ x + {term}", data, family="binomial", method="laplace")
    if kind == "nested":  # the blocks of the dense one are (1 | k), (1 | g)
        data |= {"k": data["g"], "g": data["k"]}
    assert fit.loglik == pytest.approx(dense_value(fit, kind, data), abs=1e-5)
    assert fit.loglik > boundary + 0.1


def test_where_other_maxima_are_looked_for():
    """Of -(log(s / 2))^2, whose maximum is at 2, above a boundary of -0.5 and below one of 0.5."""
    looks = [LinePoint(s, -(np.log(s / 2) ** 2), -2 * np.log(s / 2)) for s in (0.01, 0.1, 1.0, 10.0)]
    (size,) = promising(looks, -0.5)
    assert 1.0 < size < 10.0
    assert not promising(looks, 3.0) and not promising(looks, 0.0, known=2.0)
    falling = [LinePoint(s, -s, -s) for s in (0.01, 0.1, 1.0, 10.0)]
    assert not promising(falling, 0.0)


def test_few_groups_rule():
    assert few_rule(2100.0, 2000.0**2 + 100.0) and not few_rule(100.0, 100.0, 100)
    assert few_rule(1000.0, 5 * 180.0**2 + 1e3, 100) and not few_rule(1000.0, 5 * 180.0**2 + 1e3, 10)
