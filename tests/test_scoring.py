"""Scores of members from their own rows: in memory, updated, and in files of any length."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from fitted_models import members, visits

import jaxglmm as jg
from jaxglmm.fitted import stream
from jaxglmm.fitted.stream import score_file


COLUMNS = ["n", "estimate", "sd", "mean", "sd_mean", "reliability"]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """3,000 rows of 900 members, some of the fit, in no order, as Parquet and as CSV."""
    rng = np.random.default_rng(8)
    member = np.array([f"m{i:02d}" if i < 40 else f"new{i}" for i in range(900)])[rng.integers(0, 900, 3000)]
    data = pd.DataFrame({"sick": rng.choice(["yes", "no"], 3000), "x": rng.normal(size=3000)})
    data["arm"], data["member"] = rng.choice(["placebo", "drug"], 3000), member
    data["effort"] = rng.uniform(0, 1, 3000)
    data.loc[::50, "x"] = np.nan
    folder = tmp_path_factory.mktemp("history")
    data.to_parquet(folder / "rows.parquet", index=False)
    data.to_csv(folder / "rows.csv", index=False)
    members().save(folder / "fit")
    return folder, data


def test_members_of_the_fit_score_as_in_the_fit():
    fit, data = members(), visits()
    scored, known = fit.score(data, interval=0.9), fit.ranef(interval=0.9, uncertainty=False)
    assert scored["level"].tolist() == known["level"].tolist()
    for name in [*COLUMNS, "lower", "upper"]:
        np.testing.assert_allclose(scored[name], known[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_file_scores_as_a_table(history, tmp_path, monkeypatch, ending):
    folder, data = history
    expected = members().score(data)
    monkeypatch.setattr(stream, "BUCKET", 700 if ending == "parquet" else 10**9)
    out = tmp_path / f"scores.{ending}"
    score_file(members().state, folder / f"rows.{ending}", out, chunk=512)
    found = pd.read_parquet(out) if ending == "parquet" else pd.read_csv(out)
    if ending == "csv":
        assert found["level"].tolist() == expected["level"].tolist()
    found = found.sort_values("level", ignore_index=True)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-9)
    assert os.listdir(tmp_path) == [out.name]


def test_a_killed_run_ends_in_the_same_file(history, tmp_path, monkeypatch):
    folder, _ = history
    monkeypatch.setattr(stream, "BUCKET", 700)
    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    score_file(members().state, folder / "rows.parquet", whole, chunk=512)
    real, made, stops = stream._write, [], [3, 9]  # within the chunks, within the parts

    def failing(path, write):
        if stops and len(made) == stops[0]:
            del stops[0]
            raise KeyboardInterrupt
        made.append(path.name)
        real(path, write)

    monkeypatch.setattr(stream, "_write", failing)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            score_file(members().state, folder / "rows.parquet", broken, chunk=512)
        assert not broken.exists()
    score_file(members().state, folder / "rows.parquet", broken, chunk=512)
    assert len(made) == len(set(made)), "nothing is made twice"
    assert broken.read_bytes() == whole.read_bytes()


def test_another_model_or_option_begins_anew(history, tmp_path, monkeypatch):
    folder, _ = history
    out, real = tmp_path / "scores.parquet", stream._join

    def failing(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "_join", failing)
    with pytest.raises(KeyboardInterrupt):
        score_file(members().state, folder / "rows.parquet", out)
    monkeypatch.setattr(stream, "_join", real)
    score_file(members().state, folder / "rows.parquet", out, interval=0.5)
    assert {"lower", "upper"} <= set(pd.read_parquet(out).columns)


def test_bad_files_are_named(history, tmp_path):
    folder, data = history
    fit = members()
    data.drop(columns="effort").to_csv(tmp_path / "short.csv", index=False)
    for source, out, message in (
        (data, tmp_path / "s.csv", "found a DataFrame"),
        (tmp_path / "no.csv", tmp_path / "s.csv", "no file"),
        (folder / "rows.csv", tmp_path / "s.txt", r"expected a \.csv or \.parquet"),
        (tmp_path / "short.csv", tmp_path / "s.csv", "no column 'effort'"),
    ):
        with pytest.raises(jg.DataError, match=message):
            fit.score(source, out=out)
        assert not (tmp_path / "s.csv").exists()


def test_a_process_that_is_killed_can_be_repeated(history, tmp_path):
    """The command line, killed by a signal once it has begun."""
    folder, _ = history
    arguments = [
        sys.executable,
        "-m",
        "jaxglmm.cli",
        "score",
        str(folder / "fit"),
        str(folder / "rows.parquet"),
        "--out",
    ]
    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    subprocess.run([*arguments, str(whole)], check=True, capture_output=True)
    process = subprocess.Popen([*arguments, str(broken)])
    work = tmp_path / ".broken.parquet.scoring"
    while not (work / "job.json").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*arguments, str(broken)], check=True, capture_output=True)
    assert broken.read_bytes() == whole.read_bytes()


def test_a_run_that_goes_on_trusts_no_damaged_file(history, tmp_path, monkeypatch):
    folder, _ = history
    monkeypatch.setattr(stream, "BUCKET", 700)
    whole, broken, join = tmp_path / "whole.parquet", tmp_path / "broken.parquet", stream._join
    score_file(members().state, folder / "rows.parquet", whole, chunk=512)

    def failing(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "_join", failing)
    with pytest.raises(KeyboardInterrupt):
        score_file(members().state, folder / "rows.parquet", broken, chunk=512)
    work = tmp_path / ".broken.parquet.scoring"
    for name in ("chunk-000001.arrow", "part-000000.parquet", "part-000001.parquet", "chunks.json"):
        content = (work / name).read_bytes()
        (work / name).write_bytes(content[: len(content) // 2] + b"\1" + content[len(content) // 2 + 1 :])
    monkeypatch.setattr(stream, "_join", join)
    score_file(members().state, folder / "rows.parquet", broken, chunk=512)
    assert broken.read_bytes() == whole.read_bytes()
