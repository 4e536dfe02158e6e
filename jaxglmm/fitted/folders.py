"""The folder of a saved fit as a whole: replaced in one step, whatever happens to the process that writes it.

While a fit is written, a hidden folder `.NAME.saving` lies beside the target and is locked. It holds `fit`, what is
written; where the system cannot exchange two folders in one step, for a moment also `old`, what was there. A process
that is killed leaves it behind; the next one that saves, or loads, puts `old` back if the target is missing.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxglmm.errors import DataError
from jaxglmm.ops.files import exchange, flush, locked_folder, path_of, reason


# What a replaced fit takes with it; other files of its folder stay.
OURS = ("model.json", "arrays.npz", "fit.json", "ranef.parquet")


@contextlib.contextmanager
def replacing(path, is_fit: Callable[[Path], bool]) -> Iterator[Path]:
    """A new folder to write into, which takes its place at `path` when the block ends without an error.

    A saved fit that is there is replaced, its modes kept; files in its folder that are not ours stay. Links are
    followed.

    Parameters
    ----------
    path : path
    is_fit : callable
        Whether a folder holds a saved fit.

    Raises
    ------
    DataError
        When something other than a saved fit or an empty folder is at `path`, another process is writing there, or
        nothing can be written.
    """
    target = path_of(path)

    def refuse_others():
        if target.exists() and not (target.is_dir() and (is_fit(target) or not any(target.iterdir()))):
            raise DataError(f"{str(path)!r} exists and is not a saved fit; choose another path, or move it away")

    try:
        refuse_others()
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(_beside(target)) as work:
            _put_back(target, work)
            refuse_others()
            _clear(work)
            fresh = work / "fit"
            fresh.mkdir()
            try:
                yield fresh
                _place(fresh, target, work / "old")
            finally:
                _clear(work)
    except BlockingIOError as error:
        raise DataError(
            f"another process is writing {str(path)!r}: wait until it is done, or choose another path"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot write {str(path)!r}: {reason(error)}; what was there is unchanged: free some space, or choose a "
            "writable folder"
        ) from error


def found(path) -> Path:
    """Where the fit that was saved to `path` lies: there, but for a save that was killed between its two steps."""
    target = path_of(path)
    try:
        old = _beside(target) / "old"
        if target.exists() or not old.exists():
            return target
        try:
            with locked_folder(_beside(target)) as work:
                _put_back(target, work)
                _clear(work)
        except OSError:  # another process is within these steps, or nothing can be written here
            pass
        return target if target.exists() or not old.exists() else old
    except OSError:
        return target


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.saving")


def _put_back(target: Path, work: Path) -> None:
    if (work / "old").exists() and not target.exists():
        os.rename(work / "old", target)


def _clear(work: Path) -> None:
    for name in ("fit", "old"):
        shutil.rmtree(work / name, ignore_errors=True)


def _place(fresh: Path, target: Path, old: Path) -> None:
    """Put the new folder in its place: at any moment, there is one whole fit."""
    if target.exists():
        _take_along(target, fresh)
    for entry in fresh.iterdir():
        if entry.name in OURS:
            flush(entry)
    flush(fresh)
    if not target.exists():
        os.rename(fresh, target)
    elif not exchange(fresh, target):
        os.rename(target, old)
        try:
            os.rename(fresh, target)
        except OSError:
            os.rename(old, target)
            raise
    flush(target.parent)


def _take_along(old: Path, fresh: Path) -> None:
    """The modes of the old folder and its files, and the files there that are not ours, which are then in both."""
    os.chmod(fresh, stat.S_IMODE(old.stat().st_mode))
    for entry in old.iterdir():
        into = fresh / entry.name
        if into.exists():
            os.chmod(into, stat.S_IMODE(entry.stat().st_mode))
        elif entry.name in OURS:
            continue
        elif entry.is_symlink():
            into.symlink_to(os.readlink(entry))
        elif entry.is_dir():
            shutil.copytree(entry, into, symlinks=True, copy_function=_link)
        else:
            _link(entry, into)


def _link(source, target) -> None:
    """A second name of a file; a copy where the file system has no such."""
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)
