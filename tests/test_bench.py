"""The benchmarks: their command line, the way contenders are run, and what is written, all at a tiny size."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import contest, report, suites  # noqa: E402
from bench.peers import CONTENDERS  # noqa: E402
from bench.simulate import members, write_members  # noqa: E402


@pytest.mark.parametrize("name", suites.names())
def test_every_suite_says_what_the_command_needs(name):
    suite = suites.load(name)
    assert suite.TITLE and suite.SIZES and callable(suite.cases)
    assert set(suite.PEERS) <= set(CONTENDERS)


@pytest.mark.parametrize("name", ["slopes", "quadrature", "crossed", "nested", "shrinkage"])
def test_a_case_that_is_over_takes_no_rows_from_the_next(name):
    """The command frees each case's arrays."""
    for case in suites.load(name).cases(100):
        assert {"y", "X", "g"} <= set(case.arrays)
        case.arrays.clear()


def test_a_suite_measures_and_writes_what_it_found(tmp_path):
    """Ours and scikit-learn on the same 60 groups; the model without random effects fits worse."""
    command = [sys.executable, "-m", "bench", "members", "--sizes", "60", "--runs", "1", "--peers", "jaxglmm,sklearn"]
    command += ["--patience", "0", "--plain", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "members.json").read_text())
    ours, sklearn = found["cases"][0]["contenders"]
    assert ours["status"] == sklearn["status"] == "done"
    assert ours["seconds"][0] < ours["first"]  # which compiles
    assert ours["result"]["objective"] > sklearn["result"]["objective"]
    assert ours["result"]["decrement"] < 1e-10
    assert found["facts"]["threads"]["OMP_NUM_THREADS"] == "2"
    assert (tmp_path / "members.png").read_bytes().startswith(b"\x89PNG")
    assert "objective" in done.stdout and "no random effects" in done.stdout


def test_the_scaling_suite_reads_files_too(monkeypatch):
    """Beyond what fits in memory as arrays there is the file alone, of which ours alone is measured."""
    pytest.importorskip("pyarrow")
    scaling = suites.load("scaling")
    assert [case.task for case in scaling.cases(40)] == ["mixed", "file"]
    monkeypatch.setattr(scaling, "IN_MEMORY", 0)
    for case in scaling.cases(40):
        entries = contest.contest(case, ["jaxglmm"], contest.Settings(runs=1, patience=0, plain=True))
        assert case.task == "file" and entries[0].status == "done"
        assert entries[0].result["decrement"] < 1e-10 and entries[0].peaks[0] > 0


def test_who_took_too_long_is_left_out_at_larger_sizes(tmp_path):
    settings = contest.Settings(reach=10.0)
    case = lambda size, **more: suites.Case(f"{size} groups", size, "mixed", {}, **more)
    entry = lambda name, seconds: contest.Entry(name, "done", seconds=[seconds], peaks=[100.0 * seconds])
    measured = [
        (case(100), [entry("jaxglmm", 1.0), entry("glmm", 2.0), contest.Entry("gpboost", "failed: no memory")]),
        (case(1000), [entry("jaxglmm", 2.0), entry("glmm", 30.0)]),
        (case(1000, series="file"), [entry("jaxglmm", 3.0)]),
    ]
    why = lambda name, **more: contest.out_of_reach(name, case(10_000, **more), measured, settings)
    assert why("jaxglmm") == "" and why("glmm") == "left out: 30 s at 1000 groups"
    assert why("gpboost") == "left out: failed at 100 groups"
    assert why("glmm", series="file") == ""
    report.draw(tmp_path / "curves.png", "curves", measured)
    report.draw(tmp_path / "bars.png", "bars", measured[1:])
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "bars.png"))


def test_a_file_of_members_holds_what_its_formula_says(tmp_path):
    """Its coefficients come back, and the same seed gives the same file."""
    pq = pytest.importorskip("pyarrow.parquet")
    formula = write_members(tmp_path / "a.parquet", 3000, columns=4, seed=2)
    write_members(tmp_path / "b.parquet", 3000, columns=4, seed=2)
    assert formula == "y ~ x1 + x2 + x3 + (1 | g)"
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.equals(pq.read_table(tmp_path / "b.parquet"))
    assert len(set(table["g"].to_pylist())) == 3000 and str(table.schema.field("x1").type) == "float"
    counts = np.unique(table["g"].to_numpy(), return_counts=True)[1]
    assert abs(counts.mean() - 3) < 0.2 and set(table["y"].to_pylist()) == {0.0, 1.0}


def test_a_peer_that_is_not_installed_is_named(tmp_path):
    settings = contest.Settings(runs=1, patience=0, rscript=None, peers_python=None)
    case = suites.Case("tiny", 10, "mixed", members(10, columns=2), {"family": "binomial"})
    entries = contest.contest(case, ["gpboost", "glmer"], settings)
    assert [entry.status for entry in entries] == ["missing: no --peers-python", "missing: no Rscript"]
    console = pytest.importorskip("rich.console").Console(record=True, width=130)
    console.print(report.table(case, entries))
    assert "missing: no Rscript" in console.export_text()


@pytest.mark.parametrize(("variable", "word"), [("JAXGLMM_NATIVE", "off"), ("JAXGLMM_KERNELS", "plain")])
def test_ours_in_plain_jax_is_refused_unless_asked_for(monkeypatch, variable, word):
    """A contender that is plain by its name is asked for, and so is --plain."""
    monkeypatch.delenv("JAXGLMM_KERNELS", raising=False)
    monkeypatch.setenv(variable, word)
    case = suites.Case("tiny", 10, "mixed", members(10, columns=2), {"family": "binomial"})
    with pytest.raises(contest.NotNative, match=f"plain JAX: {variable}={word}"):
        contest.contest(case, ["jaxglmm"], contest.Settings(runs=1, patience=0))
    describe = {"plain": f"{variable}={word}"}
    contest.refuse_plain("jaxglmm", describe, contest.Settings(plain=True))
    contest.refuse_plain("jaxglmm-plain", describe, contest.Settings())


def test_a_worse_objective_is_remarked():
    entries = [
        contest.Entry("jaxglmm", "done", seconds=[1.0], loads=[0.0], result={"objective": -10.0}),
        contest.Entry("gpboost", "done", seconds=[3.0], loads=[2.0], result={"objective": -10.5}),
    ]
    case = suites.Case("case", 1, "mixed", {})
    assert report.remarks(case, entries[0], entries) == []
    assert report.remarks(case, entries[1], entries) == ["objective worse by 0.5", "busy machine: 2.0 cores"]


def test_the_device_command_finds_the_cpu_right():
    """Float32 and float64 on this machine's first device, against float64 on its CPU."""
    import jax

    from bench.device import check

    measured = check(jax.devices()[0], 300, columns=4)
    assert {m.operation for m in measured if m.dtype == "float32"} >= {"group totals", "posterior", "a whole fit"}
    assert [(m.operation, m.dtype, m.error) for m in measured if not m.good] == []
    assert all(m.seconds > 0 and m.bytes > 0 for m in measured)


def test_members_are_what_they_are_said_to_be():
    arrays = members(20_000, seed=1)
    y, X, g = arrays["y"], arrays["X"], arrays["g"]
    counts = np.unique(g, return_counts=True)[1]
    assert len(counts) == 20_000 and abs(counts.mean() - 3) < 0.05
    assert X.shape == (20, len(y)) and (X[0] == 1).all() and abs(X[1:].std() - 1) < 0.01
    assert set(y.tolist()) == {0.0, 1.0}
