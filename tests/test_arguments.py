"""Every argument of every public function is given what it cannot be: only errors of our own come out."""

import inspect
import re
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import equinox as eqx
import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg
from jaxglmm import nn, plots
from jaxglmm.design.crossproducts import cross_products
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


# What of the wrong values means something, by argument; for all others an error of ours must come out.
MEANT = {
    "None": "*",  # where it is the default
    "true": "reml full_rank standardize progress throw rows uncertainty r_values blocked single",
    "number": "n_agq n max_iterations lambdas n_lambdas cv seed folds at top threshold gamma rhs lam df scale shape "
    "rate mean nodes groups bins sd n_effects which block constant random_state",
    "half": "lambdas threshold gamma rhs lam df scale shape rate mean sd constant",
    "negative": "at threshold rhs mean constant which",
    "huge": "random_state lambdas seed top threshold gamma rhs lam df scale shape rate mean sd constant",
    "text": "out path", "long text": "", "NUL": "", "empty text": "",
    "list": "random_state dummies seed factors parameters groups", "dict": "levels factors",
    "matrix": "lambdas rhs", "mixed list": "", "set": "", "function": "", "type": "", "object": "", "bytes": "",
    "nan": "", "infinite": "", "wrong dict": "",
}  # fmt: skip


def means(function, name, what) -> bool:
    if what != "None":
        return name in MEANT[what].split()
    return inspect.signature(function).parameters[name].default is None or name in ("seed", "sd", "cv", "n_agq")


def raw_errors(function, given, names=None, skip=(), of=None):
    """{(argument, wrong value): error} of what is not ours, and of what is taken though it means nothing.

    `of` is what has the arguments, where `function` hands them on.
    """
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
            else:
                if not means(of or function, name, what):
                    out[name, what] = "taken"
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
    skip = {("cv", what) for what in ("list", "matrix", "mixed list")}  # splits, as scikit-learn reads them
    assert raw_errors(lambda **options: cls(**options).fit(X, y), given, arguments(cls), skip, of=cls) == {}


ROWS = {
    "y": DATA.b.to_numpy(float), "X": np.column_stack([np.ones(48), DATA.x]), "codes": np.repeat(np.arange(8), 6)
}  # fmt: skip


@pytest.fixture(scope="module")
def laid():
    return jg.make_design(**ROWS, dtype=np.float32)


def test_make_design():
    # What the package itself hands over is not looked at.
    skip = {(name, what) for name in ("scaling", "least", "mesh") for what in WRONG}
    assert raw_errors(jg.make_design, ROWS, skip=skip) == {}


def test_solve(laid):
    given = {"objective": jg.LaplaceMarginal(jg.Binomial()), "design": laid[0], "tol": 1e-4}
    assert raw_errors(jg.solve, given) == {}


def test_objectives(laid):
    for cls in (jg.LaplaceMarginal, jg.JointLikelihood):
        assert raw_errors(cls, {}, skip={("family", "wrong dict")}) == {}
    given = {"family": jg.Binomial(), "nodes": 3}
    assert raw_errors(jg.AdaptiveQuadrature, given, skip=_of_equinox("family", "nodes")) == {}
    assert raw_errors(jg.GaussianMarginal, {}, skip=_of_equinox("reml")) == {}
    params = jg.Params(np.zeros(2, np.float32), np.zeros(1, np.float32), np.zeros((), np.float32))
    given = {"params": params, "design": laid[0]}
    for objective in (jg.LaplaceMarginal(jg.Binomial()), jg.AdaptiveQuadrature(jg.Binomial(), 3)):
        assert raw_errors(objective.__call__, given) == {}
    cross = cross_products(ROWS["y"], ROWS["X"], weights=np.ones(48), codes=ROWS["codes"], n_groups=8)
    assert raw_errors(jg.GaussianMarginal().__call__, {"params": params, "cross": cross}) == {}
    # Params is a pytree: what its leaves are is looked at where it is used.
    for name, value in (("beta", None), ("theta", np.zeros(3, np.float32)), ("log_dispersion", "a")):
        with pytest.raises(jg.DataError, match=f"params.{name} must"):
            jg.LaplaceMarginal(jg.Binomial())(replace(params, **{name: value}), laid[0])


def _of_equinox(*names):
    """equinox itself sorts the keys of such a dict before anything of ours is asked."""
    return {(name, "wrong dict") for name in names}


def test_log_density(laid):
    design, layout = laid
    given = {"objective": jg.LaplaceMarginal(jg.Binomial()), "design": design, "layout": layout}
    assert raw_errors(jg.LogDensity, given) == {}
    density = jg.LogDensity(jg.LaplaceMarginal(jg.Binomial()), design, layout)
    point = density.start()
    assert raw_errors(density.start, {}) == {}
    assert raw_errors(density.__call__, {"point": point}) == {}
    assert raw_errors(density.constrain, {"point": point}) == {}
    own = {"beta": np.zeros(2), "factor": np.eye(1)}
    # Neither is read here: the family has no dispersion, and the groups are integrated out.
    skip = {(name, what) for name in ("log_dispersion", "u") for what in WRONG}
    assert raw_errors(density.unconstrain, own, skip=skip) == {}
    for name, value in (("beta", np.zeros(3, np.float32)), ("theta", 1.0)):
        with pytest.raises(jg.DataError, match=name):
            density({**point, name: value})


def test_networks():
    assert raw_errors(nn.RandomEffects, {"family": jg.Binomial()}, skip=_of_equinox("family")) == {}
    assert raw_errors(nn.GroupBatches, ROWS | {"groups": 2}) == {}
    batches, layer = nn.GroupBatches(**ROWS, groups=2), nn.RandomEffects(jg.Binomial())
    assert raw_errors(lambda seed: list(batches.epoch(seed)), {}) == {}
    design = next(iter(batches.epoch(0)))
    given = {"eta": np.zeros(design.y.shape, np.float32), "design": design}
    for method in (layer.__call__, layer.posterior):
        assert raw_errors(method, given) == {}


def test_places_among_many_fits():
    """As of any container, what is not there is a KeyError or an IndexError."""
    fits = jg.fit_each("y ~ x + (1 | g)", DATA, by="s")
    for what, wrong in WRONG.items():
        if what not in ("negative", "true"):  # the last one; numbers to Python
            with pytest.raises((KeyError, IndexError, *OURS)):
                fits[wrong]


@pytest.mark.parametrize("cls", [GLMMRegressor, GLMMClassifier, RandomEffectEncoder])
def test_tables_of_estimators(cls):
    X, y = DATA[["x", "g"]], DATA.b if cls is GLMMClassifier else DATA.y
    X = X[["g"]] if cls is RandomEffectEncoder else X
    made = cls(**({} if cls is RandomEffectEncoder else {"groups": "g"})).fit(X, y)
    for name in ("transform", "predict", "predict_proba", "decision_function"):
        if hasattr(made, name):
            for what, wrong in WRONG.items():
                if what != "matrix":  # as many columns
                    with pytest.raises((ValueError, TypeError)):  # scikit-learn's own checks come first
                        getattr(made, name)(wrong)


def test_every_public_callable_is_in_the_table():
    """By names in this file: a new one must be added to a test."""
    text = Path(__file__).read_text(encoding="utf-8")
    missing = []
    made = {"Design", "Fit", "Fits", "ShrinkageComparison", "Solution"}  # by functions, not by a caller
    nothing = {"native_status"}  # to be wrong about
    for name in jg.__all__:
        value = getattr(jg, name)
        if isinstance(value, type) and issubclass(value, Exception):
            continue
        name = getattr(value, "__name__", name)  # of another name for the same
        if name in made | nothing:
            text += name
        if not re.search(rf"\b{name}\b", text):
            missing.append(name)
        if not isinstance(value, type):
            continue
        for method, function in inspect.getmembers(value, inspect.isfunction):
            ours = (function.__module__ or "").startswith("jaxglmm")
            # Families, designs and penalties are computed with inside of traced functions.
            if method.startswith("_") or not ours or not arguments(function) or issubclass(value, eqx.Module):
                continue
            if not re.search(rf"\b{method}\b", text):
                missing.append(f"{name}.{method}")
    assert missing == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda fit: jg.fit("y ~ x", DATA, levels=3), "levels must be a mapping"),
        (lambda fit: jg.fit("y ~ x", DATA, tol="a"), "tol must be a finite number above 0 and at most 1; found 'a'"),
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
