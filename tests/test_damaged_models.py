"""Saved models that were damaged: an error that names file and remedy, or the same predictions."""

import json
import os
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg
from jaxglmm.fitted import io
from jaxglmm.fitted.state import State


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with a spline, a factor, labels of any characters; new rows; their predictions."""
    rng = np.random.default_rng(3)
    labels = np.array(["a", "a\0", "b\0\0", "ü", "", " ", "x,y", "0012"], dtype=object)
    data = pd.DataFrame({"x": rng.uniform(0, 4, 96), "g": np.tile(labels, 12), "f": np.tile(["u", "v", "w"], 32)})
    data["y"] = np.sin(data["x"]) + np.tile(rng.normal(size=8), 12) + 0.3 * rng.normal(size=96)
    fit = jg.fit("y ~ bs(x, df=4) + f + (1 | g)", data)
    folder = tmp_path_factory.mktemp("damaged") / "model"
    fit.save(folder)
    return folder, data, np.asarray(fit.predict(data))


def damaged(rng, content: bytes) -> bytes:
    """A flipped bit, other bytes, an end cut off, zeros, a piece that is doubled or lost."""
    at, end = sorted(rng.integers(0, len(content), 2).tolist())
    kind = rng.integers(7)
    if kind < 2:
        return content[:at] + bytes([content[at] ^ (1 << rng.integers(8))]) + content[at + 1 :]
    if kind == 2:
        return content[:at]
    if kind == 3:
        return content[:at] + bytes(min(end - at, 64)) + content[at + min(end - at, 64) :]
    if kind == 4:
        return content[:at] + content[at : at + 40] + content[at:]
    if kind == 5:
        return content[:at] + content[at + 1 + int(rng.integers(30)) :]
    return content[:at] + rng.bytes(int(rng.integers(1, 9))) + content[at:]


def edited(rng, content: bytes) -> bytes:
    """model.json with one value changed, as a person, a merge or another program may."""
    saved = json.loads(content)
    place, parents = saved, []
    while isinstance(place, (dict, list)) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else int(rng.integers(len(place)))
        parents.append((place, key))
        place = place[key]
    place, key = parents[rng.integers(len(parents))]
    values = [None, -1, 0, 1, 1e300, 10**30, "", "x", [], {}, True, {"$float": "x"}, {"$array": [1], "dtype": "O"}]
    if rng.random() < 0.15 and isinstance(place, dict):
        del place[key]
    else:
        place[key] = values[rng.integers(len(values))]
    return json.dumps(saved).encode()


def outcome(folder, data, wanted) -> str:
    """ "error" or "equal"; anything else fails."""
    try:
        found = jg.load(folder).predict(data)
    except jg.DataError as error:
        assert str(folder) in str(error) and "save" in str(error), error
        assert "pickle" not in str(error), error
        return "error"
    np.testing.assert_array_equal(found, wanted)
    return "equal"


def damages(model, tmp_path, count: int, seed: int) -> dict[str, int]:
    pristine, data, wanted = model
    folder, rng, counts = tmp_path / "model", np.random.default_rng(seed), {"error": 0, "equal": 0}
    shutil.copytree(pristine, folder)
    for _ in range(count):
        name = ("model.json", "arrays.npz")[rng.integers(2)]
        content = (pristine / name).read_bytes()
        change = edited if name == "model.json" and rng.random() < 0.5 else damaged
        (folder / name).write_bytes(change(rng, content))
        counts[outcome(folder, data, wanted)] += 1
        (folder / name).write_bytes(content)
    assert outcome(folder, data, wanted) == "equal"
    return counts


def test_damaged_models_are_refused(model, tmp_path):
    counts = damages(model, tmp_path, 150, 0)
    assert counts["error"] > 130, counts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_thousand_damaged_models(model, tmp_path, seed):
    counts = damages(model, tmp_path, 1000, seed)
    assert counts["error"] > 900, counts


def resealed(folder: Path, change) -> None:
    """Change what is in model.json and have its digests right again, as no accident does."""
    path = folder / io.MODEL
    saved = json.loads(path.read_text())
    change(saved)
    for name, told in saved["files"].items() if isinstance(saved.get("files"), dict) else ():
        if (folder / name).exists():
            told |= {"bytes": (folder / name).stat().st_size, "sha256": io.sha256(folder / name)}
    path.write_text(json.dumps(saved | {"sha256": io._digest(saved)}))


def header(dtype: str, shape) -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def with_array(folder: Path, name: str, content: bytes, compression=zipfile.ZIP_STORED) -> None:
    arrays, fresh = folder / io.ARRAYS, folder / "fresh"
    with zipfile.ZipFile(arrays) as old, zipfile.ZipFile(fresh, "w", compression) as new:
        for entry in old.namelist():
            new.writestr(entry, content if entry == f"{name}.npy" else old.read(entry))
    fresh.replace(arrays)


@pytest.mark.parametrize(
    ("dtype", "shape", "described"),
    [
        ("'<f8'", (10**12,), True),  # 8 TB
        ("'<f8'", (10**12,), False),
        ("'|O'", (6,), True),
        ("'<f8'", (5,), True),  # fewer than the formula has
        ("'<U3'", (6,), True),
        ("'<f8'", (-6,), True),
        ("[('a', '<f8')]", (6,), True),
    ],
)
def test_sizes_and_types_are_known_before_reading(model, tmp_path, dtype, shape, described):
    """Also where digests agree: nothing is allocated on the word of a header, and nothing is unpickled."""
    folder = tmp_path / "model"
    shutil.copytree(model[0], folder)
    content = bytes(72 if "U" in dtype else 40 if shape == (5,) else 48)
    with_array(folder, "estimate.beta", header(dtype, shape) + content)
    told = {"dtype": dtype.strip("'"), "shape": list(shape)}
    resealed(folder, lambda saved: saved["arrays"].update({"estimate.beta": told} if described else {}))
    assert outcome(folder, *model[1:]) == "error"


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved.pop("estimate"),
        lambda saved: saved.update(files=3),
        lambda saved: saved.update(arrays=[]),
        lambda saved: saved["estimate"].update(parameters=["a"]),
        lambda saved: saved["family"].update(name="x"),
        lambda saved: saved["spec"].update(terms=[]),
        lambda saved: saved["spec"]["fixed"].update(names={"$tuple": ["Intercept"]}),
    ],
)
def test_content_that_does_not_fit_together(model, tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(model[0], folder)
    resealed(folder, change)
    assert outcome(folder, *model[1:]) == "error"


def test_arrays_of_another_model_are_refused(model, tmp_path):
    folder, other, data = tmp_path / "model", tmp_path / "other", model[1]
    shutil.copytree(model[0], folder)
    jg.fit("y ~ bs(x, df=4) + f + (1 | g)", data.assign(y=-2 * data["y"])).save(other)
    shutil.copy(other / io.ARRAYS, folder / io.ARRAYS)
    with pytest.raises(jg.DataError, match=r"arrays.npz is not what was saved.*save it again"):
        jg.load(folder)


@pytest.mark.parametrize("version", [True, None, "2", 2.0, [2], 0, -1, 1, 99, 10**40])
def test_versions_are_numbers(model, tmp_path, version):
    folder = tmp_path / "model"
    shutil.copytree(model[0], folder)
    resealed(folder, lambda saved: saved.update(version=version))
    with pytest.raises(jg.DataError, match=r"version.*(save it again|update jaxglmm)"):
        jg.load(folder)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("name", ["model.json", "arrays.npz"])
def test_only_regular_files_are_read(model, tmp_path, name):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    shutil.copytree(model[0], folder)
    shutil.copy(folder / name, outside)
    (folder / name).unlink()
    things = (
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(outside),
        lambda path: path.symlink_to(path),
        lambda path: path.mkdir(),
    )
    for make in things:
        make(folder / name)
        assert outcome(folder, *model[1:]) == "error"
        folder.joinpath(name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
    with tempfile.NamedTemporaryFile(dir=tmp_path) as huge:  # with a hole: takes no room
        huge.truncate(1 << 42)
        os.link(huge.name, folder / name)
        assert outcome(folder, *model[1:]) == "error"


def test_json_that_is_nested_without_end(model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model[0], folder)
    (folder / "model.json").write_text("[" * 1_000_000)
    assert outcome(folder, *model[1:]) == "error"


def test_labels_of_any_characters_come_back(model):
    folder, data, wanted = model
    loaded = jg.load(folder)
    assert isinstance(loaded.state, State)
    assert set(loaded.state.terms[0].levels) == set(data["g"])
    np.testing.assert_array_equal(loaded.predict(data, new_levels="error"), wanted)


def test_names_that_are_no_paths(model):
    for path in (None, 3, "", "a\0b", "x" * 300):
        with pytest.raises(jg.DataError):
            jg.load(path)
        with pytest.raises(jg.DataError):
            jg.load(model[0]).save(path)
