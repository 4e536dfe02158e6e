"""Every argument of every public function is given what it cannot be: only errors of our own come out."""

import inspect
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg
from jaxglmm import nn, plots
from jaxglmm.sklearn import GLMMClassifier, GLMMRegressor, RandomEffectEncoder


OURS = (jg.DataError, jg.FormulaError, jg.ConvergenceError)
WRONG = {
    "None": None, "number": 3, "negative": -1, "half": 1.5, "nan": np.nan, "infinite": np.inf, "huge": 10**30,
    "text": "a", "empty text": "", "long text": "x" * 5000, "NUL": "a\0b", "bytes": b"\xff", "true": True,
    "list": [], "mixed list": [-1, "a"], "dict": {}, "wrong dict": {"g": "a", 3: None}, "set": {1},
    "matrix": np.zeros((2, 2)), "function": len, "type": int, "object": object(),
}  # fmt: skip


def table():
    rng = np.random.default_rng(0)
    d = {"x": rng.normal(size=48), "z": rng.normal(size=48), "g": np.repeat(list("abcdefgh"), 6)}
    d |= {"y": 0.3 * d["x"] + rng.normal(size=48) + np.repeat(rng.normal(size=8), 6)}
    return pd.DataFrame(d | {"b": np.tile([0, 1, 1, 0], 12), "s": np.tile([0, 1], 24), "w": 1.0})


DATA = table()


@pytest.fixture(scope="module")
def fit():
    return jg.fit("y ~ x + (1 | g)", DATA)


@pytest.fixture(scope="module")
def path():
    return jg.fit_path("y ~ x + z", DATA, n_lambdas=4)


@pytest.fixture(scope="module")
def replicates(fit):
    return fit.bootstrap(20, seed=1)


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def arguments(function):
    kinds = inspect.Parameter
    return [
        name
        for name, p in inspect.signature(function).parameters.items()
        if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) and name != "self"
    ]


def raw_errors(function, given, names=None, skip=()):
    """{(argument, wrong value): error} of what is not ours."""
    out = {}
    for name in arguments(function) if names is None else names:
        for what, value in WRONG.items():
            if (name, what) in skip:
                continue
            try:
                function(**{**given, name: value})
            except OURS:
                pass
            except Exception as error:
                out[name, what] = f"{type(error).__name__}: {error}"[:120]
    return out


def test_fit():
    given = {"formula": "y ~ x + (1 | g)", "data": DATA, "progress": False}
    assert raw_errors(jg.fit, given) == {}
    assert raw_errors(jg.fit, given | {"formula": "b ~ x + (1 | g)", "family": "binomial"}, ["theta", "prior"]) == {}


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (jg.fit_many, {"formula": "~ x + (1 | g)", "data": DATA, "responses": ["y", "z"], "progress": False}),
        (jg.fit_each, {"formula": "y ~ x + (1 | g)", "data": DATA, "by": "s", "progress": False}),
        (jg.model_frame, {"formula": "y ~ x", "data": DATA, "family": jg.Gaussian()}),
        (jg.load, {}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_functions_of_tables(function, given):
    # Of a frame these are objects of ours, which `fit` makes.
    skip = {(name, what) for name in ("family", "weightless") for what in WRONG} if function is jg.model_frame else ()
    assert raw_errors(function, given, skip=skip) == {}


@pytest.mark.slow
def test_compare_shrinkage():
    assert raw_errors(jg.compare_shrinkage, {"formula": "y ~ x + (1 | g)", "data": DATA, "folds": 2}) == {}


@pytest.mark.slow
def test_fit_path(path):
    given = {"formula": "y ~ x + z", "data": DATA, "lambdas": [0.5, 0.1], "progress": False}
    assert raw_errors(jg.fit_path, given) == {}
    for method in (path.selected, path.coefficients, path.refit, path.plot):
        assert raw_errors(method, {}) == {}


@pytest.mark.parametrize(
    "name",
    "ranef effects_method rank score update predict marginal_coefficients loo residuals simulate confint test icc "
    "bootstrap jackknife cross_validate multistart save vcov".split(),
)
def test_methods_of_a_fit(fit, name):
    given = {
        "score": {"history": DATA}, "update": {"rows": DATA}, "predict": {"new": DATA[:5]},
        "marginal_coefficients": {"data": DATA}, "test": {"contrasts": "x"}, "bootstrap": {"n": 4},
        "multistart": {"n": 1}, "cross_validate": {"folds": 2}, "save": {"path": "model"},
    }  # fmt: skip
    names = ["kind"] if name == "vcov" else None
    # More replicates than anybody waits for.
    skip = {("n", "huge"), ("n", "number")} if name in ("bootstrap", "multistart") else ()
    assert raw_errors(getattr(fit, name), given.get(name, {}), names, skip) == {}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_fits_together(fit, wrong):
    for call in (partial(jg.anova, fit), jg.anova, jg.pool, lambda v: jg.pool([fit, v]), plots.trace):
        with pytest.raises(OURS):
            call(wrong)


@pytest.mark.parametrize("name", ["caterpillar", "shrinkage", "calibration", "qq", "trace"])
def test_plots(fit, name):
    from matplotlib import pyplot

    assert raw_errors(getattr(plots, name), {"fit": fit, "path": "picture.png"}) == {}
    pyplot.close("all")


def test_replicates(replicates):
    assert raw_errors(replicates.table, {}) == {}
    assert raw_errors(replicates.plot, {"path": "picture.png"}) == {}


OBJECTS = (
    jg.ElasticNet, jg.Ridge, jg.Lasso, jg.NormalPrior, jg.StudentPrior, jg.HalfStudentPrior, jg.HalfCauchyPrior,
    jg.GammaPrior, jg.UniformShrinkagePrior, jg.Binomial, jg.Poisson, jg.NegativeBinomial, jg.Gamma, jg.Gaussian,
    jg.Beta,
)  # fmt: skip


@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
def test_families_penalties_and_priors(cls):
    given = {name: 0.1 for name in ("lam", "scale") if name in arguments(cls)}
    # equinox itself sorts the keys of such a dict before anything of ours is asked.
    skip = {(name, "wrong dict") for name in arguments(cls)}
    assert raw_errors(cls, given, skip=skip) == {}


@pytest.mark.parametrize("factors", [{"x": "a"}, {"x": None}, {"x": -1}, {"u": 1.0}, "abc", 3, [1.0], {3: 1}])
def test_factors_of_a_penalty(factors):
    with pytest.raises(jg.DataError, match="factors"):
        jg.fit("y ~ x", DATA, penalty=jg.Ridge(0.1, factors))


@pytest.mark.parametrize("cls", [GLMMRegressor, GLMMClassifier, RandomEffectEncoder])
def test_estimators(cls):
    X, y = DATA[["x", "g"]], DATA.b if cls is GLMMClassifier else DATA.y
    if cls is RandomEffectEncoder:
        X = X[["g"]]
    given = {"groups": "g"} if "groups" in arguments(cls) else {"cv": 2}
    assert raw_errors(lambda **options: cls(**options).fit(X, y), given, arguments(cls)) == {}


def test_the_functional_core():
    y, codes = DATA.b.to_numpy(float), np.repeat(np.arange(8), 6)
    X = np.column_stack([np.ones(48), DATA.x])
    rows = {"y": y, "X": X, "codes": codes}
    names = ["y", "X", "codes", "weights", "offset", "n_groups", "z", "dtype"]
    assert raw_errors(jg.make_design, rows, names) == {}
    design = jg.make_design(y, X, codes=codes, dtype=np.float32)[0]
    objective = jg.LaplaceMarginal(jg.Binomial())
    given = {"objective": objective, "design": design, "tol": 1e-4}
    assert raw_errors(jg.solve, given) == {}
    for cls in (jg.LaplaceMarginal, jg.JointLikelihood):
        assert raw_errors(cls, {}, skip={("family", "wrong dict")}) == {}
    nodes = {"family": jg.Binomial(), "nodes": 3}
    assert raw_errors(jg.AdaptiveQuadrature, nodes, ["nodes"], skip={("nodes", "wrong dict")}) == {}
    assert raw_errors(nn.GroupBatches, rows | {"groups": 2}, ["groups", "codes", "y", "X"]) == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda fit: jg.fit("y ~ x", DATA, levels=3), "levels must be a mapping"),
        (lambda fit: jg.fit("y ~ x", DATA, tol="a"), "tol must be a finite number at least 0; found 'a'"),
        (lambda fit: jg.fit("y ~ x", DATA, tol=np.nan), "tol must be"),
        (lambda fit: jg.fit("y ~ x", DATA, reml="yes"), "reml must be True or False; found 'yes'"),
        (lambda fit: jg.anova(fit, 3), "anova must be a fitted model"),
        (lambda fit: fit.save(None), "path must be a path; found None"),
        (lambda fit: fit.save("a" * 300), "names of at most 255"),
        (lambda fit: fit.simulate("a"), "n must be a whole number of at least 1"),
        (lambda fit: fit.simulate(seed=-1), "seed must be None, a whole number of at least 0"),
        (lambda fit: fit.test(None), "contrasts must be a coefficient's name"),
        (lambda fit: fit.rank(top="a"), "top must be a finite number above 0; found 'a'"),
        (lambda fit: fit.residuals("raw"), "kind must be one of 'response', 'pearson'"),
        (lambda fit: fit.predict(kind=3), "kind must be one of 'response', 'link'; found 3"),
    ],
)
def test_the_message_names_argument_value_and_what_was_expected(fit, call, message):
    with pytest.raises(jg.DataError) as error:
        call(fit)
    assert message in str(error.value)


def test_a_device_stands_once():
    import jax

    device = jax.devices()[0]
    with pytest.raises(jg.DataError, match="devices must be a list in which each device stands once"):
        jg.fit("b ~ x + (1 | g)", DATA, family="binomial", devices=[device, device])
