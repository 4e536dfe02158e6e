"""Columns and groups from which no model can be estimated: found before the fit, and named."""

from types import SimpleNamespace

import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.design.checks import _SAMPLE, check_columns, check_frame
from jaxglmm.formula.frame import model_frame


RNG = np.random.default_rng(0)
N = 60
DATA = {
    "y": RNG.normal(size=N),
    "yes": RNG.integers(0, 2, N),
    "count": RNG.poisson(3, N),
    "a": RNG.normal(size=N),
    "b": RNG.normal(size=N),
    "f": np.tile(["u", "v", "w"], 20),
    "g": np.repeat(np.arange(12), 5),
    "row": np.arange(N),
    "pair": np.arange(N) // 2,
    "one": np.ones(N),
    "zero": np.zeros(N),
    "all": np.full(N, "x"),
    "after": np.arange(N) % 2,
    "same": np.arange(N) // 5 + 100,
    "treated": np.arange(N) // 5 % 2,
}
DATA |= {"c": 2 * DATA["a"] - 3 * DATA["b"] + 5, "double": 2 * DATA["a"], "shifted": DATA["a"] + 7}
FAMILIES = {"gaussian": jg.Gaussian(), "binomial": jg.Binomial(), "poisson": jg.Poisson(), "gamma": jg.Gamma()}


def check(formula, family="gaussian", data=DATA, **options):
    check_frame(model_frame(formula, data, family=FAMILIES[family], **options), FAMILIES[family])


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ one + a", r"column 'one' is constant \(1\) beside 'Intercept'"),
        ("y ~ zero + a", "column 'zero' is 0 in every row"),
        ("y ~ a + double", "columns 'a' and 'double' carry the same information"),
        ("y ~ a + shifted", r"columns 'a' and 'shifted' carry the same information .*plus a constant"),
        ("y ~ a + b + c", r"column 'c' is a linear combination of 'a', 'b' and the intercept"),
        ("y ~ 0 + a + b + c + one", r"linear combination of 'a', 'b'"),
        ("y ~ a + (1 | all)", r"'all' has one level only \('x'\)"),
        ("y ~ a + (1 | row)", r"every level of 'row' has a single row.*use a factor that groups rows"),
        ("y ~ a + (after | pair)", r"variance of 'Intercept' of 'pair'.*and the residual variance.*\(1 \| pair\)"),
        ("y ~ a + (1 | g) + (1 | same)", "'g' and 'same' are the same groups of rows under two names"),
        ("y ~ a + (1 | g) + (1 | g:same)", "are the same groups of rows under two names"),
        ("y ~ a + (1 | g) + (1 | row)", r"every level of 'row' has a single row"),
        (
            "y ~ a + (treated | g)",
            r"covariance of 'treated' and 'Intercept' of 'g' and the variance of 'treated' of 'g'",
        ),
        ("y ~ 0 + f + (1 | f)", r"tell the levels of 'f' apart already.*effects 'Intercept' .*'f\[u\]'"),
        ("y ~ a + f + (1 | f)", r"tell the levels of 'f' apart already"),
        ("y ~ f + (1 | f) + (1 | g)", r"tell the levels of 'f' apart already"),
        ("y ~ f + (1 | f/g)", r"tell the levels of 'f' apart already"),
        ("y ~ a + f + (1 + a | f)", r"apart already: the effects 'Intercept' of"),
        ("y ~ a + a:f + (1 + a | f)", r"apart already: the effects 'a' of"),
        ("y ~ a + a:f + (0 + a | f)", r"apart already: the effects 'a' of"),
        ("y ~ a + (0 + zero | g)", "effect 'zero' of 'g' is 0 in every row"),
        ("y ~ a + (1 + a + shifted | g)", "effects 'Intercept', 'a', 'shifted' of 'g' carry the same information"),
        ("one ~ a + (1 | g)", "response 'one' has the same value, 1, in every row"),
    ],
)
def test_gaussian_cases(formula, message):
    with pytest.raises(jg.DataError, match=message):
        check(formula)


@pytest.mark.parametrize(
    ("formula", "family", "message"),
    [
        ("zero ~ a + (1 | g)", "binomial", r"response 'zero' is 0 in every row"),
        ("one ~ a + (1 | g)", "binomial", r"response 'one' is 1 in every row"),
        ("zero ~ a + (1 | g)", "poisson", "has the same value, 0"),
        ("one ~ a", "gamma", "has the same value, 1"),
        ("yes ~ a + (1 | row)", "binomial", "single 0/1 response"),
        ("yes ~ 0 + f + (1 | f)", "binomial", "tell the levels of 'f' apart already"),
        ("count ~ f + (1 | f) + (1 | g)", "poisson", "tell the levels of 'f' apart already"),
        ("count ~ a + (treated | g)", "poisson", "covariance of 'treated' and 'Intercept' of 'g' and the variance of"),
        ("count ~ a + (1 | g) + (1 | same)", "poisson", "same groups of rows under two names"),
    ],
)
def test_other_families(formula, family, message):
    with pytest.raises(jg.DataError, match=message):
        check(formula, family)


def test_every_dummy_beside_an_intercept():
    with pytest.raises(jg.DataError, match=r"'f\[T?\.?w\]' is a linear combination of .*all dummies of a factor"):
        check("y ~ a + f", full_rank=False)
    check("y ~ 0 + a + f", full_rank=False)


def test_more_columns_than_rows():
    few = {name: values[:4] for name, values in DATA.items()}
    with pytest.raises(jg.DataError, match="4 rows cannot determine 5 fixed-effect columns"):
        check("y ~ a + b + count + row", data=few)


def test_what_is_fine():
    check("y ~ a + b + (a | g)")
    check("y ~ 0 + one + a")  # an intercept by another name
    check("count ~ a + (1 | row)", "poisson")  # an observation-level effect
    check("cbind(count, row) ~ a + (1 | row)", "binomial")
    check("y ~ row + I(row^2) + I(row^3)")
    check("one ~ a", "poisson")
    check("y ~ a:f")
    check("y ~ a + (a | pair)")  # two rows a level, at values of their own
    check("y ~ a + (0 + a | row)")  # the residuals' variance falls and rises with a
    check("y ~ a + (1 | row)", weights=np.linspace(1, 3, N))  # and with the weights
    check("y ~ a + (0 + after | row)")
    check("y ~ a + (treated || g)")
    check("y ~ a + (1 | f)")
    check("y ~ treated + (1 | g)")  # all but one of the levels
    check("y ~ a + (1 | g) + (1 | f)")
    check("y ~ a + (a | g) + (0 + b | g:f)")
    check("count ~ a + (1 | g) + (1 | row)", "poisson")


def test_rows_of_weight_zero_do_not_count():
    weights = np.where(DATA["g"] == 3, 0.0, 1.0)
    only = {**DATA, "only": np.where(DATA["g"] == 3, 2.0, 0.0)}
    check("y ~ only", data=only)
    with pytest.raises(jg.DataError, match="column 'only' is 0"):
        check("y ~ only", data=only, weights=weights)


def test_held_covariances_need_no_groups():
    frame = model_frame("yes ~ a + (1 | row)", DATA, family=FAMILIES["binomial"])
    check_frame(frame, FAMILIES["binomial"], estimated=False)


@pytest.mark.parametrize("noise", [1e-3, 1e-5])
def test_nearly_collinear_columns_pass(noise):
    """As R's lm: refused is what agrees to seven digits, far from zero too."""
    x = RNG.normal(size=200)
    near = x + noise * RNG.normal(size=200)
    check_columns(np.stack([np.ones(200), x + 1e3, near], 1), ["Intercept", "x", "near"])
    with pytest.raises(jg.DataError, match="'x' and 'near'"):
        check_columns(np.stack([np.ones(200), x, x + 1e-9 * near], 1), ["Intercept", "x", "near"])


def test_many_rows_go_by_pieces():
    n = 5 * _SAMPLE + 17  # enough for a sample of them to be looked at first
    X = np.stack([np.ones(n), RNG.normal(size=n), RNG.normal(size=n)], 1)
    check_columns(X, ["Intercept", "a", "b"])
    X[:, 2] = 3 - X[:, 1]
    with pytest.raises(jg.DataError, match="'a' and 'b'"):
        check_columns(X, ["Intercept", "a", "b"])
    X[:, 2] = 1.5
    X[-1, 2] = 2.0  # not constant, by the last row
    check_columns(X, ["Intercept", "a", "b"])


def test_no_response_and_no_rows():
    frame = SimpleNamespace(y=None, weights=np.ones(3))
    with pytest.raises(jg.DataError, match="no response"):
        check_frame(frame, FAMILIES["gaussian"])
    with pytest.raises(jg.DataError, match="no rows are left"):
        check_frame(SimpleNamespace(y=np.ones(3), weights=np.zeros(3)), FAMILIES["gaussian"])
