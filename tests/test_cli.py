"""The command line: what it writes and prints, its exit statuses, its cache, and what it imports."""

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg
from jaxglmm.cli import levels_of, main, theta_of


KEYS = [
    "formula", "family", "method", "n_agq", "n", "groups", "loglik", "aic", "bic", "df", "fixef", "fixef_se", "varcorr",
    "dispersion", "convergence",
]  # fmt: skip
CBPP = "cbind(incidence, size - incidence) ~ period + (1 | herd)"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A Gaussian table with 12 groups, as a CSV file."""
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(12), 8)
    frame = pd.DataFrame({"x": rng.normal(size=96).round(3), "g": g, "period": np.tile([1, 2, 3, 4], 24)})
    frame["y"] = (1 + 0.5 * frame["x"] + rng.normal(size=12)[g] + rng.normal(size=96)).round(4)
    path = tmp_path_factory.mktemp("table") / "table.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def binary(table):
    """The same with a 0/1 response z."""
    path = table.with_name("binary.csv")
    pd.read_csv(table).assign(z=lambda d: (d["y"] > 1).astype(int), one=1.0, zero=0.0).to_csv(path, index=False)
    return path


def fit_args(table, *more):
    return ["fit", "y ~ x + (1 | g)", str(table), *map(str, more)]


# --- What is written and printed ---------------------------------------------------------------------------


def test_fit_writes_the_same_as_python_gives(table, tmp_path, capsys):
    out = tmp_path / "deep" / "fit"
    assert main(fit_args(table, "--reml", "--out", out)) == 0
    assert sorted(path.name for path in out.iterdir()) == ["arrays.npz", "fit.json", "model.json", "ranef.parquet"]
    fit = jg.fit("y ~ x + (1 | g)", str(table), reml=True)
    found, wanted = json.loads((out / "fit.json").read_text()), fit.to_dict()
    assert list(found) == KEYS
    for result in (found, wanted):
        result["convergence"].pop("timings")
    assert found == wanted
    pd.testing.assert_frame_equal(pd.read_parquet(out / "ranef.parquet").drop(columns="group"), fit.ranef("g"))
    assert pd.read_parquet(out / "ranef.parquet")["group"].unique().tolist() == ["g"]
    printed = capsys.readouterr().out
    assert fit.summary().text.splitlines()[0] in printed and "Fixed effects:" in printed
    assert "\x1b[" not in printed


def test_json_stands_alone_on_standard_output(table, tmp_path, capsys):
    assert main(fit_args(table, "--json", "--out", tmp_path / "fit")) == 0
    said = capsys.readouterr()
    assert said.out == (tmp_path / "fit" / "fit.json").read_text()
    assert list(json.loads(said.out)) == KEYS


def test_without_out_nothing_is_written(table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(fit_args(table)) == 0
    assert not list(tmp_path.iterdir()) and "Fixed effects:" in capsys.readouterr().out


def test_options_reach_the_fit(binary, capsys):
    common = ["fit", "z ~ period + (1 | g)", str(binary), "--json"]
    options = "--family binomial --link probit --method agq --nodes 7 --weights one --offset zero --theta g=0.5"
    assert main([*common, *options.split(), "--levels", "period=4,3,2,1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["method"], found["n_agq"]) == ("agq", 7)
    assert list(found["fixef"]) == ["Intercept", "period[T.3]", "period[T.2]", "period[T.1]"]
    assert found["varcorr"][0]["sd"] == pytest.approx(0.5)
    frame = pd.read_csv(binary)
    frame["period"] = pd.Categorical(frame["period"], [4, 3, 2, 1])
    fit = jg.fit(
        "z ~ period + (1 | g)", frame, family=jg.Binomial(link="probit"), method="agq", n_agq=7, theta={"g": 0.5}
    )
    assert found["loglik"] == pytest.approx(fit.loglik, abs=1e-10)
    assert main([*common, "--family", "binomial", "--categorical", "period"]) == 0
    assert list(json.loads(capsys.readouterr().out)["fixef"])[1] == "period[T.2]"


@pytest.mark.reference
def test_cbpp_agrees_with_other_programs(reference_dir, capsys):
    stored = {fit["id"]: fit for fit in json.loads((reference_dir / "cbpp.json").read_text())["fits"]}
    data = str(reference_dir / "cbpp.csv")
    for identity, method in (("herd_own_aghq1", ["laplace"]), ("herd_own_aghq25", ["agq", "--nodes", "25"])):
        status = main(
            ["fit", CBPP, data, "--family", "binomial", "--categorical", "period", "--json", "--method", *method]
        )
        found, wanted = json.loads(capsys.readouterr().out), stored[identity]
        assert status == 0
        assert found["loglik"] == pytest.approx(wanted["logLik"], abs=1e-6)
        np.testing.assert_allclose(list(found["fixef"].values()), wanted["fixef"]["estimate"], atol=1e-5)


def test_a_level_with_a_comma_is_quoted():
    assert levels_of('dose="1,5 mg",3 mg') == ("dose", ["1,5 mg", "3 mg"])


def test_theta_takes_one_sd_or_several():
    assert theta_of("a:b=0.6") == ("a:b", 0.6)
    assert theta_of("subject=24,6") == ("subject", [24.0, 6.0])


# --- Exit statuses -----------------------------------------------------------------------------------------


def test_a_variance_at_zero_is_an_answer(tmp_path, capsys):
    rng = np.random.default_rng(1)
    y = rng.normal(size=(10, 6))
    y -= y.mean(1, keepdims=True)  # groups that differ less than by chance
    pd.DataFrame({"y": y.ravel(), "g": np.repeat(np.arange(10), 6)}).to_csv(tmp_path / "a.csv", index=False)
    assert main(["fit", "y ~ 1 + (1 | g)", str(tmp_path / "a.csv"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["convergence"]["singular"] and found["varcorr"][0]["sd"] == 0


def test_separation_is_status_1(tmp_path, capsys):
    x = np.linspace(-1, 1, 40)
    frame = pd.DataFrame({"x": x, "z": (x > 0).astype(int), "g": np.arange(40) % 8})
    frame.to_csv(tmp_path / "a.csv", index=False)
    out = tmp_path / "fit"
    assert main(["fit", "z ~ x + (1 | g)", str(tmp_path / "a.csv"), "--family", "binomial", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "complete separation: " in said.err and said.err.count("\n") == 1
    assert not out.exists()


def test_an_interrupt_is_status_130_and_leaves_nothing(table, tmp_path, capsys, monkeypatch):
    import jaxglmm.fitting

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(jaxglmm.fitting, "fit", interrupted)
    assert main(fit_args(table, "--out", tmp_path / "fit")) == 130
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_real_interrupt_ends_quietly(table, tmp_path):
    # A process that a shell starts in the background ignores the signal, and so do its children.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "import sys, jaxglmm.cli as c, time, jaxglmm.commands as m\n"
    code += "m._fitted = lambda options: (print('fitting', flush=True), time.sleep(600))\n"
    code += "sys.exit(c.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *fit_args(table, "--out", tmp_path / "fit")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "fitting\n"
            assert list(tmp_path.glob(".fit.*"))  # the new folder of the fit
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_failure_to_write_keeps_the_old_fit_whole(table, tmp_path, capsys, monkeypatch):
    import jaxglmm.commands

    out = tmp_path / "fit"
    assert main(fit_args(table, "--out", out)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jaxglmm.commands, "_write_ranef", full)
    assert main(["fit", "y ~ 1 + (1 | g)", str(table), "--out", str(out)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


# --- Predict -----------------------------------------------------------------------------------------------


def test_predict_adds_a_column_and_changes_nothing_else(table, tmp_path, capsys):
    out = tmp_path / "fit"
    main(fit_args(table, "--out", out))
    capsys.readouterr()
    assert main(["predict", str(out), str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == table.read_text().splitlines()[0] + ",prediction"
    assert [line.rpartition(",")[0] for line in lines[1:]] == table.read_text().splitlines()[1:]
    wanted = jg.load(out).predict(str(table))
    assert [float(line.rpartition(",")[2]) for line in lines[1:]] == wanted.tolist()  # to the last bit


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_predict_writes_files_and_takes_options(table, tmp_path, ending):
    model, file = tmp_path / "fit", tmp_path / f"out.{ending}"
    main(fit_args(table, "--out", model))
    new = pd.read_csv(table).head(4).assign(g=[0, 1, 99, 2])
    new.to_parquet(tmp_path / "new.parquet")
    options = ["--kind", "link", "--effects", "mode", "--new-levels", "population", "--out", str(file)]
    assert main(["predict", str(model), str(tmp_path / "new.parquet"), *options]) == 0
    found = pd.read_csv(file) if ending == "csv" else pd.read_parquet(file)
    fit = jg.load(model)
    np.testing.assert_array_equal(found["prediction"], fit.predict(new, kind="link", effects="mode"))
    assert found["prediction"].tolist()[2] == pytest.approx(fit.fixef["Intercept"] + fit.fixef["x"] * new["x"][2])
    assert not list(tmp_path.glob(".new-*"))


def test_predict_does_not_overwrite_a_column(table, tmp_path, capsys):
    main(fit_args(table, "--out", tmp_path / "fit"))
    pd.read_csv(table).assign(prediction=0).to_csv(tmp_path / "p.csv", index=False)
    assert main(["predict", str(tmp_path / "fit"), str(tmp_path / "p.csv")]) == 2
    assert "'prediction' already; rename it" in capsys.readouterr().err


# --- The process: imports, cache ---------------------------------------------------------------------------

HEAVY = ("optax", "scipy.stats", "scipy.optimize", "matplotlib", "polars", "sklearn", "IPython")
COUNT = """
import sys
from jaxglmm.cli import main
status = main(sys.argv[1:])
print(status, *(name for name in {names} if name in sys.modules), file=sys.stderr)
"""


def run(code, arguments, cwd, **env):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, timeout=300, env={**os.environ, **env},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["summary", "json"])
def test_fit_imports_nothing_it_does_not_use(binary, tmp_path, options):
    arguments = [
        "fit",
        "z ~ x + (1 | g)",
        binary,
        "--family",
        "binomial",
        "--out",
        tmp_path / "fit",
        *options,
    ]
    done = run(COUNT.format(names=HEAVY), arguments, tmp_path)
    assert done.stderr.strip() == "0"


def test_help_and_mistakes_start_neither_jax_nor_pandas(tmp_path):
    names = ("jax", "numpy", "pandas", "formulaic", "rich")
    code = COUNT.format(names=names).replace(
        "main(sys.argv[1:])", "0\ntry: main(sys.argv[1:])\nexcept SystemExit: pass"
    )
    for arguments in (["--help"], ["fit", "--help"], ["--version"], ["fit", "y ~ x"]):
        assert run(code, arguments, tmp_path).stderr.splitlines()[-1] == "0"


WATCH = """
import sys, jax.monitoring
compiled = 0
def listen(name, *_, **__):
    global compiled
    compiled += name == "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(listen)
from jaxglmm.cli import main
assert main(sys.argv[1:]) == 0
from jaxglmm.objectives.evaluate import _evaluate, evaluate_glm
print(compiled, _evaluate.jitted._cache_size(), evaluate_glm.jitted._cache_size())
"""


@pytest.fixture(scope="module")
def kept(binary, tmp_path_factory):
    """A function that runs a fit with a cache folder of its own, filled by a first run; and the folder."""
    folder = tmp_path_factory.mktemp("kept")
    arguments = ["fit", "z ~ x + (1 | g)", binary, "--family", "binomial", "--method", "laplace", "--json"]

    def again():
        out = run(WATCH, arguments, folder, JAXGLMM_CACHE=str(folder / "cache")).stdout
        result = json.loads(out[: out.rindex("}") + 1])
        result["convergence"].pop("timings")
        return result, out.split()[-3:]

    return again, folder / "cache", again()


def test_a_second_process_compiles_and_traces_nothing(kept):
    again, folder, (wanted, counts) = kept
    assert int(counts[0]) > 0
    found, counts = again()
    assert counts == ["0", "0", "0"]
    assert found == wanted  # a stored program gives the same bits
    (folder,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert version("jaxlib") in folder.name


def test_damaged_programs_are_replaced(kept):
    again, folder, (wanted, _) = kept
    programs = list(folder.rglob("*.program"))
    assert len(programs) >= 2
    for path in programs:
        path.write_bytes(path.read_bytes()[:1000])
    assert again()[0] == wanted
    assert all(path.stat().st_size > 1000 for path in folder.rglob("*.program"))
    found, counts = again()  # what was written in their place works in turn
    assert found == wanted and counts == ["0", "0", "0"]


def test_the_cache_can_be_switched_off(table, tmp_path):
    code = "from jaxglmm.cli import main; main()"  # as the command itself: the process ends there
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "xdg"), "JAXGLMM_CACHE": "off"}
    done = run(code, fit_args(table, "--json"), tmp_path, **home)
    assert done.returncode == 0 and not list(tmp_path.iterdir())


def test_the_cache_is_in_the_users_cache_folder(monkeypatch):
    from jaxglmm.cache import cache_folder

    monkeypatch.delenv("JAXGLMM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder().parent == Path("/somewhere/jaxglmm")


def test_the_library_never_sets_the_cache(run_python, table):
    code = f"import jax, jaxglmm; jaxglmm.fit('y ~ x + (1 | g)', {str(table)!r})"
    code += "; print(jax.config.jax_compilation_cache_dir)"
    assert run_python(code) == "None"


def test_doctor_and_demo_are_commands(capsys, monkeypatch, tmp_path):
    import jaxglmm.demo

    assert main(["doctor", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)[0]["name"] == "jaxglmm"
    called = []
    monkeypatch.setattr(jaxglmm.demo, "run", called.append)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert called == [str(tmp_path)]


@pytest.mark.parametrize(
    ("setting", "culprit"),
    [
        ({"JAXGLMM_NATIVE": "bogus"}, "JAXGLMM_NATIVE=bogus"),
        ({"JAXGLMM_KERNELS": "bogus"}, "JAXGLMM_KERNELS=bogus"),
        ({"JAXGLMM_SIMD": "bogus"}, "JAXGLMM_SIMD=bogus"),
        ({"JAX_PLATFORMS": "nowhere"}, "nowhere"),
        ({"JAX_ENABLE_X64": "bogus"}, "bogus"),
    ],
)
def test_bad_settings_are_one_line_and_status_2(table, tmp_path, setting, culprit):
    code = "from jaxglmm.cli import main; main()"  # as the command itself: the process ends there
    done = run(code, fit_args(table), tmp_path, **setting)
    assert done.returncode == 2 and not done.stdout
    assert culprit in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_output_that_cannot_be_written_is_said(table, tmp_path):
    code = "from jaxglmm.cli import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, *fit_args(table)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300
        )
    assert done.returncode == 2 and "No space left" in done.stderr and "Traceback" not in done.stderr
