"""Where JAX computes: after a fork, within a transformation, under settings of the caller's."""

import os

import jax
import numpy as np
import pytest
from fitted_models import members, visits

import jaxglmm as jg
from jaxglmm.ops.computing import computing


def data(seed=0):
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(12), 5)
    x = rng.normal(size=60)
    return {"g": g, "h": np.tile(np.arange(6), 10), "x": x, "y": x + rng.normal(size=12)[g] + rng.normal(size=60)}


VERBS = """
import os, signal, sys, tempfile, warnings
import numpy as np
import jaxglmm as jg

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
table = {"g": np.repeat(np.arange(12), 5), "x": rng.normal(size=60), "z": rng.integers(0, 2, 60)}
folder = tempfile.mkdtemp()
fit = jg.fit("z ~ x + (1 | g)", table, family="binomial")
fit.save(folder + "/first")
loaded = jg.load(folder + "/first")
fresh = jg.fit("z ~ x + (1 | g)", table, family="binomial")
again = lambda: jg.fit("z ~ x + (1 | g)", table, family="binomial")
verbs = {
    "fit": again, "predict": lambda: fit.predict(table), "simulate": lambda: fit.simulate(seed=0),
    "rank": lambda: fit.rank(), "score": lambda: fit.score(table), "update": lambda: loaded.update(table),
    "confint": lambda: fit.confint("profile"), "fit_each": lambda: jg.fit_each("z ~ x", table, by="g"),
    "save a fit": lambda: fit.save(folder + "/second"), "save a loaded fit": lambda: loaded.save(folder + "/third"),
    "save a fresh fit": lambda: fresh.save(folder + "/fourth"), "load": lambda: jg.load(folder + "/first"),
    "summary": lambda: str(fit.summary()),
}
for name, verb in verbs.items():
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            verb()
            said = "done"
        except jg.DataError as error:
            said = "refused" if "'spawn'" in str(error) and "'forkserver'" in str(error) else repr(error)
            said += ", save it before" if "fit.save(path) before forking" in str(error) else ""
        print(name, "-", said, flush=True)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        print(name, "- ended by", status, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_after_a_fork_nothing_waits_for_ever(run_python, same_compiler):
    said = dict(line.split(" - ") for line in run_python(VERBS, **same_compiler).splitlines())
    assert set(said.values()) <= {"done", "refused", "refused, save it before"}, said
    assert said["fit"] == said["predict"] == "refused"
    assert said["save a fresh fit"] == "refused, save it before"
    assert said["save a fit"] == said["save a loaded fit"] == said["load"] == said["summary"] == "done"


def test_a_fork_before_jax_has_run_is_no_matter(run_python):
    code = """
import os, jaxglmm as jg, jax
pid = os.fork()
if pid == 0:
    jg.fit("y ~ 1 + (1 | g)", {"y": [1.0, 2.5, 3.1, 4.7, 5.2, 8.9], "g": [0, 0, 1, 1, 2, 2]})
    print("fitted", flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_python(code).split() == ["fitted", "0"]


def test_a_fit_within_jit_says_what_to_use():
    table = data()
    fit, names = members(), "y ~ x + (1 | g)"

    def concrete(x):
        jg.fit(names, table)
        return x

    verbs = {
        "of data": lambda y: jg.fit(names, table | {"y": y}),
        "weights": lambda w: jg.fit(names, table, weights=w),
        "offset": lambda o: jg.fit(names, table, offset=o),
        "within jax.jit": concrete,
    }
    for culprit, verb in verbs.items():
        with pytest.raises(jg.DataError, match=rf"{culprit}.*jg\.solve"):
            jax.jit(verb)(table["y"] ** 2)
    with pytest.raises(jg.DataError, match=r"'y' of data is traced by .*grad"):
        jax.grad(lambda y: jg.fit(names, table | {"y": y}).loglik)(np.asarray(table["y"], "f4"))
    new = {name: np.asarray(values) for name, values in visits().head(3).items()}
    with pytest.raises(jg.DataError, match=r"'x' of data .*jg\.solve"):
        jax.jit(lambda x: fit.predict(new | {"x": x}))(np.ones(3))


UNDER = """
import warnings, jax, numpy as np, jaxglmm as jg

warnings.simplefilter("ignore")
settings = {settings!r}
for name, value in settings.items():
    jax.config.update(name, value)
rng = np.random.default_rng(0)
table = {{"g": np.repeat(np.arange(12), 5), "h": np.tile(np.arange(6), 10), "x": rng.normal(size=60)}}
table["y"] = table["x"] + rng.normal(size=12)[table["g"]] + rng.normal(size=60)
table |= {{"z": (table["y"] > 0).astype(int), "n": rng.poisson(3, 60), "s": np.repeat([0, 1], 30)}}
for formula, family, options in (
    ("z ~ x + (1 | g)", "binomial", {{}}), ("y ~ x + (x | g)", "gaussian", {{}}), ("n ~ x", "poisson", {{}}),
    ("y ~ x + (1 | g) + (1 | h)", "gaussian", {{"reml": True}}), ("n ~ x + (1 | g) + (1 | h)", "poisson", {{}}),
    ("n ~ x + (1 | g)", "negativebinomial", {{"method": "laplace"}}),
    ("z ~ x + (1 | g)", "binomial", {{"penalty": jg.Lasso(0.1)}}),
)[:{models}]:
    fit = jg.fit(formula, table, family=family, **options)
    assert np.isfinite(fit.predict(table)).all()
    str(fit.summary()), fit.simulate(seed=0), fit.residuals()
    if "|" in formula:
        fit.ranef("g")
    if family == "binomial" and not options:
        fit.rank(), fit.score(table), fit.predict(table, interval=0.9), fit.loo(), fit.vcov("cluster")
if {models} > 2:
    jg.fit_each("y ~ x + (1 | h)", table, by="s")
    jg.fit_many("~ x + (1 | g)", table, responses=["y", "n"])
    jg.fit_path("y ~ x + (1 | g)", table)
assert all(getattr(jax.config, name) == value for name, value in settings.items())
print("done")
"""
STRICT = {"jax_numpy_rank_promotion": "raise", "jax_transfer_guard": "disallow"}


def test_settings_of_the_caller_do_not_break_a_fit(run_python, same_compiler):
    assert run_python(UNDER.format(settings=STRICT, models=1), **same_compiler) == "done"


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [STRICT, {"jax_numpy_dtype_promotion": "strict"}, {"jax_debug_nans": True}, {"jax_debug_infs": True}],
    ids=lambda settings: "+".join(settings),
)
def test_settings_of_the_caller_break_nothing_else(run_python, settings, same_compiler):
    assert run_python(UNDER.format(settings=settings, models=9), **same_compiler) == "done"


def test_settings_come_back():
    with jax.numpy_rank_promotion("raise"), jax.transfer_guard("disallow"):
        with computing():
            assert jax.numpy.ones(2).dtype == np.float64
            jax.numpy.ones((2, 3)) + np.ones(3)
        assert getattr(jax.config, "jax_numpy_rank_promotion") == "raise"  # noqa: B009
        with pytest.raises(Exception, match="Disallowed host-to-device"):
            jax.numpy.ones(3, "f4") + np.ones(3, "f4")
    assert jax.numpy.ones(2).dtype == np.float32
