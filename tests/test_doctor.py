"""`jaxglmm doctor`: every check is made, and the case of a source folder without its library is named."""

import json
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

import jaxglmm
from jaxglmm import doctor
from jaxglmm.cache import cache_folder
from jaxglmm.ops import native


def test_report_names_everything():
    names = [check.name for check in doctor.report()]
    assert {
        "installation",
        "python",
        "jax",
        "jaxlib",
        "devices",
        "native library",
        "library for CUDA",
        "compiled programs",
    } <= {*names}
    assert all(check.state in ("ok", "note", "problem") for check in doctor.report())


def test_printed_plain_and_as_json(capsys):
    status = doctor.main()
    plain = capsys.readouterr().out
    assert doctor.main(json=True) == status
    checks = json.loads(capsys.readouterr().out)
    assert [line.split()[0] for line in plain.splitlines()] == [check["state"] for check in checks]
    assert status == any(check["state"] == "problem" for check in checks)


def test_a_source_folder_that_was_never_installed_is_named(monkeypatch):
    def no_distribution(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", no_distribution)
    assert doctor.install_kind() == "source"
    check = doctor._installation()
    assert check.state == "problem" and "never installed" in check.found and "pip install -e ." in check.remedy


def make_distribution(folder: Path, direct_url: str | None) -> None:
    info = folder / "jaxglmm-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jaxglmm\nVersion: 0\n")
    if direct_url:
        (info / "direct_url.json").write_text(direct_url)


@pytest.mark.parametrize(
    "kind, direct_url",
    [
        ("shadowed", None),
        ("shadowed", '{"url": "file:///elsewhere", "dir_info": {}}'),
        ("shadowed", '{"url": "file:///elsewhere", "dir_info": {"editable": true}}'),
        ("editable", '{"url": "%s", "dir_info": {"editable": true}}'),
    ],
)
def test_install_kind(tmp_path, monkeypatch, kind, direct_url):
    here = Path(jaxglmm.__file__).resolve().parents[1].as_uri()
    make_distribution(tmp_path, direct_url and direct_url.replace("%s", here))
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.install_kind() == kind
    assert ("pip install -e ." in doctor._installation().remedy) == (kind == "shadowed")


def test_a_missing_library_is_a_note_and_a_bad_one_a_problem(monkeypatch, tmp_path):
    missing = native.NativeStatus(False, reason="this installation has no native library")
    monkeypatch.setattr(native, "native_status", lambda: missing)
    assert doctor._native().state == "note" and "C++ compiler" in doctor._native().remedy
    bad = native.NativeStatus(False, tmp_path, "it was built for XLA FFI 9.0")
    monkeypatch.setattr(native, "native_status", lambda: bad)
    assert doctor._native().state == "problem" and "9.0" in doctor._native().found


def test_cache_folder_is_private_and_used(tmp_path, run_python):
    code = """
import warnings, jax
from jaxglmm.cache import use_cache_folder
folder = use_cache_folder()
jax.jit(lambda x: x + 1)(1.0).block_until_ready()
print(folder, oct(folder.stat().st_mode & 0o777), len(list(folder.iterdir())) > 0)
"""
    folder, mode, used = run_python(code, JAXGLMM_CACHE=str(tmp_path / "kept")).split()
    assert folder.startswith(str(tmp_path / "kept" / "jaxlib-")) and (mode, used) == ("0o700", "True")


def test_a_cache_folder_that_cannot_be_made_is_done_without(tmp_path, run_python):
    (tmp_path / "file").write_text("")
    code = "from jaxglmm.cache import use_cache_folder; print(use_cache_folder())"
    assert run_python(code, JAXGLMM_CACHE=str(tmp_path / "file")) == "None"


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has its own cache folder")
def test_cache_folder_follows_the_users_setting(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXGLMM_CACHE", raising=False)
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().parent == tmp_path / "jaxglmm"


def test_a_library_for_cuda_is_named_as_one_that_never_ran(monkeypatch, tmp_path):
    assert doctor._cuda().state == "ok" and "on request" in doctor._cuda().found
    monkeypatch.setattr(native, "native_status", lambda platform: native.NativeStatus(True, tmp_path))
    assert doctor._cuda().state == "note" and "never run on a GPU" in doctor._cuda().found
    assert "bench device" in doctor._cuda().remedy


KEEP = """
import jax
from jaxglmm.cache import kept_programs
with kept_programs():
    print(jax.jit(lambda x: x + 1)(1.0), jax.config.jax_compilation_cache_dir)
"""


def test_damaged_files_of_jax_are_removed_unread(tmp_path, run_python):
    keep = lambda: Path(run_python(KEEP, JAXGLMM_CACHE=str(tmp_path)).split()[1])
    folder = keep()
    whole = {path: path.read_bytes() for path in folder.glob("*-cache")}
    assert whole
    times = {path: path.stat().st_mtime_ns for path in whole}
    keep()
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*-cache")} == times  # read, not written again
    for path, content in whole.items():
        path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    (folder / "planted-cache").write_bytes(b"no digest")
    keep()
    assert set(folder.glob("*-cache")) == set(whole)
    assert all(path.stat().st_mtime_ns > times[path] for path in whole)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes")
def test_a_cache_folder_that_others_could_write_is_emptied(tmp_path, monkeypatch):
    from jaxglmm.cache import _made_private

    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "planted.program").write_bytes(b"")
    folder.chmod(0o777)
    assert _made_private(folder) and not list(folder.iterdir()) and folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(folder)
    assert not _made_private(tmp_path / "link")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    folder.chmod(0o755)
    assert not _made_private(folder) and folder.stat().st_mode & 0o777 == 0o755  # another's is left as it is
