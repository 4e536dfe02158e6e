"""Fits whose rows are stored, or computed with, in float32, against the fit in float64."""

from typing import Any

import jax
import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.formula.frame import model_frame
from jaxglmm.ops import fused
from jaxglmm.problem import make_problem


@pytest.fixture(scope="module")
def data():
    """Counts in groups of six; a column far from zero, which float32 holds to three digits of its spread."""
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(250), 6)
    x, year = rng.standard_normal(len(g)), 20000 + 10 * rng.standard_normal(len(g))
    eta = 0.5 + 0.4 * x + 0.02 * (year - 20000) + 0.7 * rng.standard_normal(250)[g]
    return {"y": rng.poisson(np.exp(eta)), "x": x, "year": year, "g": g}


def fitted(data, precision):
    return jg.fit("y ~ x + year + (1 | g)", data, family="poisson", method="laplace", precision=precision)


@pytest.fixture(scope="module")
def double(data):
    return fitted(data, "double")


@pytest.mark.parametrize("kernels", [pytest.param("native", marks=pytest.mark.native), "plain"])
@pytest.mark.parametrize(("precision", "errors"), [("mixed", 1e-4), ("single", 1e-2)])
def test_float32_gives_what_float64_gives(data, double, monkeypatch, kernels, precision, errors):
    monkeypatch.setenv("JAXGLMM_KERNELS", kernels)
    found = fitted(data, precision)
    assert found.convergence.kernels == kernels and found.convergence.converged
    assert found.loglik == pytest.approx(double.loglik, rel=1e-6)
    for name, se in double.fixef_se.items():
        assert abs(found.fixef[name] - double.fixef[name]) <= errors * se
        assert found.fixef_se[name] == pytest.approx(se, rel=1e-4)
    assert found.varcorr[0]["sd"] == pytest.approx(double.varcorr[0]["sd"], rel=1e-4)
    np.testing.assert_allclose(found.ranef("g")["mean"], double.ranef("g")["mean"], atol=1e-4)


@pytest.mark.native
@pytest.mark.parametrize("family", ["binomial", "negativebinomial", "gamma"])
def test_float32_gives_what_float64_gives_in_other_families(family):
    rng = np.random.default_rng(8)
    g = np.repeat(np.arange(250), 6)
    x = rng.standard_normal(len(g))
    mean = np.exp(0.5 + 0.4 * x + 0.7 * rng.standard_normal(250)[g])
    y = {
        "binomial": lambda: (rng.random(len(g)) < mean / (1 + mean)) * 1.0,
        "negativebinomial": lambda: rng.poisson(mean * rng.gamma(2.0, 0.5, len(g))) * 1.0,
        "gamma": lambda: mean * rng.gamma(3.0, 1 / 3, len(g)),
    }[family]()
    fit = lambda precision: jg.fit(
        "y ~ x + (1 | g)", {"y": y, "x": x, "g": g}, family=family, method="laplace", precision=precision
    )
    double = fit("double")
    for precision, errors in (("mixed", 1e-4), ("single", 1e-2)):
        found = fit(precision)
        assert found.convergence.kernels == "native" and found.convergence.converged
        assert found.loglik == pytest.approx(double.loglik, rel=1e-6)
        for name, se in double.fixef_se.items():
            assert abs(found.fixef[name] - double.fixef[name]) <= errors * se
            assert found.fixef_se[name] == pytest.approx(se, rel=1e-4)
        assert found.varcorr[0]["sd"] == pytest.approx(double.varcorr[0]["sd"], rel=1e-4)


def test_rows_are_stored_in_float32_where_they_may_be(data):
    family = jg.Poisson()
    frame = model_frame("y ~ x + year + (1 | g)", data, family=family)
    for precision, stored in (("double", np.float64), ("mixed", np.float32), ("single", np.float32)):
        design = make_problem(frame, family, precision=precision).design
        assert design is not None
        rows = (design.X, design.y, design.weights, design.offset, design.terms[0].z)
        assert all(v.dtype == stored for v in rows)
        assert design.constant.dtype == np.float64


def test_the_kernels_cover_what_lies_on_the_cpu(data, monkeypatch):
    """Arrays that lie nowhere yet go where JAX puts new ones, which a caller may have set."""
    family = jg.Poisson()
    frame = model_frame("y ~ x + year + (1 | g)", data, family=family)
    design = make_problem(frame, family).design
    there = fused.covers(family, design)
    with jax.default_device(jax.devices("cpu")[0]):
        assert fused.covers(family, design) is there
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not fused.covers(family, design)
    with jax.default_device(jax.devices("cpu")[0]):
        assert fused.covers(family, design) is there
    with jax.enable_x64(True):
        assert fused.covers(family, jax.device_put(design, jax.devices("cpu")[0])) is there
    assert not fused.covers(jg.Beta(), design)


def test_a_path_in_mixed_precision_is_the_path_to_its_rounding():
    rng = np.random.default_rng(6)
    X, g = rng.standard_normal((600, 4)).astype(np.float32).astype(float), np.repeat(np.arange(200), 3)
    eta = X @ [1.0, -0.5, 0.0, 0.0] + 0.8 * rng.standard_normal(200)[g]
    data = {f"x{j}": X[:, j] for j in range(4)} | {"g": g, "y": (rng.random(600) < 1 / (1 + np.exp(-eta))) * 1.0}
    formula, options = "y ~ x0 + x1 + x2 + x3 + (1 | g)", {"family": "binomial", "method": "laplace"}
    lambdas = {"lambdas": [0.05, 0.01], "cv": 3}
    double: Any = jg.fit_path(formula, data, **lambdas, **options)
    mixed: Any = jg.fit_path(formula, data, precision="mixed", **lambdas, **options)
    np.testing.assert_allclose(mixed.coef, double.coef, atol=1e-6)
    np.testing.assert_allclose(mixed.cv.score, double.cv.score, atol=1e-6)
    assert mixed.kkt.max() <= 1e-6 and mixed.converged.all()
    fit = jg.fit(formula, data, penalty=jg.Ridge(0.01), precision="mixed", **options)
    other = jg.fit(formula, data, penalty=jg.Ridge(0.01), **options)
    np.testing.assert_allclose(list(fit.fixef.values()), list(other.fixef.values()), atol=1e-6)
    with pytest.raises(jg.DataError, match="too coarse"):
        jg.fit_path(formula, data, precision="single", **lambdas, **options)
