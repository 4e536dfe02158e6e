"""Identifiers of every type, from every kind of table, to the last digit: no two become one, none is renamed."""

import datetime
import decimal
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jaxglmm as jg
from jaxglmm.formula.columns import read_column
from jaxglmm.formula.levels import factorize, match
from jaxglmm.formula.saved import spec_from_json, spec_to_json
from jaxglmm.formula.spelling import kinds_of, typed


GROUPS, ROWS = 8, 4
RNG = np.random.default_rng(5)
ID = np.repeat(np.arange(GROUPS), ROWS)
X = RNG.normal(size=GROUPS * ROWS)
Y = RNG.normal(size=GROUPS)[ID] + 0.5 * X + 0.4 * RNG.normal(size=len(X))

# What the labels of a fit are, where they are not the identifiers themselves.
IDENTIFIERS = {
    "int64": [2**62 + i for i in range(GROUPS)],
    "negative": [-(2**63) + i for i in range(GROUPS)],
    "uint64": [2**64 - 1 - i for i in range(GROUPS)],
    "uint64 from 0": [0, 1, 2, *(2**63 + i for i in range(GROUPS - 3))],
    "beyond 64 bits": [10**20 + i for i in range(GROUPS)],
    "below and beyond": [-1, *(2**63 + i for i in range(GROUPS - 1))],
    "decimals": [decimal.Decimal(10**17 + i) for i in range(GROUPS)],
    "long decimals": [decimal.Decimal(10**25 + i) for i in range(GROUPS)],
    "fractions": [decimal.Decimal(10**17 + i) / 8 for i in range(GROUPS)],
    "floats": [0.1 * (i + 1) for i in range(GROUPS)],
    "whole floats": [float(2**52 + i) for i in range(GROUPS)],
    "leading zeros": ["00501", "501", "0501", "+501", "-501", "5.01", "5.010", "50"],
    "like numbers": ["1e5", "10e4", "0x10", "1_0", " 7", "7", "inf", "nan "],
    "uuid": [f"3e5{i:05d}-12d3-0000" for i in range(GROUPS)],
    "dates": [datetime.date(2024, 1, 1 + i) for i in range(GROUPS)],
    "times": [datetime.datetime(2024, 1, 1, i) for i in range(GROUPS)],
    "large categories": pd.Categorical(np.array([2**64 - 1 - i for i in range(GROUPS)], np.uint64)),
}


def column(kind):
    values = IDENTIFIERS[kind]
    if isinstance(values, pd.Categorical):
        return pd.Series(values[ID])
    return pd.Series([values[i] for i in ID], dtype=np.uint64 if kind.startswith("uint64") else None)


def as_kind(kind, table, folder):
    """The table as `table` says; None where it has no such type."""
    ids = column(kind)
    frame = pd.DataFrame({"y": Y, "x": X, "id": ids})
    if table == "pandas":
        return frame
    if table == "dict":
        return {"y": Y, "x": X, "id": ids.tolist()}
    if table == "csv":
        frame.to_csv(folder / "a.csv", index=False)
        return folder / "a.csv"
    if kind in ("beyond 64 bits", "below and beyond"):  # Arrow has no such integers
        return None
    arrow = pa.table({"y": Y, "x": X, "id": pa.array(ids, from_pandas=True)})
    if table == "polars":
        polars = pytest.importorskip("polars")
        return polars.from_arrow(arrow)
    if table == "arrow":
        return arrow
    pq.write_table(arrow, folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("table", ["pandas", "dict", "polars", "arrow", "parquet", "csv"])
def test_levels_are_the_identifiers(table, tmp_path):
    for kind in IDENTIFIERS:
        data = as_kind(kind, table, tmp_path)
        if data is None:
            continue
        frame = _frame(data)
        term = frame.terms[0]
        assert len(term.levels) == GROUPS, (kind, term.levels)
        first = [str(term.levels[term.codes[i * ROWS]]) for i in range(GROUPS)]
        expected = column(kind).tolist()[::ROWS]
        if kind in ("dates", "times"):
            assert [pd.Timestamp(v) for v in first] == [pd.Timestamp(v) for v in expected]
        elif kind == "whole floats":
            assert first == [str(int(v)) for v in expected]
        elif kind == "fractions":
            assert [decimal.Decimal(v) for v in first] == expected
        else:
            assert first == [str(v) for v in expected], kind
        # New data, through the specification as it is saved.
        arrays: dict[str, np.ndarray] = {}
        spec = spec_from_json(json.loads(json.dumps(spec_to_json(frame.spec, arrays))), arrays)
        assert (spec.effect_matrix(0, data)[2] == term.codes).all(), kind


def _frame(data):
    from jaxglmm.formula.frame import model_frame
    from jaxglmm.model.families import get_family

    return model_frame("y ~ (1 | id)", data, family=get_family("gaussian"))


@pytest.mark.parametrize("kind", ["uint64", "beyond 64 bits", "leading zeros", "fractions", "times"])
@pytest.mark.parametrize("table", ["pandas", "csv"])
def test_round_trips(kind, table, tmp_path):
    data = as_kind(kind, table, tmp_path)
    fit = jg.fit("y ~ x + (1 | id)", data)
    fit.save(tmp_path / "fit")
    loaded = jg.load(tmp_path / "fit")
    levels = fit.ranef()["level"].tolist()
    assert loaded.ranef()["level"].tolist() == levels and len(set(levels)) == GROUPS
    assert loaded.predict(data).tobytes() == fit.predict(data).tobytes()
    np.testing.assert_allclose(fit.predict(data), fit.predict(), rtol=1e-12)
    scored = loaded.score(data)
    assert sorted(map(str, scored["level"])) == sorted(map(str, levels))
    assert set(map(str, loaded.rank(data=data)["level"])) == set(map(str, levels))
    updated = loaded.update(data)
    assert updated.groups == {"id": GROUPS} and (updated.ranef()["n"] == 2 * ROWS).all()


def test_a_file_of_ids_with_a_gap_keeps_every_digit(tmp_path):
    """16 digits and one blank: as floats 20 members would be 11."""
    ids = [9007199254740993 + i for i in range(20)]
    lines = [f"{Y[i]},{ids[i % 20]}" for i in range(len(Y))]
    (tmp_path / "a.csv").write_text("\n".join(["y,id", *lines, "0.5,"]) + "\n")
    fit = jg.fit("y ~ 1 + (1 | id)", tmp_path / "a.csv")
    assert fit.ranef()["level"].tolist() == ids and fit.n_dropped == 1
    fit.save(tmp_path / "fit")
    for out in ("s.parquet", "s.csv"):
        jg.load(tmp_path / "fit").score(tmp_path / "a.csv", out=tmp_path / out)
        found = pd.read_parquet(tmp_path / out) if out.endswith("t") else pd.read_csv(tmp_path / out)
        assert found["level"].tolist() == ids
    gaps = pd.DataFrame({"y": [*Y, 0.5], "id": pd.array([*(ids[i % 20] for i in range(len(Y))), None], "Int64")})
    assert jg.fit("y ~ 1 + (1 | id)", gaps).ranef()["level"].tolist() == ids
    gaps.to_parquet(tmp_path / "a.parquet")
    assert jg.fit("y ~ 1 + (1 | id)", tmp_path / "a.parquet").ranef()["level"].tolist() == ids


@pytest.mark.parametrize("quote", ["", '"'])
def test_leading_zeros_of_a_file_stay(tmp_path, quote):
    zips = ["00501", "501", "02139", "10001"]
    rows = [f"{Y[i]},{X[i]},{quote}{zips[i % 4]}{quote},{'01' if i % 8 < 4 else '2'}" for i in range(len(Y))]
    (tmp_path / "a.csv").write_text("\n".join(["y,x,zip,month", *rows]) + "\n")
    frame = pd.DataFrame({"y": Y, "x": X, "zip": [zips[i % 4] for i in range(len(Y))]})
    frame["month"] = np.where(np.arange(len(Y)) % 8 < 4, 1, 2)

    def same(formula, levels=None):
        file = jg.fit(formula, tmp_path / "a.csv", levels=levels)
        memory = jg.fit(formula, frame, levels=levels)
        assert file.names == memory.names and file.loglik == memory.loglik
        assert file.predict(tmp_path / "a.csv").tobytes() == file.predict(frame).tobytes()
        return file

    assert same("y ~ x + (1 | zip)").ranef()["level"].tolist() == ["00501", "501", "02139", "10001"]
    assert same("y ~ zip", levels={"zip": "categorical"}).names[1:] == ("zip[T.501]", "zip[T.02139]", "zip[T.10001]")
    assert same("y ~ factor(zip)").names[1] == "factor(zip)[T.501]"
    assert same("y ~ x + (1 | zip)", levels={"zip": ["10001", "02139", "00501", "501"]}).groups == {"zip": 4}
    # A column may be a number in one place, and group rows by its text in another.
    assert same("y ~ month").names == ("Intercept", "month")
    both = jg.fit("y ~ month + (1 | zip) + (1 | zip:month)", tmp_path / "a.csv")
    assert both.names == ("Intercept", "month") and "501:01" in both.ranef("zip:month")["level"].tolist()
    table = jg.fit_each("y ~ x", tmp_path / "a.csv", by="zip").table()
    assert set(table["zip" if "zip" in table else table.columns[0]]) == set(zips)


def test_a_number_finds_its_own_text_only():
    text = lambda *values: read_column("id", np.array(values, object))
    levels = factorize(text("501", "A7"))[1]
    assert match(read_column("id", np.array([501, 7])), levels).tolist() == [0, -1]
    with pytest.raises(jg.DataError, match=r"holds 501, and the model was fitted to '00501' .* two spellings"):
        match(read_column("id", np.array([7, 501])), factorize(text("00501", "A7"))[1])
    whole = factorize(read_column("id", np.array([501, 502])))[1]
    with pytest.raises(jg.DataError, match=r"holds text .* fitted to numbers"):
        match(text("501"), whole)
    large = factorize(read_column("id", np.array([2**53, 2**53 + 1])))[1]
    with pytest.raises(jg.DataError, match="stands for several whole numbers"):
        match(read_column("id", np.array([2.0**54])), large)
    assert match(read_column("id", np.array([2**53 + 1], np.uint64)), large).tolist() == [1]
    floats = factorize(read_column("id", np.array([0.5, 2.0**53])))[1]
    assert match(read_column("id", np.array([2**53, 2**53 + 1])), floats).tolist() == [1, -1]


def test_text_of_a_file_against_numbers_of_a_table(tmp_path):
    frame = pd.DataFrame({"y": Y, "x": X, "id": ID + 500})
    fit = jg.fit("y ~ x + (1 | id)", frame)

    def predicted(*ids):
        (tmp_path / "a.csv").write_text("x,id\n" + "".join(f"0,{v}\n" for v in ids))
        return fit.predict(tmp_path / "a.csv", effects="mode")

    known = fit.predict({"x": [0.0, 0.0], "id": [501, 507]}, effects="mode")
    new = fit.predict({"x": [0.0], "id": [99]}, effects="mode")[0]
    assert predicted("501", "507").tolist() == known.tolist()
    assert predicted("501", "", "507")[[0, 2]].tolist() == known.tolist()
    assert predicted("501", "A7", "507").tolist() == [known[0], new, known[1]]
    assert predicted("501.0", "507.0").tolist() == known.tolist()  # as pandas writes whole numbers beside a gap
    for wrong in ("0501", "+501", "5.01e2", "501.00"):
        with pytest.raises(jg.DataError, match="two spellings"):
            predicted("507", wrong)
    with pytest.raises(jg.DataError, match="two spellings"):
        predicted("501", "501.0", "A7")
    with pytest.raises(jg.DataError, match="holds text"):
        predicted("A7", "B8")


def test_a_fit_of_one_kind_of_table_knows_the_levels_of_another(tmp_path):
    """Every pair of kinds, new rows of the first members and of others alone: the level of the fit, never a new one."""
    polars = pytest.importorskip("polars")
    ids = np.array([1, 2, 3, 2**63, 2**63 + 1, 7, 8, 9], np.uint64)

    def tables(rows):
        frame = pd.DataFrame({"y": Y[rows], "x": X[rows], "id": ids[ID[rows]]})
        arrow = pa.Table.from_pandas(frame, preserve_index=False)
        path = tmp_path / f"{rows.start} {rows.stop}.csv"
        frame.to_csv(path, index=False)
        pq.write_table(arrow, path.with_suffix(".parquet"))
        coded = arrow.set_column(2, "id", arrow["id"].combine_chunks().dictionary_encode())
        return [frame, frame.assign(id=frame["id"].astype("UInt64")), frame.assign(id=pd.Categorical(frame["id"])),
                arrow, coded, arrow.to_pandas(types_mapper=pd.ArrowDtype), polars.from_arrow(arrow), path,
                path.with_suffix(".parquet"), {n: frame[n].tolist() for n in frame}]  # fmt: skip

    parts = {(rows.start, rows.stop): tables(rows) for rows in (slice(0, 32), slice(0, 8), slice(16, 24))}
    for data in parts[0, 32]:
        fit = jg.fit("y ~ x + (1 | id)", data)
        assert sorted(fit.state.terms[0].levels.tolist()) == sorted(ids.tolist())
        known = fit.predict()
        for (begin, end), others in parts.items():
            for other in others:
                np.testing.assert_allclose(fit.predict(other), known[begin:end], rtol=1e-9)


def test_what_text_stands_for():
    of = lambda *texts: typed(np.array(texts, object))
    assert of("1", "-20", "0").dtype == np.int64
    assert of("1", str(2**64 - 1)).tolist() == [1, 2**64 - 1]
    assert of("1.0", "20.0").tolist() == [1, 20] and of("0.5", "1e-07", "3").tolist() == [0.5, 1e-7, 3.0]
    assert of("TRUE", "FALSE").tolist() == [True, False]
    for texts in (("1", "1.0"), ("01", "2"), ("-0", "1"), ("0.5", str(2**63)), ("-1", str(2**63)), ("1e5",), ("1.50",),
                  ("True", "TRUE"), (str(2**53 + 1), "0.5"), ("1", "nan"), ("1", "inf"), ("١", "2")):  # fmt: skip
        assert of(*texts).tolist() == list(texts), texts
    assert kinds_of(np.array([], object)) == set()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_parts_of_a_file_agree_about_labels(tmp_path, monkeypatch, ending):
    """Chunks that alone would be of whole numbers, of fractions, of text: a member's rows meet whatever chunk they
    are in, under the label that the whole file gives it."""
    from jaxglmm.fitted import stream

    cases = {
        "whole floats": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        "fractions": [1.0, 2.0, 3.0, 4.0, 0.5, 0.25, 7.0, 8.0],
        "large": [1, 2, 3, 4, 2**63, 2**63 + 1, 2**64 - 1, 5], "text": ["1", "2", "3", "4", "A", "06", "7", "8"],
        "whole": [10**15 + i for i in range(8)],
    }  # fmt: skip
    monkeypatch.setattr(stream, "BUCKET", 10)
    fit = jg.fit("y ~ x + (1 | id)", pd.DataFrame({"y": Y, "x": X, "id": ID}))
    for name, ids in cases.items():
        dtype = np.uint64 if name == "large" else None
        # sorted by member, then all members once more: the first chunks have whole numbers alone
        rows = np.concatenate([np.arange(len(ID)), np.arange(0, len(ID), ROWS)])
        data = pd.DataFrame({"y": Y[rows], "x": X[rows], "id": pd.Series([ids[g] for g in ID[rows]], dtype=dtype)})
        if name == "text":
            fit = jg.fit("y ~ x + (1 | id)", data)
        path = tmp_path / f"{name}.{ending}"
        data.to_parquet(path) if ending == "parquet" else data.to_csv(path, index=False)
        whole = fit.score(path)
        stream.score_file(fit.state, path, tmp_path / "out.parquet", chunk=8)
        found = pd.read_parquet(tmp_path / "out.parquet")
        assert len(found) == len(whole) == GROUPS and set(found["n"]) == {ROWS + 1}, name
        assert str(found["level"].dtype) == str(whole["level"].dtype), name
        order = {v: i for i, v in enumerate(whole["level"])}
        found = found.iloc[np.argsort([order[v] for v in found["level"]])].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, whole, rtol=1e-12)


def test_factors_of_large_numbers(tmp_path):
    ids = [2**53, 2**53 + 1, 2**53 + 2]
    data = pd.DataFrame({"y": Y, "x": X, "k": [ids[i % 3] for i in range(len(Y))]})
    plain = jg.fit("y ~ x + factor(k)", data.assign(k=np.arange(len(Y)) % 3))
    data.to_csv(tmp_path / "a.csv", index=False)
    for table in (data, tmp_path / "a.csv", data.assign(k=data["k"].astype(str)), data.assign(k=data["k"] + 10**4)):
        fit = jg.fit("y ~ x + factor(k)", table)
        assert len(fit.names) == 4 and fit.loglik == plain.loglik
        assert fit.predict(table).tobytes() == plain.predict().tobytes()
    assert jg.fit("y ~ x + factor(k)", data).names[2:] == tuple(f"factor(k)[T.{v}]" for v in ids[1:])
    with pytest.raises(jg.FormulaError, match="beyond 2"):
        jg.fit("y ~ k + factor(k)", data)


def test_the_command_line_writes_what_it_read(tmp_path, capsys):
    from jaxglmm.cli import main

    zips = ["00501", "501", "2139", "18446744073709551615"]
    rows = [f"{Y[i] + i % 4 + i % 5},{X[i]},{zips[i % 4]},{2**64 - 1 - i % 5}" for i in range(len(Y))]
    (tmp_path / "a.csv").write_text("\n".join(["y,x,zip,big", *rows]) + "\n")
    for group, levels in (("zip", zips), ("big", [2**64 - 1 - i for i in range(5)])):
        out = tmp_path / group
        assert main(["fit", f"y ~ x + (1 | {group})", str(tmp_path / "a.csv"), "--out", str(out)]) == 0
        assert set(pq.read_table(out / "ranef.parquet")["level"].to_pylist()) == set(levels)
        for verb in ("rank", "score"):
            for ending in ("csv", "parquet"):
                path = tmp_path / f"{verb}.{ending}"
                assert main([verb, str(out), str(tmp_path / "a.csv"), "--out", str(path)]) == 0
                found = pq.read_table(path)["level"].to_pylist() if ending == "parquet" else [
                    line.split(",")[verb == "rank"].strip('"') for line in path.read_text().splitlines()[1:]
                ]  # fmt: skip
                assert set(map(str, found)) == set(map(str, levels)), (verb, ending)
    capsys.readouterr()
