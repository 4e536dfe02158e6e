"""Every public function that compiles, called a second time with other numbers in the same shapes, compiles nothing."""

import importlib
import pkgutil
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.design.design import make_design
from jaxglmm.encoder import RandomEffectEncoder
from jaxglmm.nn import GroupBatches, RandomEffects
from jaxglmm.ops.native import use_native
from jaxglmm.ops.programs import Program
from jaxglmm.optimise import working_set
from jaxglmm.sklearn import GLMMClassifier, GLMMRegressor


N = 480
G, H = np.repeat(np.arange(40), 12), np.tile(np.arange(12), 40)  # crossed
MEMBER = np.repeat(np.arange(120), 4)  # three in each of G


def table(seed: int) -> dict[str, np.ndarray]:
    """Responses and columns drawn anew; groups, and so all shapes, are the same."""
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=(2, N))
    u, v, w, s = rng.normal(size=40), rng.normal(size=12), rng.normal(size=120), rng.normal(size=40)
    eta = 0.2 + 0.5 * x - 0.4 * z + u[G] + 0.8 * v[H] + 0.9 * w[MEMBER] + 0.8 * s[G] * x
    return {
        "x": x, "z": z, "g": G, "h": H, "member": MEMBER, "w": rng.uniform(0.5, 2.0, N),
        "binary": 1.0 * (rng.uniform(size=N) < 1 / (1 + np.exp(-eta))),
        "count": rng.poisson(np.exp(0.5 * eta)), "y": eta + 0.5 * rng.normal(size=N),
        "steady": u[G] + 1e-4 * x, "positive": np.exp(eta),
    }  # fmt: skip


def fit(formula: str, family="binomial", **options):
    return lambda seed: jg.fit(formula, table(seed), family=family, progress=False, **options)


def asked(formula: str, *questions, family="binomial", **options):
    """Call what a fitted object offers."""

    def run(seed):
        data = table(seed)
        fitted = jg.fit(formula, data, family=family, progress=False, **options)
        for question in questions:
            question(fitted, data)

    return run


def _solved(seed):
    data = table(seed)
    X = np.column_stack([np.ones(N), data["x"]])
    with jax.enable_x64(True):
        design, _ = make_design(data["binary"], X, codes=G)
        objective = jg.AdaptiveQuadrature(jg.Bernoulli(), 5)
        jax.block_until_ready(jg.solve(objective, jax.device_put(design)))


def _network(seed):
    data = table(seed)
    batches = GroupBatches(data["binary"], np.column_stack([data["x"]]), G, groups=8)
    layer = RandomEffects(jg.Bernoulli(), nodes=5)
    for design in batches.epoch(seed):
        _step(layer, design)
        layer.posterior(design.X[:, 0], design)


@jax.jit
def _step(layer, design):
    return jax.value_and_grad(lambda layer: layer(design.X[:, 0], design))(layer)


def _density(seed):
    data = table(seed)
    X = np.column_stack([np.ones(N), data["x"]])
    with jax.enable_x64(True):
        design, layout = make_design(data["binary"], X, codes=G)
        density = jg.LogDensity(jg.AdaptiveQuadrature(jg.Bernoulli(), 5), jax.device_put(design), layout)
        jax.block_until_ready(_value(density, density.start()))


@jax.jit
def _value(density, point):
    return jax.value_and_grad(density)(point)


def _estimator(estimator, response):
    def run(seed):
        data = table(seed)
        X = np.column_stack([data["g"], data["x"], data["z"]])
        estimator.fit(X, data[response])
        estimator.predict(X)

    return run


def _encoder(seed):
    data = table(seed)
    RandomEffectEncoder(cv=3, random_state=0).fit_transform(data["g"][:, None], data["binary"])


def strata(seed):
    return {**table(seed), "s": np.arange(N) // 120}


def path(formula, part=False):
    """Dummies of every member; with `part` only those are read that the numbers call for, which therefore stay."""

    def run(seed):
        data = table(0 if part else seed)
        options = {"family": "binomial", "dummies": ["member"], "n_lambdas": 4, "lambda_min_ratio": 0.5}
        with pytest.MonkeyPatch.context() as patch:
            for limit in ("_LITTLE_X", "_LITTLE_WORK") if part else ():  # as if there were far more
                patch.setattr(working_set, limit, 0)
            return jg.fit_path(formula, data, cv=None if part else 3, **options)

    return run


def many(family):
    """Twelve responses on one design."""

    def run(seed):
        rng, data = np.random.default_rng(seed), table(seed)
        y = data["binary" if family == "binomial" else "y"]
        Y = np.column_stack([rng.permuted(y.reshape(40, 12), axis=1).ravel() for _ in range(12)])
        return jg.fit_many("~ x + (1 | g)", data, responses=Y, family=family)

    return run


def plain(run):
    """The same as where there is no library."""

    def without(seed):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JAXGLMM_KERNELS", "plain")
            run(seed)

    return without


class Case(NamedTuple):
    """A call with numbers drawn by a seed, and jitted functions of the package that it is here to reach, in native code
    too."""

    run: Callable
    reaches: str = ""
    natively: str = ""


LAPLACE = {"method": "laplace"}
ONE, SLOPES, CROSSED = "binary ~ x + (1 | g)", "binary ~ x + (x | g)", "binary ~ x + (1 | g) + (1 | h)"
NESTED, THREE = "binary ~ x + (1 | g / member)", CROSSED + " + (1 | member)"
CASES = {
    "fit, no groups": Case(fit("binary ~ x + z"), "evaluate.evaluate_glm"),
    "fit, Laplace": Case(fit(ONE, **LAPLACE), "evaluate._evaluate"),
    "fit, Laplace, plain": Case(plain(fit(ONE, **LAPLACE)), "evaluate._evaluate"),
    "fit, quadrature": Case(fit(ONE, method="agq", n_agq=7)),
    "fit, slopes": Case(fit(SLOPES, **LAPLACE)),
    "fit, weights": Case(fit("count ~ x + (1 | g)", "poisson", weights="w", **LAPLACE)),
    "fit, dispersion": Case(fit("count ~ x + (1 | g)", "negativebinomial", **LAPLACE)),
    "fit, penalty": Case(fit("binary ~ x + z + (1 | g)", penalty=jg.Lasso(0.01), **LAPLACE)),
    "fit, prior": Case(fit(ONE, prior={"g": jg.HalfStudentPrior(3.0, 1.0)}, **LAPLACE), "log_prior._log_prior"),
    "fit, Gaussian": Case(fit("y ~ x + (x | g)", "gaussian"), "gaussian_expansion._group_sums"),
    "fit, gamma": Case(fit("positive ~ x", "gamma"), "noiseless._link"),
    "fit, Gaussian, little within": Case(fit("steady ~ z + (1 | g)", "gaussian"), "gaussian_expansion._sums_apart"),
    "fit, Gaussian, crossed": Case(fit("y ~ x + (1 | g) + (1 | h)", "gaussian")),
    "fit, nested": Case(fit(NESTED, **LAPLACE), natively="nested._nested_pass nested.fixed_part"),
    "fit, nested, nodes": Case(fit(NESTED, method="agq", n_agq=5), natively="nested._shifted_pass"),
    "fit, nested, nodes, plain": Case(
        plain(fit(NESTED, method="agq", n_agq=5)),
        "integrated_levels._slope integrated_levels._turned_slope "
        "level_curvature.level_curvatures "
        "level_curvature.pull_curvatures",
    ),
    "fit, crossed": Case(fit(CROSSED), "level_gap._by_eta pairs.sampled_product rows._all_rows rows._newton_rows"),
    "fit, Krylov": Case(
        fit(THREE, solver="krylov"),
        "krylov_operator.diagonal_entries krylov_operator.first_entries krylov_operator.own_entries "
        "krylov_operator.probe krylov_operator.scaled_blocks krylov_operator.solve krylov_operator.between_entries",
    ),
    "fit, Krylov, slopes": Case(fit(SLOPES + " + (1 | h)", solver="krylov")),
    "effects": Case(
        asked(ONE, lambda f, _: (f.ranef(interval=0.9), f.rank(), f.summary()), **LAPLACE),
        natively="moments._group_effects moments._group_moments",
    ),
    "effects, crossed": Case(asked(CROSSED, lambda f, _: (f.ranef("g"), f.ranef("h"), f.summary()))),
    "effects, Krylov": Case(asked(CROSSED, lambda f, _: (f.ranef("g"), f.ranef("h")), solver="krylov")),
    "effects, Gaussian": Case(
        asked("y ~ x + (x | g)", lambda f, _: (f.ranef(), f.summary(), f.loo()), family="gaussian"),
        "gaussian.conditional_modes posterior.group_posteriors",
    ),
    "predictions": Case(
        asked(
            ONE,
            lambda f, d: (f.predict(d), f.predict(d, interval=0.9), f.fitted, f.residuals("quantile")),
            lambda f, d: (f.score(d), f.marginal_coefficients(), f.loo(), f.simulate(2, seed=0)),
            **LAPLACE,
        ),
        "rowwise._apply rowwise._average",
    ),
    "update": Case(asked(ONE, lambda f, d: f.update(d), **LAPLACE)),
    "inference": Case(
        asked(ONE, lambda f, _: (f.vcov("cluster"), f.confint("profile"), f.test("x")), **LAPLACE), "cluster._meat"
    ),
    "bootstrap": Case(asked(ONE, lambda f, _: (f.bootstrap(6, seed=0), f.jackknife()), **LAPLACE)),
    "bootstrap, cases": Case(asked(ONE, lambda f, _: f.bootstrap(6, "cases", seed=0), **LAPLACE)),
    "cross-validation": Case(
        asked(ONE, lambda f, _: f.cross_validate(3, seed=0), **LAPLACE), "cross_validation._differences"
    ),
    "multistart": Case(asked(ONE, lambda f, _: f.multistart(4, seed=0), **LAPLACE)),
    "fit_path": Case(path(ONE), "evaluate_many._evaluate_many"),
    "fit_path, no groups": Case(path("binary ~ x"), "evaluate_many.evaluate_glm_weighted"),
    "fit_path, working set": Case(path(ONE, part=True), "scores.linear_predictor scores.marginal_scores"),
    "fit_path, working set, no groups": Case(path("binary ~ x", part=True), "scores.glm_scores"),
    "compare_shrinkage": Case(lambda seed: jg.compare_shrinkage(ONE, table(seed), family="binomial", folds=3)),
    "fit_many": Case(many("binomial")),
    "fit_many, plain": Case(
        plain(many("binomial")),
        "evaluate_many._evaluate_many evaluate_many.evaluate_glm_many evaluate_many.group_spread_many "
        "batch_lanes._put batch_lanes._take",
    ),
    "fit_many, Gaussian": Case(many("gaussian")),
    "fit_each": Case(lambda s: jg.fit_each("binary ~ x + (1 | member)", strata(s), by="s", family="binomial")),
    "fit_each, Gaussian": Case(lambda s: jg.fit_each("y ~ x + (1 | member)", strata(s), by="s")),
    "solve": Case(_solved, "solution._solve"),
    "nn": Case(_network, "evaluate.posterior_moments"),
    "LogDensity": Case(_density),
    "classifier": Case(_estimator(GLMMClassifier(groups=[0]), "binary")),
    "regressor": Case(_estimator(GLMMRegressor(groups=[0]), "y")),
    "encoder": Case(_encoder),
}
WITHIN_OTHERS = {"group._block_total"}  # jitted so that it is traced once where several programs hold it


def jitted_functions() -> dict[str, object]:
    """Every function of the package that compiles, by the last part of its module's name and its own."""
    found = {}
    for module in pkgutil.walk_packages(jg.__path__, "jaxglmm."):
        if module.name.endswith("__main__"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            jitted = value.jitted if isinstance(value, Program) else value
            if hasattr(jitted, "_cache_size") and value.__module__.startswith("jaxglmm."):
                found[f"{value.__module__.rsplit('.', 1)[1]}.{value.__qualname__}"] = jitted
    return found


@contextmanager
def compilations():
    """Names of the programs that are compiled meanwhile."""
    names = []

    def listen(event, _, **more):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(more.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("name", CASES)
def test_a_second_call_compiles_nothing(name):
    case = CASES[name]
    case.run(0)
    functions = jitted_functions()
    reaches = case.reaches.split() + (case.natively.split() if use_native() else [])
    unused = [f for f in reaches if not functions[f]._cache_size()]  # pyright: ignore
    assert not unused
    with compilations() as compiled:
        case.run(1)
    assert not compiled


def test_compilations_are_counted():
    with compilations() as compiled:
        jax.jit(lambda x: 2 * x)(np.ones(3))
    assert len(compiled) == 1


def test_no_jitted_function_was_left_out():
    reached = {f for case in CASES.values() for f in f"{case.reaches} {case.natively}".split()}
    assert reached | WITHIN_OTHERS == set(jitted_functions())
