"""Saved fits: the same predictions bit for bit, nothing lost when writing fails, nothing else overwritten."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from fitted_models import members, sleepstudy, visits

import jaxglmm as jg
from jaxglmm.fitted import folders, io


FRESH = """
import numpy as np, pandas as pd, jaxglmm as jg
fit, new = jg.load({model!r}), pd.read_parquet({data!r})
out = [fit.predict(new, kind=kind, effects=effects)
       for kind in ("response", "link") for effects in ("conditional", "mode", "marginal", "population")]
np.save({out!r}, np.array(out))
"""


def all_predictions(fit, data):
    return np.array(
        [
            fit.predict(data, kind=kind, effects=effects)
            for kind in ("response", "link")
            for effects in ("conditional", "mode", "marginal", "population")
        ]
    )


def test_a_fresh_process_predicts_the_same_bits(tmp_path, run_python, same_compiler):
    fit = members()
    new = visits().assign(member=lambda d: np.where(d["x"] > 1, "someone new", d["member"]))
    fit.save(tmp_path / "model")
    new.to_parquet(tmp_path / "new.parquet")
    names = {k: str(tmp_path / v) for k, v in {"model": "model", "data": "new.parquet", "out": "out.npy"}.items()}
    run_python(FRESH.format(**names), **same_compiler)
    np.testing.assert_array_equal(np.load(names["out"]), all_predictions(fit, new))


def test_transforms_come_back(tmp_path, run_python, same_compiler):
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"x": rng.uniform(1, 5, 80), "z": rng.normal(size=80), "g": np.repeat(np.arange(16), 5)})
    data["f"], data["y"] = rng.choice(["a", "b", "c"], 80), rng.normal(size=80)
    formula = "y ~ bs(x, df=4) + poly(z, 2) + C(f, contr.sum) + center(np.log(x)):f + scale(z) : x + (1 + scale(z) | g)"
    fit = jg.fit(formula, data)
    fit.save(tmp_path / "model")
    new = data.iloc[::-3].assign(g=lambda d: d["g"] + 8)
    new.to_parquet(tmp_path / "new.parquet")
    names = {k: str(tmp_path / v) for k, v in {"model": "model", "data": "new.parquet", "out": "out.npy"}.items()}
    run_python(FRESH.format(**names), **same_compiler)
    np.testing.assert_array_equal(np.load(names["out"]), all_predictions(fit, new))


def test_what_a_loaded_fit_knows(tmp_path):
    fit = members()
    fit.save(tmp_path / "model")
    loaded = jg.load(tmp_path / "model")
    assert loaded.to_dict() == fit.to_dict()
    assert loaded.summary().text == fit.summary().text
    pd.testing.assert_frame_equal(loaded.ranef(), fit.ranef())
    pd.testing.assert_frame_equal(loaded.confint("wald"), fit.confint("wald"))
    pd.testing.assert_frame_equal(loaded.confint(), fit.confint("wald"))  # profiles need rows, and the table says so
    pd.testing.assert_frame_equal(jg.anova(loaded, fit), jg.anova(fit, fit))
    assert loaded.test("x").p == fit.test("x").p and loaded.icc() == fit.icc()
    assert loaded.modelled == fit.modelled and loaded.n_dropped == 1
    np.testing.assert_array_equal(loaded.vcov, fit.vcov)


@pytest.mark.reference
def test_a_loaded_gaussian_fit_keeps_its_degrees_of_freedom(tmp_path, reference_dir):
    fit = sleepstudy(reference_dir, reml=True)
    fit.save(tmp_path / "model")
    loaded = jg.load(tmp_path / "model")
    assert loaded.summary().text == fit.summary().text
    assert loaded.ranef()["level"].dtype == fit.ranef()["level"].dtype == np.int64


def test_what_needs_rows_says_so(tmp_path):
    fit = members()
    fit.save(tmp_path / "model")
    loaded = jg.load(tmp_path / "model")
    needs_rows = (
        loaded.predict, loaded.simulate, loaded.residuals, lambda: loaded.fitted, lambda: loaded.overdispersion,
        lambda: loaded.vcov("cluster"), lambda: loaded.confint("profile"),
    )  # fmt: skip
    for method in needs_rows:
        with pytest.raises(jg.DataError, match="rows of the fit, which a saved model does not hold"):
            method()


def test_no_training_row_is_in_the_file(tmp_path):
    fit = members()
    fit.save(tmp_path / "model")
    with np.load(tmp_path / "model" / "arrays.npz", allow_pickle=False) as arrays:
        assert all(fit.n not in arrays[name].shape for name in arrays)
    # Strict JSON, and no pickle anywhere.
    json.loads((tmp_path / "model" / "model.json").read_text(), parse_constant=pytest.fail)


def test_saving_replaces_a_fit_and_keeps_other_files(tmp_path):
    fit, path = members(), tmp_path / "deep" / "model"
    fit.save(path)
    (path / "notes.txt").write_text("mine")
    (path / "fit.json").write_text("{}")  # of the fit that is replaced
    fit.save(path)
    assert sorted(p.name for p in path.iterdir()) == ["arrays.npz", "model.json", "notes.txt"]
    assert (path / "notes.txt").read_text() == "mine"
    assert [p.name for p in path.parent.iterdir()] == ["model"]  # no leftover
    (tmp_path / "empty").mkdir()
    fit.save(tmp_path / "empty")
    assert jg.load(tmp_path / "empty").loglik == fit.loglik


@pytest.mark.parametrize("step", ["savez", "dump", "exchange", "rename"])
def test_a_failed_write_leaves_the_old_fit_whole(tmp_path, monkeypatch, step):
    fit, path = members(), tmp_path / "model"
    fit.save(path)
    before = {p.name: p.read_bytes() for p in path.iterdir()}

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    real = os.rename
    with monkeypatch.context() as patch:
        if step == "savez":
            patch.setattr(io.np, "savez", fail)
        elif step == "dump":
            patch.setattr(io.json, "dump", fail)
        elif step == "exchange":
            patch.setattr(folders, "exchange", fail)
        else:
            patch.setattr(folders, "exchange", lambda *_: False)
            patch.setattr(os, "rename", lambda a, b: fail() if str(a).endswith("fit") else real(a, b))
        with pytest.raises(jg.DataError, match="No space left"):
            fit.save(path)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_other_things_are_not_overwritten(tmp_path):
    fit = members()
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    for name in ("file", "folder"):
        with pytest.raises(jg.DataError, match=rf"{name}.*not a saved fit"):
            fit.save(tmp_path / name)
    assert (tmp_path / "file").read_text() == "x" and (tmp_path / "folder" / "thesis.tex").exists()
    with pytest.raises(jg.DataError, match="cannot write"):
        fit.save(tmp_path / "file" / "below")


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(jg.DataError, match=r"nowhere.*no such folder"):
        jg.load(tmp_path / "nowhere")
    with pytest.raises(jg.DataError, match="not a saved fit"):
        jg.load(tmp_path)
    path = tmp_path / "model"
    members().save(path)
    arrays = (path / "arrays.npz").read_bytes()
    (path / "arrays.npz").write_bytes(arrays[: len(arrays) // 2])
    with pytest.raises(jg.DataError, match="damaged"):
        jg.load(path)
    saved = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps({**saved, "version": 99}))
    with pytest.raises(jg.DataError, match=r"format version 99.*update"):
        jg.load(path)
