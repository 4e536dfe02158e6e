"""Coefficients without a finite estimate are told from large ones by the data, whatever their scale."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit

import jaxglmm as jg
from jaxglmm.model.families import get_family
from jaxglmm.optimise.separation import ends, refuse_separation


def logistic(n=200, seed=0, **more):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return {"x": x, "y": (rng.random(n) < expit(0.3 * x)) * 1.0, "g": np.arange(n) % 20, **more}


def plain_fit(x, y):
    """Maximum likelihood of a logistic regression on an intercept and x, by another optimiser."""
    X = np.column_stack([np.ones(len(x)), x])
    loss = lambda b: np.sum(np.logaddexp(0, X @ b) - y * (X @ b))
    slope = lambda b: X.T @ (expit(X @ b) - y)
    return minimize(loss, np.zeros(2), jac=slope, method="BFGS", options={"gtol": 1e-10}).x


@pytest.mark.parametrize("largest", [1e3, 99999.0, 1e6, 1e8])
@pytest.mark.parametrize("formula", ["y ~ x", "y ~ x + (1 | g)"])
def test_a_value_far_outside_is_no_separation(largest, formula):
    """Its row is predicted perfectly by any slope of its sign, and the others decide which: those without it."""
    data = logistic()
    kept = np.arange(200) != 7
    data["x"][7], data["y"][7] = largest, 1.0
    expected = plain_fit(data["x"][kept], data["y"][kept])
    fit = jg.fit(formula, data, family="binomial")
    np.testing.assert_allclose(list(fit.fixef.values()), expected, atol=2e-6)
    told = any("'x'" in said and "row 7" in said for said in fit.convergence.warnings)
    assert told == (largest > 1e4)


def test_a_value_far_outside_that_is_against_the_rest():
    """The slope that the others ask for is held at nothing by that row."""
    data = logistic()
    data["x"][7], data["y"][7] = 99999.0, 0.0
    fit = jg.fit("y ~ x", data, family="binomial")
    assert -1e-2 < fit.fixef["x"] < 1e-3


def test_many_fits_and_paths_decide_alike():
    data = logistic(400, seed=3)
    data["x"][7], data["y"][7], data["h"] = 99999.0, 1.0, np.arange(400) % 2
    one = jg.fit("y ~ x + (1 | g)", data, family="binomial")
    many = jg.fit_many("~ x + (1 | g)", data, responses=["y"], family="binomial")
    assert not len(many.failed) and many[0].fixef["x"] == pytest.approx(one.fixef["x"], abs=1e-6)
    each = jg.fit_each("y ~ x", data, by="h", family="binomial")
    assert not len(each.failed)
    path = jg.fit_path("y ~ x", data, family="binomial", lambdas=[0.01, 0.0])
    plain = jg.fit("y ~ x", data, family="binomial")
    np.testing.assert_allclose(path.coef[-1], list(plain.fixef.values()), atol=1e-5)
    several = jg.fit("y ~ x + (1 | g) + (1 | h)", data, family="binomial")
    assert several.fixef["x"] == pytest.approx(one.fixef["x"], abs=0.05)


def test_a_slope_on_a_column_with_a_value_far_outside_has_a_variance():
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(60), 20)
    x = rng.normal(size=1200)
    y = (rng.random(1200) < expit(x * (0.3 + 0.8 * rng.normal(size=60))[g])) * 1.0
    plain = jg.fit("y ~ x + (0 + x | g)", {"x": x, "y": y, "g": g}, family="binomial")
    x[3], y[3] = 99999.0, 1.0
    fit = jg.fit("y ~ x + (0 + x | g)", {"x": x, "y": y, "g": g}, family="binomial", method="laplace")
    assert fit.convergence.converged
    assert fit.varcorr[0]["sd"] == pytest.approx(plain.varcorr[0]["sd"], rel=0.2)


COUNTS = {"family": "poisson"}


@pytest.mark.parametrize(
    ("formula", "options", "change", "culprit"),
    [
        ("y ~ x + lev", {}, lambda d: {"y": (d["x"] > 0) * 1.0}, "'x'"),
        ("y ~ x + lev", {}, lambda d: {"y": np.where(d["lev"] == "c", 1.0, d["y"])}, r"'lev\[T.c\]'"),
        ("y ~ x + lev + (1 | g)", {}, lambda d: {"y": np.where(d["lev"] == "c", 0.0, d["y"])}, r"'lev\[T.c\]'"),
        ("y ~ x + lev + (1 | g) + (1 | h)", {}, lambda d: {"y": np.where(d["lev"] == "c", 0.0, d["y"])},
         r"'lev\[T.c\]'"),
        ("y ~ x + lev", COUNTS, lambda d: {"y": np.where(d["lev"] == "b", 0.0, d["y"])}, r"'lev\[T.b\]'"),
        ("y ~ x + lev + (1 | g)", COUNTS, lambda d: {"y": np.where(d["lev"] == "b", 0.0, d["y"])}, r"'lev\[T.b\]'"),
        ("y ~ x + lev", COUNTS | {"offset": "far"}, lambda d: {"y": np.where(d["lev"] == "b", 0.0, d["y"])},
         r"'lev\[T.b\]'"),
        ("y ~ x + lev", {"weights": "w"}, lambda d: {"y": np.where(d["lev"] == "c", 1.0, d["y"])}, r"'lev\[T.c\]'"),
        # rows that contradict it have no weight
        ("y ~ x", {"weights": "w"}, lambda d: {"y": (d["x"] > 0) ^ (d["g"] == 3), "w": (d["g"] != 3) * 1.0}, "'x'"),
        # a sum of two columns does, and neither alone
        ("y ~ x + z", {}, lambda d: {"y": (d["x"] + d["z"] > 0) * 1.0}, "'x', 'z'"),
        # beside a column whose estimate is finite but for one value far outside
        ("y ~ x + lev", {}, lambda d: {"y": np.where((d["lev"] == "c") | (d["x"] > 9), 1.0, d["y"]),
                                       "x": np.where(np.arange(len(d["x"])) == 7, 99999.0, d["x"])}, r"'lev\[T.c\]'"),
        ("cbind(s, f) ~ x + lev", {}, lambda d: {"s": np.where(d["lev"] == "c", 4, d["s"]),
                                                 "f": np.where(d["lev"] == "c", 0, d["f"])}, r"'lev\[T.c\]'"),
        ("y ~ x + lev", {"family": jg.Binomial("probit")},
         lambda d: {"y": np.where(d["lev"] == "c", 0.0, d["y"])}, r"'lev\[T.c\]'"),
        ("y ~ x + lev", {"family": jg.Binomial("cloglog")},
         lambda d: {"y": np.where(d["lev"] == "c", 1.0, d["y"])}, r"'lev\[T.c\]'"),
        ("y ~ 0 + x", {}, lambda d: {"y": (d["x"] > 0) * 1.0}, "'x'"),
    ],
)  # fmt: skip
def test_separation_is_named(formula, options, change, culprit):
    rng = np.random.default_rng(2)
    data = logistic(240, 2)
    data |= {
        "lev": np.array(["a", "b", "c"])[rng.integers(0, 3, 240)], "z": rng.normal(size=240), "w": np.full(240, 2.0),
        "h": rng.integers(0, 6, 240), "far": np.full(240, -12.0), "s": rng.integers(0, 4, 240),
    }  # fmt: skip
    data["f"] = 4 - data["s"]
    options = {"family": "binomial"} | options
    if options["family"] == "poisson":
        data["y"] = rng.poisson(2.0, 240) * 1.0
    data = data | change(data)
    with pytest.raises(jg.SeparationError, match=rf"complete separation: {culprit} predict"):
        jg.fit(formula, data, **options)
    if "cbind" not in formula and "|" not in formula:
        data["s"] = np.arange(240) % 2
        many = jg.fit_many("~" + formula.split("~")[1], data, responses=["y"], **options)
        assert len(many.failed) == 1 and "complete separation" in str(many.failed)


def test_extreme_predictions_that_others_contradict():
    """Rare events, and exposures that differ by e^30: linear predictors are far out, and estimates finite."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=3000)
    y = np.zeros(3000)
    y[np.argsort(-x + rng.normal(size=3000))[:6]] = 1
    assert np.isfinite(jg.fit("y ~ x", {"x": x, "y": y}, family="binomial").fixef_se["x"])
    log_time = rng.uniform(-30, 0, 3000)
    counts = rng.poisson(np.exp(3 + 0.5 * x + log_time))
    fit = jg.fit("y ~ x + offset(t)", {"x": x, "y": counts, "t": log_time}, family="poisson")
    assert fit.fixef["x"] == pytest.approx(0.5, abs=4 * fit.fixef_se["x"])


def test_every_small_table_is_judged_as_by_enumeration():
    """Of rows with two columns: directions to infinity are looked for among those normal to a row, and between them."""
    rng = np.random.default_rng(6)
    seen = set()
    for trial in range(150):
        X = np.column_stack([np.ones(8), rng.integers(-2, 3, 8)]).astype(float)
        X[:, 1] *= 10.0 ** rng.integers(-6, 7)
        end = rng.choice([-1, 0, 1], 8, p=[0.45, 0.1, 0.45]).astype(np.int8)
        normal = [np.array([-x1, x0]) for x0, x1 in X]
        normal = [d / max(abs(X @ d)) for d in normal if abs(X @ d).max() > 0]
        asked = [s * d for s, d in product((-1, 1), normal)]
        asked += [a + b for a in asked for b in asked]
        gains = [np.where(end == 0, -abs(X @ d), end * (X @ d)) for d in asked]
        infinite = any(gain.min() > -1e-9 and gain.max() > 1e-6 for gain in gains)
        try:
            refuse_separation(X, end, names=["one", "x"], intercept=0)
            found = False
        except jg.SeparationError:
            found = True
        if np.ptp(X[:, 1]):
            assert found == infinite, (trial, X, end)
            seen.add(found)
    assert seen == {True, False}


@pytest.mark.parametrize("contradicted", [False, True])
def test_one_row_of_many_decides(contradicted):
    """The programme takes in the rows that contradict it, wherever they are."""
    rng = np.random.default_rng(7)
    n = 150_000
    X = np.column_stack([np.ones(n), rng.normal(size=n), rng.normal(size=n)])
    end = np.where(X[:, 1] + 0.5 * X[:, 2] > 0, 1, -1).astype(np.int8)
    if contradicted:  # by two rows, one on each side, far from the border
        X[[11, n - 13]], end[[11, n - 13]] = [[1, 3, 0], [1, -3, 0]], [-1, 1]
        X[[12, n - 14]], end[[12, n - 14]] = [[1, 0, 3], [1, 0, -3]], [-1, 1]
        refuse_separation(X, end, names="iab", intercept=0)
    else:
        with pytest.raises(jg.SeparationError, match="'a', 'b'"):
            refuse_separation(X, end, names="iab", intercept=0)


def test_a_rare_level_among_many_rows():
    rng = np.random.default_rng(8)
    n = 60_000
    data = pd.DataFrame({"x": rng.normal(size=n), "rare": "no", "g": rng.integers(0, 3000, n)})
    data["y"] = (rng.random(n) < expit(-1 + data.x)) * 1.0
    data.loc[[100, 4000, 59_000], "rare"], data.loc[[100, 4000, 59_000], "y"] = "yes", 1.0
    with pytest.raises(jg.SeparationError, match=r"complete separation: 'rare\[T.yes\]' predicts"):
        jg.fit("y ~ x + rare + (1 | g)", data, family="binomial", method="laplace")


def test_ends_of_the_families():
    y = np.array([0.0, 0.5, 1.0])
    assert list(ends(get_family("binomial"), y)) == [-1, 0, 1]
    assert list(ends(get_family("poisson"), y)) == [-1, 0, 0]
    assert list(ends(jg.Poisson("sqrt"), y)) == [0, 0, 0]
    assert list(ends(get_family("gamma"), y[1:])) == [0, 0]
