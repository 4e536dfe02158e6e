"""CSV and Parquet files, sound and damaged."""

import gzip

import numpy as np
import pandas as pd
import pytest

from jaxglmm.errors import DataError
from jaxglmm.formula.frame import model_frame
from jaxglmm.model.families import get_family


GAUSSIAN = get_family("gaussian")
TABLE = pd.DataFrame({"y": [0.1, 1 / 3, 2e-17], "x": [1, 2, 3], "f": ["None", "some", "None"], "junk": ["a", "b", "c"]})


def frame_of(path):
    return model_frame("y ~ x + f + (1 | f)", path, family=GAUSSIAN)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_round_trip(tmp_path, ending):
    path = tmp_path / f"data{ending}"
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
        TABLE.to_parquet(path)
    else:
        TABLE.to_csv(path, index=False, sep="\t" if "tsv" in ending else ",")
    frame = frame_of(path)
    assert frame.y.tobytes() == TABLE["y"].to_numpy().tobytes()  # floats to the last bit
    assert frame.terms[0].levels.tolist() == ["None", "some"]  # a level, not a missing value
    assert frame.native == "pandas"
    assert frame_of(str(path)).X.tobytes() == frame.X.tobytes()


def test_only_used_columns_of_parquet_are_read(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    TABLE.to_parquet(tmp_path / "data.parquet")
    read, asked = pq.read_table, []
    monkeypatch.setattr(pq, "read_table", lambda path, columns: asked.extend(columns) or read(path, columns=columns))
    frame_of(tmp_path / "data.parquet")
    assert sorted(asked) == ["f", "x", "y"]


def test_missing_words(tmp_path):
    (tmp_path / "a.csv").write_text("y,x,f\n1,NA,a\n2,,b\n3,4,NA\n4,5,b\n5,1,a\n")
    frame = frame_of(tmp_path / "a.csv")
    assert frame.rows.tolist() == [3, 4] and frame.dropped_by == {"x": 2, "f": 1}


def test_words_that_are_labels(tmp_path):
    words = ["None", "none", "null", "n/a", "N/A", "nil", "-"]
    rows = [f"{i},{word}\n" for i, word in enumerate(words * 2)]
    (tmp_path / "a.csv").write_text("y,f\n" + "".join(rows))
    frame = model_frame("y ~ 1 + (1 | f)", str(tmp_path / "a.csv"), family=GAUSSIAN)
    assert frame.dropped_by == {} and sorted(frame.terms[0].levels.tolist()) == sorted(words)


def test_damaged(tmp_path):
    with pytest.raises(DataError, match="no file"):
        frame_of(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="is a directory"):
        frame_of(tmp_path)
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(DataError, match="ending"):
        frame_of(tmp_path / "a.xlsx")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="is empty"):
        frame_of(tmp_path / "empty.csv")
    (tmp_path / "rows.csv").write_text("y,x,f\n")
    with pytest.raises(DataError, match="no rows"):
        frame_of(tmp_path / "rows.csv")
    (tmp_path / "latin.csv").write_bytes("y,x,f\n1,2,\u00e9\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        frame_of(tmp_path / "latin.csv")
    (tmp_path / "twice.csv").write_text("y,x,x,f\n1,2,3,a\n")
    with pytest.raises(DataError, match="2 columns named 'x'"):
        frame_of(tmp_path / "twice.csv")
    whole = gzip.compress(
        ("y,x,f\n" + "".join(f"{v},{v},a\n" for v in np.random.default_rng(0).normal(size=5000))).encode()
    )
    for name, content in {"cut": whole[: len(whole) // 2], "not": b"y,x,f\n1,2,3\n"}.items():
        (tmp_path / f"{name}.csv.gz").write_bytes(content)
        with pytest.raises(DataError, match="damaged or cut short"):
            frame_of(tmp_path / f"{name}.csv.gz")
    pytest.importorskip("pyarrow")
    TABLE.to_parquet(tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged, cut short"):
        frame_of(tmp_path / "cut.parquet")


@pytest.mark.parametrize("ending", ["csv", "tsv.gz"])
def test_every_line_has_the_fields_of_the_header(tmp_path, ending):
    separator, opener = (",", open) if ending == "csv" else ("\t", gzip.open)

    def write(*lines):
        with opener(tmp_path / f"a.{ending}", "wt") as file:
            file.write("\n".join(line.replace(",", separator) for line in lines) + "\n")
        return tmp_path / f"a.{ending}"

    rows = [f"{i}.5,{i % 7},{'ab'[i % 2]},1" for i in range(300)]
    quoted = f'1.5,2,"two{separator}\nlines",1'  # one row, whose field holds a separator and ends a line
    frame = frame_of(write("y,x,f,junk", *rows, "", "  ", quoted))
    assert len(frame.y) == 301 and frame.terms[0].levels[-1] == f"two{separator}\nlines"
    for bad, count in {"1,2,a,1,9": 5, "1,2,a": 3, "1": 1}.items():
        with pytest.raises(DataError, match=rf"a\.{ending}' has {count} fields in line 304, .* 4 columns"):
            frame_of(write("y,x,f,junk", quoted, *rows, bad, rows[0]))
    with pytest.raises(DataError, match=r"has 5 fields in line 2, .* row names"):
        frame_of(write("y,x,f,junk", *(f"{i},{row}" for i, row in enumerate(rows))))
