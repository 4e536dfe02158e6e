"""Large Parquet files, whose columns stay there until they are laid out: the same answers as from memory."""

import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.errors import DataError
from jaxglmm.formula import stored
from jaxglmm.formula.frame import model_frame
from jaxglmm.model.families import get_family
from jaxglmm.ops.columns import StoredColumn


pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
FORMULA = "y ~ a + b + k + c + I(d^2) + s + (1 | g)"
FAMILY = get_family("binomial")
N = 2000


def table(rng, missing=False):
    """Numbers of several types, text, and a grouping factor in random order."""
    columns = {
        "a": rng.standard_normal(N).astype("f4"), "b": 100 + rng.standard_normal(N),
        "k": rng.integers(0, 9, N).astype("i1"), "c": rng.standard_normal(N), "d": rng.standard_normal(N).astype("f4"),
        "s": np.array(["u", "v", "w"])[rng.integers(0, 3, N)], "g": rng.integers(0, 300, N),
    }  # fmt: skip
    columns["y"] = (rng.random(N) < 1 / (1 + np.exp(-columns["c"] - rng.standard_normal(300)[columns["g"]]))).astype(
        int
    )
    found = {name: pa.array(values) for name, values in columns.items()}
    if missing:
        gone = {name: rng.random(N) < 0.03 for name in ("a", "k", "y", "g")}
        found |= {name: pa.array(columns[name], mask=mask) for name, mask in gone.items()}
        c = columns["c"].copy()
        c[rng.random(N) < 0.02] = np.nan
        found["c"] = pa.array(c)
    return pa.table(found)


@pytest.fixture
def small(monkeypatch):
    """Every file is large, and read a few rows at a time."""
    monkeypatch.setattr(stored, "LARGE", 0)
    monkeypatch.setattr(stored, "BATCH", 300)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_frame_of_a_file_is_that_of_its_table(tmp_path, small, missing, weighted):
    rng = np.random.default_rng(missing)
    data = table(rng, missing)
    pq.write_table(data, tmp_path / "data.parquet", row_group_size=700)
    weights = rng.integers(1, 4, N).astype(float) if weighted else None
    options = {"family": FAMILY, "weights": weights}
    if weighted:
        data = data.set_column(data.schema.get_field_index("y"), "y", pa.array(np.ones(N) * (np.arange(N) % 2)))
        pq.write_table(data, tmp_path / "data.parquet", row_group_size=700)
    held, lazy = (model_frame(FORMULA, d, **options) for d in (data, str(tmp_path / "data.parquet")))
    assert [type(c) is StoredColumn for c in lazy.columns] == [n in ("a", "b", "k", "c") for n in lazy.names]
    assert held.names == lazy.names and held.n_dropped == lazy.n_dropped and held.dropped_by == lazy.dropped_by
    np.testing.assert_array_equal(held.rows, lazy.rows)
    np.testing.assert_array_equal(held.X, lazy.X)
    np.testing.assert_array_equal(held.terms[0].codes, lazy.terms[0].codes)
    for name in ("low", "high", "mean", "variance"):
        np.testing.assert_allclose(getattr(held.moments, name), getattr(lazy.moments, name), rtol=1e-12, err_msg=name)


def test_a_fit_of_a_file_is_that_of_its_table(tmp_path, small, monkeypatch):
    """With all that asks for rows afterwards; nothing but the layout needs all columns in memory."""
    data = table(np.random.default_rng(2), missing=True)
    path = tmp_path / "data.parquet"
    pq.write_table(data, path, row_group_size=700)
    read, whole = stored.StoredColumns.read, []
    monkeypatch.setattr(StoredColumn, "__array__", lambda self, *_: whole.append(self.name))
    lazy = jg.fit(FORMULA, str(path), family="binomial", method="laplace", progress=False)
    assert not whole
    monkeypatch.undo()
    assert stored.StoredColumns.read is read
    held = jg.fit(FORMULA, data, family="binomial", method="laplace", progress=False)
    assert lazy.loglik == pytest.approx(held.loglik, rel=1e-12)
    np.testing.assert_allclose(list(lazy.fixef_se.values()), list(held.fixef_se.values()), rtol=1e-8)
    np.testing.assert_allclose(lazy.fitted, held.fitted, rtol=1e-8)
    np.testing.assert_allclose(lazy.ranef()["sd_eb"], np.asarray(held.ranef()["sd_eb"]), rtol=1e-6)


def test_bad_values_and_changed_files_are_named(tmp_path, small):
    data = table(np.random.default_rng(3))
    path = tmp_path / "data.parquet"
    b = data["b"].to_numpy().copy()
    b[1234] = np.inf
    pq.write_table(data.set_column(1, "b", pa.array(b)), path, row_group_size=700)
    with pytest.raises(DataError, match=r"'b' is inf in row 1234"):
        model_frame(FORMULA, str(path), family=FAMILY)
    same = data.set_column(1, "b", data["a"])
    pq.write_table(same, path)
    with pytest.raises(DataError, match="'a' and 'b' carry the same information"):
        jg.fit(FORMULA, str(path), family="binomial", method="laplace", progress=False)
    frame = model_frame(FORMULA, str(path), family=FAMILY)
    pq.write_table(data, path)
    with pytest.raises(DataError, match="has changed since"):
        np.asarray(frame.columns[1])
    path.unlink()
    with pytest.raises(DataError, match="cannot be read again"):
        np.asarray(frame.columns[1])
