"""A save that is cut off at any step leaves a whole fit and all other files; two at once are told of each other."""

import os
import stat

import numpy as np
import pytest
from fitted_models import members

import jaxglmm as jg
from jaxglmm.fitted import folders
from jaxglmm.ops import files
from jaxglmm.plots import caterpillar


pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked")

# Saves in children that end at the k-th step in the file system, before or behind it, and looks at what is left.
KILLED = """
import dataclasses, os, shutil, sys
from pathlib import Path
import jaxglmm as jg
from jaxglmm.fitted import folders
from jaxglmm.fitted.fit import Fit

model, pristine = Path({model!r}), Path({model!r} + ".pristine")
if not {exchange}:
    folders.exchange = lambda one, other: False
fit = jg.load(pristine)
estimate = dataclasses.replace(fit.state.estimate, loglik=-1.0)
other = Fit(dataclasses.replace(fit.state, estimate=estimate), kept=fit._kept)

def hooked(k):
    left = [k]
    def wrap(place, name):
        real = getattr(place, name)
        def step(*args, **kwargs):
            for done in (False, True):
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                if not done:
                    result = real(*args, **kwargs)
            return result
        setattr(place, name, step)
    for name in ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink", "link", "chmod", "symlink"):
        wrap(os, name)
    wrap(folders, "exchange")

k, seen, killed = 0, set(), True
while killed:
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(pristine, model, symlinks=True)
    pid = os.fork()
    if pid == 0:
        hooked(k)
        other.save(model)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    if k % 2:  # what is left is read, or written to, at once
        seen.add(jg.load(model).loglik)
    else:
        fit.save(model)
        assert jg.load(model).loglik == fit.loglik
        seen.add(fit.loglik)
    assert (model / "notes.txt").read_text() == "mine" and (model / "sub" / "deep.txt").read_text() == "deep"
    assert os.readlink(model / "link") == "notes.txt"
    if not k % 2:
        assert not list(model.parent.glob(".*")), list(model.parent.glob(".*"))
    k += 1
assert seen == {{fit.loglik, -1.0}}, seen
print(k)
"""


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-renames"])
def test_a_save_that_is_killed_loses_nothing(tmp_path, run_python, exchange):
    model = tmp_path / "models" / "model"
    pristine = model.with_name("model.pristine")
    members().save(pristine)
    (pristine / "notes.txt").write_text("mine")
    (pristine / "sub").mkdir()
    (pristine / "sub" / "deep.txt").write_text("deep")
    (pristine / "link").symlink_to("notes.txt")
    assert int(run_python(KILLED.format(model=str(model), exchange=exchange))) > 20


def test_what_two_renames_left_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    fit, path = members(), tmp_path / "model"
    fit.save(path)
    work = tmp_path / ".model.saving"
    work.mkdir()
    path.rename(work / "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        assert jg.load(path).loglik == fit.loglik
    assert not path.exists()
    assert jg.load(path).loglik == fit.loglik
    assert path.exists() and not work.exists()


def test_links_are_followed_and_modes_stay(tmp_path):
    fit, path = members(), tmp_path / "real" / "model"
    fit.save(path)
    path.chmod(0o750)
    (path / "model.json").chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    fit.save(link)
    assert link.is_symlink() and jg.load(link).loglik == fit.loglik
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert stat.S_IMODE((path / "model.json").stat().st_mode) == 0o640
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    fit.save(tmp_path / "dangling")
    assert (tmp_path / "later" / "model.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "later", "link", "real"]


def test_what_is_written_is_on_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    fit, path, steps = members(), tmp_path / "model", []
    fit.save(path)
    real, exchange = os.fsync, folders.exchange
    name = lambda handle: os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("names of open files are not known here")
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append(name(handle)), real(handle))[1])
    monkeypatch.setattr(folders, "exchange", lambda *two: (steps.append("exchange"), exchange(*two))[1])
    fit.save(path)
    at = steps.index("exchange")
    assert {"model.json", "arrays.npz", "fit"} <= set(steps[:at]) and steps[at + 1 :] == [tmp_path.name]


def test_another_that_writes_is_told_of(tmp_path):
    fit, path = members(), tmp_path / "model"
    with folders.replacing(path, lambda folder: False):
        with pytest.raises(jg.DataError, match=r"another process is writing .*model.*wait"):
            fit.save(path)
        fit.save(tmp_path / "other")
    assert path.is_dir() and sorted(p.name for p in tmp_path.iterdir()) == ["model", "other"]


SAVES = """
import sys, jaxglmm as jg
fit, busy = jg.load({model!r}), 0
for _ in range(40):
    try:
        fit.save({model!r})
    except jg.DataError as error:
        assert "another process is writing" in str(error), error
        busy += 1
    assert jg.load({model!r}).loglik == fit.loglik
print(busy)
"""


def test_processes_that_save_and_load_at_once(tmp_path, run_python):
    from concurrent.futures import ThreadPoolExecutor

    path = tmp_path / "model"
    members().save(path)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run_python, [SAVES.format(model=str(path))] * 3))
    assert jg.load(path).loglik == members().loglik
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_files_take_their_place_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    path.chmod(0o600)
    with pytest.raises(jg.DataError, match=r"cannot write .*table\.csv.*No space left.*choose another"):
        with files.replacing_file(path) as fresh:
            fresh.write_text("half")
            raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["table.csv"]
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    with files.replacing_file(link) as fresh:
        fresh.write_text("new")
    assert link.is_symlink() and path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(jg.DataError, match="no regular file"), files.replacing_file("/dev/full"):
        pass


def test_a_full_disk_is_named_by_batches_and_plots(tmp_path, monkeypatch):
    from jaxglmm.batching.parts import Parts

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(jg.DataError, match=r"batch\.json.*No space left.*free some space"):
        Parts(tmp_path / "many", lambda: {"by": "response"}, np.array(["a"]), ["x"])
    with pytest.raises(jg.DataError, match=r"plot\.png.*No space left.*another file"):
        caterpillar(members(), path=tmp_path / "plot.png")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["many"]
