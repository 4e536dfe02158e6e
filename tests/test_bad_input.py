"""What bad input gets: an error that names the culprit and the remedy; on the command line, status 2 and one line."""

import gzip
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg


N = 60
ROW = np.arange(N)
_RNG = np.random.default_rng(0)
GOOD = {
    "y": _RNG.normal(size=N),
    "count": _RNG.poisson(3, N),
    "binary": _RNG.integers(0, 2, N),
    "share": _RNG.uniform(0.1, 0.9, N),
    "s": _RNG.integers(1, 9, N),
    "f": _RNG.integers(1, 9, N),
    "x": _RNG.normal(size=N),
    "ten": np.full(N, 10),
    "w": np.ones(N),
    "g": np.repeat([f"g{i}" for i in range(12)], 5),
    "arm": np.tile(["a", "b", "c"], 20),
    "label": np.array([f"t{i % 7}" for i in range(N)]),
}


@dataclass(frozen=True)
class Case:
    """`fit(formula, data, **options)` must raise `error` with both texts; `change` replaces columns of good data."""

    name: str
    culprit: str
    remedy: str
    formula: Any = "y ~ x + (1 | g)"
    change: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    error: type = jg.DataError
    data: Any = None


BINARY = {"family": "binomial"}


def at_row_7(value, column):
    return np.where(ROW == 7, value, GOOD[column])


CASES = [
    # names
    Case("unknown column", "'xx'", "Did you mean 'x'?", "y ~ xx + (1 | g)"),
    Case("unknown response", "'yy'", "Did you mean 'y'?", "yy ~ x + (1 | g)"),
    Case("unknown group", "'gg'", "Did you mean 'g'?", "y ~ x + (1 | gg)"),
    Case("unknown weights", "weights= uses 'ww'", "Did you mean 'w'?", options={"weights": "ww"}),
    Case("unknown offset", "offset= uses 'xo'", "Did you mean 'x'?", options={"offset": "xo"}),
    Case("unknown column in levels", "'armm'", "Did you mean 'arm'?", options={"levels": {"armm": ["a", "b"]}}),
    Case("misspelt family", "'binomal'", "did you mean 'binomial'?", options={"family": "binomal"}),
    Case("family of another type", "found 3", "expected one of gaussian", options={"family": 3}),
    Case("unknown method", "'lapalce'", "'auto', 'laplace', 'agq', 'joint'", options={"method": "lapalce"}),
    Case(
        "two columns of one name", "2 columns named 'x'", "rename",
        data=pd.DataFrame(GOOD).rename(columns={"w": "x"}),
    ),
    # tables
    Case("no rows", "no rows", "needs at least one", data={k: v[:0] for k, v in GOOD.items()}),
    Case("no columns", "'x'", "Columns: none", data={}),
    Case("data of another type", "type list", "expected a pandas, polars or pyarrow table", data=[1, 2]),
    Case("columns of unequal length", "'x': 3", "one value a row", change={"x": np.ones(3)}),
    # columns
    Case("missing everywhere", "'x': 60", "Leave such a column out", change={"x": np.full(N, np.nan)}),
    Case("group missing everywhere", "'g': 60", "Leave", change={"g": np.array([None] * N, object)}),
    Case("infinite column", "'x' is inf in row 7", "correct that row", change={"x": at_row_7(np.inf, "x")}),
    Case("infinite response", "'y' is -inf in row 7", "correct that row", change={"y": at_row_7(-np.inf, "y")}),
    Case("constant column", "'x' is constant", "leave it out", change={"x": np.ones(N)}),
    Case("duplicate column", "'x2'", "leave one of them out", "y ~ x + x2 + (1 | g)", {"x2": 2 * GOOD["x"]}),
    Case(
        "collinear columns", "'z' is a linear combination of 'arm[T.b]', 'arm[T.c]'", "leave one of them out",
        "y ~ x + arm + z + (1 | g)", {"z": (GOOD["arm"] != "a").astype(float)},
    ),
    Case("more columns than rows", "12 rows", "drop columns", "y ~ C(label) * C(count) + (1 | g)",
         data={k: v[:12] for k, v in GOOD.items()}),
    Case("column of lists", "'g' holds values of type list", "Convert the column", data=pd.DataFrame(GOOD).assign(
        g=pd.Series([[1, 2]] * N))),
    Case("matrix as a column", "'x' holds an array of shape (60, 2)", "Convert", change={"x": np.ones((N, 2))}),
    Case("complex column", "complex128", "Convert", change={"x": GOOD["x"] * 1j}),
    Case("dates", "'x' holds dates", "days since the start", change={"x": pd.date_range("2020", periods=N)}),
    Case("logarithm of a negative number", "'log(x)' is nan in row", "correct that row", "y ~ log(x) + (1 | g)"),
    # groups
    Case("one group", "'g' has one level only", "leave the bar out", change={"g": np.repeat("a", N)}),
    Case("groups of size one", "every level of 'g' has a single row", "a factor that groups rows", change={"g": ROW}),
    Case(
        "binary groups of size one", "every level of 'g' has a single 0/1 response", "leave the bar out",
        "binary ~ x + (1 | g)", {"g": ROW}, BINARY,
    ),
    # responses
    Case("constant response", "'y' has the same value", "check the column", change={"y": np.ones(N)}),
    Case("text response", "'label' holds labels", "family='binomial'", "label ~ x + (1 | g)"),
    Case("negative counts", "'count', row 7", "family='gaussian'", "count ~ x + (1 | g)",
         {"count": at_row_7(-2, "count")}, {"family": "poisson"}),
    Case("fractions as counts", "'share', row 0", "family='gamma'", "share ~ x + (1 | g)", {}, {"family": "poisson"}),
    Case("proportions without weights", "'share', row 0", "Pass weights=", "share ~ x + (1 | g)", {}, BINARY),
    Case("binomial out of range", "'s', row", "cbind(successes, failures)", "s ~ x + (1 | g)", {}, BINARY),
    Case("three levels", "'arm' has 3 levels", "Join levels", "arm ~ x + (1 | g)", {}, BINARY),
    Case("one level", "'one' has 1 level", "expected two", "one ~ x + (1 | g)", {"one": np.repeat("a", N)}, BINARY),
    Case("negative cbind", "'s' in 'cbind(s, f)' is -1 in row 7", "counts are at least 0",
         "cbind(s, f) ~ x + (1 | g)", {"s": at_row_7(-1, "s")}, BINARY),
    Case("cbind of fractions", "'cbind(share, f)', row 0", "whole", "cbind(share, f) ~ x + (1 | g)", {}, BINARY),
    Case("cbind of three", "3 arguments", "cbind(successes, failures)", "cbind(s, f, ten) ~ x + (1 | g)", {}, BINARY,
         jg.FormulaError),
    Case("cbind of another family", "'cbind(s, f)' gives counts", "family='binomial'", "cbind(s, f) ~ x + (1 | g)"),
    Case("trials not whole", "10.5 * 0.5", "whole numbers of trials", "half ~ x + (1 | g)", {"half": np.full(N, 0.5)},
         {**BINARY, "weights": np.full(N, 10.5)}),
    Case("successes not whole", "'share', row 0", "their product with the proportion must be whole",
         "share ~ x + (1 | g)", {}, {**BINARY, "weights": "ten"}),
    Case("gamma with zeros", "found 0, but a gamma response must be greater than 0", "Model zeros apart",
         "zero ~ x + (1 | g)", {"zero": at_row_7(0, "s")}, {"family": "gamma"}),
    Case("beta with a one", "found 1, but a beta response", "family='binomial'", "one ~ x + (1 | g)",
         {"one": at_row_7(1, "share")}, {"family": "beta"}),
    # weights and offset
    Case("weights of another length", "weights has shape (3,)", "one number for each row",
         options={"weights": np.ones(3)}),
    Case("negative weights", "weights is -1 in row 7", "at least 0", options={"weights": at_row_7(-1, "w")}),
    Case("missing weights", "weights is missing in row 7", "fill it in", options={"weights": at_row_7(np.nan, "w")}),
    Case("infinite weights", "'weights' is inf in row 7", "correct that row",
         options={"weights": at_row_7(np.inf, "w")}),
    Case("weights all zero", "weights is 0 in every row", "at least one row must count",
         options={"weights": np.zeros(N)}),
    Case("text weights", "weights='label' is a column of text", "expected numbers", options={"weights": "label"}),
    Case("text offset", "offset='label' is a column of text", "expected numbers", options={"offset": "label"}),
    Case("offset of another length", "offset has shape (4,)", "one number for each row",
         options={"offset": np.ones(4)}),
    # formulas
    Case("no tilde", "has no '~'", "expected one, as in", "y + x + (1 | g)", error=jg.FormulaError),
    Case("two tildes", "has 2 '~'", "expected one", "y ~ x ~ (1 | g)", error=jg.FormulaError),
    Case("empty formula", "the formula ''", "as in 'y ~ x + (1 | g)'", "", error=jg.FormulaError),
    Case("formula of another type", "type int", "expected text", 3, error=jg.FormulaError),
    Case("no response", "no response", "write it as 'y ~ ...'", "~ x + (1 | g)"),
    Case("open parenthesis", "'(' is never closed", "y ~ x + (1 | g", "y ~ x + (1 | g", error=jg.FormulaError),
    Case("nothing left of a bar", "'( | g)'", "as in (1 | g)", "y ~ x + ( | g)", error=jg.FormulaError),
    Case("nothing right of a bar", "'(1 | )'", "as in (1 | g)", "y ~ x + (1 | )", error=jg.FormulaError),
    Case("a row's number where others are dropped", "row 5 (counting from 0): found 7", "0, 1 or a proportion",
         "binary ~ x + (1 | g)",
         {"x": np.append(np.nan, GOOD["x"][1:]), "binary": np.where(np.arange(len(GOOD["x"])) == 5, 7, GOOD["binary"])},
         BINARY),
    Case("bar without parentheses", "'1 | g'", "(effects | group)", "y ~ x + 1 | g", error=jg.FormulaError),
    Case("bar without an effect", "the bars of 'g' give no effect", "(1 | g)", "y ~ x + (0 | g)",
         error=jg.FormulaError),
    Case("an effect twice", "'Intercept' twice", "(0 + x | g)", "y ~ x + (1 | g) + (1 | g)", error=jg.FormulaError),
    Case("unknown function", "'frobnicate'", "Known: C,", "y ~ frobnicate(x) + (1 | g)", error=jg.FormulaError),
    # options
    Case("no node", "found 0", "at least 1", "binary ~ x + (1 | g)", {}, {**BINARY, "n_agq": 0}),
    Case("half a node", "found 2.5", "whole number", "binary ~ x + (1 | g)", {}, {**BINARY, "n_agq": 2.5}),
    Case("far too many nodes", "5000", "500", "binary ~ x + (1 | g)", {}, {**BINARY, "n_agq": 5000}),
    Case("nodes for Laplace", "n_agq=5", "method='agq'", "binary ~ x + (1 | g)", {},
         {**BINARY, "n_agq": 5, "method": "laplace"}),
    Case("REML of a binomial", "reml=True", "gaussian", "binary ~ x + (1 | g)", {}, {**BINARY, "reml": True}),
    Case("joint without theta", "method='joint'", "pass theta=", "binary ~ x + (1 | g)", {},
         {**BINARY, "method": "joint"}),
    Case("theta no mapping", "found 3", "{group: sd}", options={"theta": 3}),
    Case("theta of another group", "{'h': 1.0}", "the formula has 'g'", options={"theta": {"h": 1.0}}),
    Case("negative theta", "found -1.0", "non-negative", options={"theta": {"g": -1.0}}),
    Case("theta of text", "found 'a'", "non-negative", options={"theta": {"g": "a"}}),
    Case("theta of another size", "found [1.0, 2.0]", "1 non-negative", options={"theta": {"g": [1.0, 2.0]}}),
    Case("levels lack one", "levels['arm'] lacks 'c'", "list every level", "y ~ arm + (1 | g)",
         options={"levels": {"arm": ["a", "b"]}}),
    Case("a level twice", "levels['arm'] lists a level twice", "['a', 'b', 'b', 'c']", "y ~ arm + (1 | g)",
         options={"levels": {"arm": ["a", "b", "b", "c"]}}),
    Case("levels as a word", "'categoric'", "or 'categorical'", "y ~ arm + (1 | g)",
         options={"levels": {"arm": "categoric"}}),
    Case("precision", "'half'", "'double'", options={"precision": "half"}),
    Case("penalty", "penalty must be", "jg.Lasso", options={"penalty": 1.0}),
    Case("one factor under two names", "'g' and 'h' are the same groups", "leave one of the bars out",
         "y ~ x + (1 | g) + (1 | h)", {"h": [f"h{v}" for v in GOOD["g"]]}),
    # infinite estimates
    Case("separation by a number", "'x'", "drop or merge", "event ~ x + (1 | g)",
         {"event": (GOOD["x"] > 0).astype(int)}, BINARY, jg.SeparationError),
    Case("separation by a level", "'arm[T.c]'", "drop or merge", "event ~ arm + (1 | g)",
         {"event": np.where(GOOD["arm"] == "c", 1, GOOD["binary"])}, BINARY, jg.SeparationError),
]  # fmt: skip


def test_the_table_is_long_enough():
    assert len({case.name for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_fit_names_culprit_and_remedy(case):
    data = {**GOOD, **case.change} if case.data is None else case.data
    with pytest.raises(case.error) as error:
        jg.fit(case.formula, data, **case.options)
    message = str(error.value)
    assert case.culprit in message, message
    assert case.remedy in message, message


# --- Files -------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """A folder of bad files."""
    table = pd.DataFrame(GOOD)
    table.to_csv(tmp_path / "good.csv", index=False)
    packed = gzip.compress((tmp_path / "good.csv").read_bytes())
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "plain.csv.gz").write_bytes(b"not gzip")
    table.to_parquet(tmp_path / "good.parquet")
    content = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("y,x,g\n")
    (tmp_path / "book.xlsx").write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "culprit", "remedy"),
    [
        ("none.csv", "there is no file", "check the path"),
        (".", "is a directory", "expected a .csv"),
        ("book.xlsx", "book.xlsx", "expected .csv"),
        ("empty.csv", "empty.csv' is empty", "header line"),
        ("header.csv", "no rows", "needs at least one"),
        ("cut.csv.gz", "cut.csv.gz' is damaged", "fetch the file again"),
        ("plain.csv.gz", "plain.csv.gz' is damaged", "fetch the file again"),
        ("cut.parquet", "cut.parquet' is damaged", "fetch the file again"),
    ],
)
def test_a_bad_file_is_named(files, name, culprit, remedy):
    with pytest.raises(jg.DataError) as error:
        jg.fit("y ~ x + (1 | g)", files / name)
    assert culprit in str(error.value) and remedy in str(error.value), str(error.value)


# --- A fitted model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    return jg.fit("y ~ arm + x + (1 | g)", GOOD)


NEW = {name: values[:3] for name, values in GOOD.items()}


@pytest.mark.parametrize(
    ("change", "options", "culprit", "remedy"),
    [
        ({"arm": np.array(["a", "z", "b"])}, {}, "'arm' has the level 'z'", "Drop those rows or recode"),
        ({"g": np.array(["g0", "zz", "g1"])}, {"new_levels": "error"}, "'zz', first in row 1", "'integrate'"),
        ({"arm": None}, {}, "'arm'", "Columns: "),
        ({"x": np.array(["a", "b", "c"])}, {}, "'x' holds text", "fitted to numbers"),
        ({"x": np.array([1, np.inf, 2])}, {}, "'x' is inf in row 1", "correct that row"),
        ({}, {"kind": "respnse"}, "'respnse'", "'response', 'link'"),
        ({}, {"effects": "fixed"}, "'fixed'", "'population'"),
        ({}, {"new_levels": "ignore"}, "'ignore'", "'integrate'"),
        ({}, {"interval": 90}, "interval must be", "such as 0.95; found 90"),
    ],
)
def test_predict_names_culprit_and_remedy(fitted, change, options, culprit, remedy):
    new = {name: values for name, values in {**NEW, **change}.items() if values is not None}
    with pytest.raises(jg.DataError) as error:
        fitted.predict(new, **options)
    assert culprit in str(error.value) and remedy in str(error.value), str(error.value)


def _without_end(folder):
    content = (folder / "arrays.npz").read_bytes()
    (folder / "arrays.npz").write_bytes(content[: len(content) // 2])


def _later(folder):
    saved = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**saved, "version": 99}))


@pytest.mark.parametrize(
    ("damage", "culprit", "remedy"),
    [
        (shutil.rmtree, "no such folder", "expected a folder written by Fit.save"),
        (lambda folder: (folder / "model.json").unlink(), "no model.json", "expected a folder written by Fit.save"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json", "written by Fit.save"),
        (lambda folder: (folder / "arrays.npz").unlink(), "damaged", "save it again"),
        (_without_end, "damaged", "save it again"),
        (_later, "version 99", "update jaxglmm"),
    ],
    ids=["gone", "no-json", "cut-json", "no-arrays", "cut-arrays", "later-version"],
)
def test_load_names_culprit_and_remedy(fitted, tmp_path, damage, culprit, remedy):
    folder = tmp_path / "model"
    fitted.save(folder)
    damage(folder)
    with pytest.raises(jg.DataError) as error:
        jg.load(folder)
    message = str(error.value)
    assert str(folder) in message and culprit in message and remedy in message, message


def test_save_does_not_touch_what_is_not_its_own(fitted, files):
    for path, remedy in ((files, "choose another path"), (files / "good.csv" / "model", "choose a writable folder")):
        with pytest.raises(jg.DataError, match=remedy) as error:
            fitted.save(path)
        assert str(path) in str(error.value)
    assert (files / "good.csv").is_file()


def test_a_loaded_fit_says_what_it_lacks(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = jg.load(tmp_path / "model")
    for method in (loaded.residuals, loaded.simulate, loaded.predict):
        with pytest.raises(jg.DataError, match=r"needs the rows of the fit.*fit again"):
            method()


# --- The command line --------------------------------------------------------------------------------------

FORMULA = "y ~ x + (1 | g)"


@pytest.mark.parametrize(
    ("arguments", "culprit", "remedy"),
    [
        (["fit", "y ~ xx + (1 | g)", "good.csv"], "'xx'", "Did you mean 'x'?"),
        (["fit", "y ~ x + (1 | g", "good.csv"], "'(' is never closed", "y ~ x + (1 | g"),
        (["fit", FORMULA, "none.csv"], "none.csv", "check the path"),
        (["fit", FORMULA, "good.csv", "--family", "gausian"], "'gausian'", "did you mean 'gaussian'?"),
        (["fit", FORMULA, "good.csv", "--link", "logit"], "'logit'", "'identity'"),
        (["fit", FORMULA, "good.csv", "--out", "good.csv/fit"], "good.csv/fit", "choose a writable folder"),
        (["fit", FORMULA, "good.csv", "--out", "good.csv"], "good.csv", "choose another path"),
        (["fit", FORMULA, "good.csv", "--nodes", "many"], "--nodes", "--help"),
        (["fit", FORMULA, "good.csv", "--levels", "arm"], "'arm'", "COLUMN=LEVEL,LEVEL"),
        (["fit", FORMULA, "good.csv", "--theta", "g=big"], "'g=big'", "GROUP=SD"),
        (["predict", "nowhere", "good.csv"], "nowhere", "written by Fit.save"),
        (["predict", "nowhere", "good.csv", "--out", "a.txt"], "a.txt", ".csv or .parquet"),
        (["fti"], "fti", "--help"),
    ],
)
def test_the_command_line_says_it_in_one_line(files, capsys, monkeypatch, arguments, culprit, remedy):
    from jaxglmm.cli import main

    monkeypatch.chdir(files)
    before = sorted(files.rglob("*"))
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse's
        status = stop.code
    said = capsys.readouterr()
    assert status == 2 and said.out == ""
    assert said.err.startswith("jaxglmm: ") and said.err.count("\n") == 1, said.err
    assert culprit in said.err and remedy in said.err, said.err
    assert sorted(files.rglob("*")) == before  # nothing is left behind


def test_the_status_of_the_process_is_2(files):
    command = [sys.executable, "-m", "jaxglmm.cli", "fit", FORMULA, "none.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=files, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


# --- Formulas without end ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("y ~ " + "(" * 1000 + "x" + ")" * 1000, "more than 40 brackets"),
        ("y ~ " + "(" * 1000 + "1 | g" + ")" * 1000, "more than 40 brackets"),
        ("y ~ I(" + "(" * 1000 + "x" + ")" * 1001, "more than 40 brackets"),
        ("y ~ " + "exp(" * 200 + "x" + ")" * 200, "more than 40 brackets"),
        ("(" * 800 + "y" + ")" * 800 + " ~ x", "more than 40 brackets"),
        ("y ~ x + (1 | " + "(" * 800 + "g" + ")" * 801, "more than 40 brackets"),
        ("y ~ " + "-" * 2000 + "x", "more than 20 signs"),
        ("y ~ I(" + "-" * 2000 + "x)", "more than 20 signs"),
        ("y ~ I(" + "+".join(["x"] * 3000) + ")", "more than 200 operators"),
        ("y ~ " + "*".join(f"x{i}" for i in range(20)), "stands for more than a million terms"),
        ("y ~ (" + " + ".join(f"x{i}" for i in range(20)) + ")**10", "stands for 616,665 terms"),
        ("y ~ x + (1 | " + "/".join(["g"] * 500) + ")", "names 'g' twice"),
        ("y ~ " + "x" * 300_000, "300,004 characters"),
    ],
    ids=range(13),
)
def test_a_formula_without_end_is_refused_at_once(formula, said):
    began = time.perf_counter()
    with pytest.raises(jg.FormulaError, match=said):
        jg.fit(formula, GOOD)
    assert time.perf_counter() - began < 5
