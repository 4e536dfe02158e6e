"""Every verb reads rows alike: what is wrong with a file is one error that names it, from Python and in the shell."""

import gzip

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg
from jaxglmm.cli import main


RNG = np.random.default_rng(3)
N, G = 120, 15
GROUP = RNG.integers(0, G, N) + 100
DATA = pd.DataFrame({"x": RNG.normal(size=N), "g": GROUP})
DATA.insert(0, "y", RNG.normal(size=200)[GROUP - 100] + 0.5 * DATA["x"] + RNG.normal(size=N))
LINES = DATA.to_csv(index=False).splitlines()
TEXT = ("\n".join(LINES) + "\n").encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "fit"
    jg.fit("y ~ x + (1 | g)", DATA).save(folder)
    return folder


def with_line(line: bytes) -> bytes:
    lines = TEXT.splitlines()
    return b"\n".join([*lines[:40], line, *lines[40:]]) + b"\n"


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


ZIPPED = gzip.compress(TEXT)
BAD = {
    "write.table.csv": ("\n".join([LINES[0], *(f'"{i}",{v}' for i, v in enumerate(LINES[1:], 1))]).encode(),
                        "4 fields in line 2, and its header names 3 columns.* row names"),
    "long.csv": (with_line(b"1,2,101,9"), "4 fields in line 41"),
    "short.csv": (with_line(b"1,2"), "2 fields in line 41"),
    "quote.csv": (with_line(b'1,2,"101'), "line 41, or behind it, is never closed"),
    "latin.csv": (with_line("1,2,caf\u00e9".encode("latin-1")), "not UTF-8 text in line 41"),
    "utf-16.csv": (TEXT.decode().encode("utf-16"), "not UTF-8"),
    "nul.csv": (with_line(b"1,2,10\x001"), "NUL byte"),
    "cut.csv.gz": (ZIPPED[: len(ZIPPED) // 2], "damaged or cut short"),
    "cut at the end.csv.gz": (ZIPPED[:-3], "damaged or cut short"),
    "flipped.csv.gz": (flipped(ZIPPED, len(ZIPPED) // 2), "damaged or cut short"),
    "checksum.csv.gz": (flipped(ZIPPED, len(ZIPPED) - 6), "damaged or cut short"),
    "no gzip.csv.gz": (TEXT, "damaged or cut short"),
    "empty.csv": (b"", "is empty"),
    "twice.csv": (TEXT.replace(b"y,x,g", b"x,x,g"), "no column 'y'|which is not a column|2 columns named 'x'"),
    "other.csv": (TEXT.replace(b"y,x,g", b"y,z,g"), "'x'.* not a column"),
    "cut.parquet": (b"PAR1" + TEXT + b"PAR1", "damaged, cut short"),
    "none.parquet": (b"", "damaged, cut short"),
    "a.xlsx": (b"PK", "ending that is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file_is_said_by_every_verb(model, tmp_path, capsys, name):
    content, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    fit, out = jg.load(model), tmp_path / "out.csv"
    verbs = {
        "fit": lambda: jg.fit("y ~ x + (1 | g)", path), "score": lambda: fit.score(path),
        "predict": lambda: fit.predict(path), "rank": lambda: fit.rank(data=path), "update": lambda: fit.update(path),
        "score(out=)": lambda: fit.score(path, out=out), "fit_each": lambda: jg.fit_each("y ~ x", path, by="g"),
    }  # fmt: skip
    for verb, call in verbs.items():
        if verb == "predict" and name == "twice.csv":  # which needs no y
            continue
        with pytest.raises(jg.DataError, match=message) as found:
            call()
        assert name in str(found.value), (verb, str(found.value))
    for arguments in (
        ["fit", "y ~ x + (1 | g)", str(path), "--json"], ["score", str(model), str(path), "--out", str(out)],
        ["predict", str(model), str(path), "--out", str(out)], ["rank", str(model), str(path), "--out", str(out)],
    ):  # fmt: skip
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and name in captured.err
    assert [entry.name for entry in tmp_path.iterdir()] == [name]  # neither a result nor an intermediate folder


def test_a_fault_far_behind_the_first_rows_is_found_in_parts(model, tmp_path):
    from jaxglmm.fitted.stream import score_file

    path = tmp_path / "a.csv"
    path.write_bytes(TEXT + b"1,2\n")
    with pytest.raises(jg.DataError, match=f"2 fields in line {N + 2}"):
        score_file(jg.load(model).state, path, tmp_path / "out.csv", chunk=7)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.csv"]


def test_what_was_done_before_a_full_disk_is_not_done_again(model, tmp_path, monkeypatch):
    from jaxglmm.fitted import stream

    (tmp_path / "a.csv").write_bytes(TEXT)
    state, real, written = jg.load(model).state, stream._to_arrow, []

    def full(table, path):
        if len(written) == 3:
            written.append("full")
            raise OSError(28, "No space left on device")
        written.append(path.name)
        real(table, path)

    monkeypatch.setattr(stream, "_to_arrow", full)
    with pytest.raises(jg.DataError, match=r"cannot write .* No space left on device"):
        stream.score_file(state, tmp_path / "a.csv", tmp_path / "out.csv", chunk=20)
    stream.score_file(state, tmp_path / "a.csv", tmp_path / "out.csv", chunk=20)
    assert len(written) == len(set(written)) == 1 + N // 20
    found = pd.read_csv(tmp_path / "out.csv")
    pd.testing.assert_frame_equal(found, jg.load(model).score(tmp_path / "a.csv"), rtol=1e-12, check_dtype=False)


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "parquet"])
def test_a_file_in_parts_gives_what_it_gives_at_once(tmp_path, ending):
    """Quoted fields with separators and line ends, blank lines, missing values, factors that look like numbers."""
    from jaxglmm.formula.table import open_table

    data = DATA.assign(f=np.where(np.arange(N) % 3 == 0, "01", "two,\nlines"), k=np.arange(N) % 2)
    data["w"] = pd.array([None if i % 10 == 4 else 1 + i % 3 for i in range(N)], "Int64")
    data.loc[5, "g"] = None
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        data.to_parquet(path, index=False)
    else:
        separator = "\t" if ending == "tsv" else ","
        text = data.to_csv(index=False, sep=separator).replace("two,\nlines", '"two,\nlines"' if ending == "tsv" else
                                                               "two,\nlines")  # fmt: skip
        text = text.replace('""two,\nlines""', '"two,\nlines"') + "\n  \n"
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    fit = jg.fit("y ~ x + f + factor(k) + (1 | g)", path, weights="w")
    memory = jg.fit("y ~ x + f + factor(k) + (1 | g)", data, weights="w")
    assert fit.names == memory.names and fit.loglik == memory.loglik and fit.n_dropped == memory.n_dropped > 1
    columns = fit.state.spec.columns(response=True)
    whole = open_table(path).holding(*columns)
    parts = list(open_table(path).chunks(*columns, 7))
    assert [part.rows for part in parts] == [7] * (N // 7) + [N % 7] * (N % 7 > 0)
    y, _ = fit.state.spec.response_values(whole)
    pieces = [fit.state.spec.response_values(part)[0] for part in parts]
    np.testing.assert_array_equal(np.concatenate(pieces), y)
    at_once = fit.score(path)
    fit.score(path, out=tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet"), at_once, rtol=1e-12)
    assert at_once["n"].sum() == fit.n  # rows without a weight count nowhere


def test_a_weight_that_is_missing_counts_nowhere():
    """As where the row is not there; never as weight 0, never as the value under a mask."""
    weights = np.where(np.arange(N) % 7 == 3, -1.0, 1.0 + np.arange(N) % 2)
    kept = weights > 0
    some = [w if w > 0 else None for w in weights.tolist()]
    expected = jg.fit("y ~ x + (1 | g)", DATA[kept], weights=weights[kept])
    for missing in (
        pd.array(some, "Int64"), pd.array(some, "Float64"),
        np.where(kept, weights, np.nan), np.ma.array(weights, mask=~kept),
    ):  # fmt: skip
        columns = {name: DATA[name].to_numpy() for name in DATA} | {"w": missing}
        fit = jg.fit("y ~ x + (1 | g)", columns, weights="w")
        assert (fit.n, fit.n_dropped, fit.bic) == (kept.sum(), (~kept).sum(), expected.bic)
        assert fit.loglik == expected.loglik
        scored, reference = fit.score(columns), expected.ranef()
        assert np.asarray(scored["n"]).tolist() == reference["n"].tolist()
        np.testing.assert_allclose(np.asarray(scored["estimate"]), reference["estimate"], rtol=1e-7, atol=1e-12)
        assert fit.update(columns).n == 2 * fit.n


def test_predicting_a_parquet_file_keeps_whole_numbers_beside_a_gap(model, tmp_path, capsys):
    ids = pd.array([2**60 + 1, None, 2**60 + 3], "Int64")
    pd.DataFrame({"x": [0.0, 1, 2], "g": [101, 102, 103], "customer": ids}).to_parquet(tmp_path / "a.parquet")
    assert main(["predict", str(model), str(tmp_path / "a.parquet")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[2] for line in lines[1:]] == [str(2**60 + 1), "", str(2**60 + 3)]


@pytest.mark.parametrize("effects", ["marginal", "population"])
def test_effects_of_no_group_need_none(effects):
    fit = jg.fit("y ~ x + (1 + x | g)", DATA.assign(y=(DATA["y"] > 0).astype(float)), family="binomial")
    new = pd.DataFrame({"x": [0.0, 1.0, np.nan, -2.0]})
    expected = fit.predict(new.assign(g=[101, 999, 101, 103]), effects=effects)
    assert np.isnan(expected).tolist() == [False, False, True, False]
    for table in (new, new.assign(g=[101, None, 101, None]), new.assign(g=["any", None, "text", ""])):
        np.testing.assert_array_equal(fit.predict(table, effects=effects), expected)
        for kind in ("link", "response"):
            ends = fit.predict(table, effects=effects, kind=kind, interval=0.9)
            known = fit.predict(new.assign(g=[101, 999, 101, 103]), effects=effects, kind=kind, interval=0.9)
            pd.testing.assert_frame_equal(ends, known)
    if effects == "marginal":  # E expit(eta + b), b ~ N(0, x'Sigma x), by quadrature of its own
        beta, sigma = np.array(list(fit.fixef.values())), fit.state.column_covariances[0]
        points = np.linspace(-12, 12, 4001)
        weights = np.exp(-0.5 * points**2)
        for x, value in zip(new["x"], expected, strict=True):
            row = np.array([1.0, x])
            mu = 1 / (1 + np.exp(-(row @ beta + np.sqrt(row @ sigma @ row) * points)))
            assert np.isnan(x) or abs(value - mu @ weights / weights.sum()) < 1e-9
    else:
        several = jg.fit("y ~ x + (x | g) + (1 | h)", DATA.assign(h=np.arange(N) % 9))
        np.testing.assert_allclose(
            several.predict(new, effects="population"), np.column_stack([np.ones(4), new["x"]]) @ list(
                several.fixef.values())
        )  # fmt: skip
        np.testing.assert_array_equal(several.predict(new, effects="marginal"), several.predict(new, effects=effects))
    with pytest.raises(jg.DataError, match="'g', which is not a column"):
        fit.predict(new)
    assert len(fit.marginal_coefficients(new.assign(x=[0.0, 1, 2, 3]))) == 2


NAMED = DATA.rename(columns={"x": "b-foo", "g": "my id"}).assign(**{"Sprout Length": DATA["x"] + 1, "y": DATA["y"]})


@pytest.mark.parametrize(
    ("formula", "name"),
    [
        ("y ~ b-foo", "b-foo"), ("y ~ Sprout Length", "Sprout Length"), ("y ~ 1 + (1 | my id)", "my id"),
        ("Sprout Length ~ 1", "Sprout Length"), ("y ~ log(Sprout Length)", "Sprout Length"),
        ("y ~ 1 + (0 + b-foo | y)", "b-foo"), ("y ~ 1 + (1 | y:my id)", "my id"), ("y ~ 1 + (1 | y/my id)", "my id"),
        ("y ~ 1 + offset(Sprout Length)", "Sprout Length"), ("y ~ 1 + (b-foo || y)", "b-foo"),
    ],
)  # fmt: skip
def test_names_that_need_backticks_are_told(formula, name):
    with pytest.raises(jg.FormulaError, match=f"'{name}' needs backticks.* `{name}`"):
        jg.fit(formula, NAMED)


def test_a_column_is_not_taken_for_a_term_less_another():
    data = NAMED.assign(b=DATA["x"])
    with pytest.raises(jg.FormulaError, match="'b-foo' needs backticks"):
        jg.fit("y ~ b-foo", data)
    assert jg.fit("y ~ b - foo", data.assign(foo=1.0)).names == ("Intercept", "b")  # both are columns


def test_quoted_names():
    expected = jg.fit("y ~ x + (x | g)", DATA)
    for quoted in ("`{}`", "Q('{}')", 'Q("{}")', "Q( '{}' )"):
        a, b, c = (quoted.format(name) for name in ("b-foo", "my id", "Sprout Length"))
        fit = jg.fit(f"y ~ {a} + ({a} | {b})", NAMED)
        assert fit.names == ("Intercept", "b-foo") and fit.groups == {"my id": G}
        assert fit.loglik == expected.loglik
        assert fit.predict(NAMED).tobytes() == expected.predict(DATA).tobytes()
        squared = jg.fit(f"{c} ~ I({a}^2) + offset(y)", NAMED)
        assert squared.names[1].startswith("I(") and "b-foo" in squared.names[1]
    with pytest.raises(jg.FormulaError, match="backtick in its name"):
        jg.fit("y ~ Q('a`b')", NAMED)
