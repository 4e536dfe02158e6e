"""Files and folders that take their place whole or not at all, digests of them, and locks between processes."""

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from jaxglmm.errors import DataError


_DIGEST = ".sha256"


def path_of(path, what: str = "path") -> Path:
    """A path that a caller gave, links resolved.

    Raises
    ------
    DataError
        For what is no path.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path) or "\0" in str(path):
        raise DataError(f"{what}={path!r}: expected the name of a file or folder")
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise DataError(f"{what}={str(path)!r}: {reason(error)}; choose another name") from error


def reason(error: OSError) -> str:
    """What the system says, in its words alone."""
    return error.strerror or str(error) or type(error).__name__


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read: no link, folder, pipe or device, on none of which this waits.

    Raises
    ------
    DataError
        For anything but a regular file.
    OSError
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise DataError(f"{str(path)!r} is not a regular file: put a copy of the file itself there") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError(f"{str(path)!r} is not a regular file: put a copy of the file itself there")
    return os.fdopen(handle, "rb")


@contextlib.contextmanager
def replacing_file(path, remedy: str = "free some space, or choose another file", *, sync: bool = True):
    """Yield a name beside `path` to write to, with its ending; it takes the place of `path` when the block ends.

    Links are followed, and the mode of a file that was there stays.

    Parameters
    ----------
    path : path
    remedy : str
        What the caller of a failed write is to do.
    sync : bool
        Whether the content is on disk before it takes its place. Without, a machine that loses power may leave an
        empty file there.

    Raises
    ------
    DataError
        When something other than a file is at `path`, or it cannot be written; what was there is unchanged.
    """
    target = path_of(path)
    fresh = target.with_name(f".new-{secrets.token_hex(4)}-{target.name}")
    try:
        if target.exists() and not target.is_file():
            raise DataError(f"{str(path)!r} is no regular file: choose another name")
        yield fresh
        if target.exists():
            os.chmod(fresh, stat.S_IMODE(target.stat().st_mode))
        if sync:
            flush(fresh)
        os.replace(fresh, target)
        if sync:
            flush(target.parent)
    except OSError as error:
        raise DataError(f"cannot write {str(path)!r}: {reason(error)}; {remedy}") from error
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    folder = path.is_dir()
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError:
        if not folder:  # some systems do not flush folders
            raise
    finally:
        os.close(handle)


def sha256(file: BinaryIO | Path) -> str:
    """Digest of a file from where it stands, or of all of a path's."""
    if isinstance(file, Path):
        with open(file, "rb") as opened:
            return sha256(opened)
    return hashlib.file_digest(file, "sha256").hexdigest()


def write_digested(path: Path, write: Callable[[Path], object], remedy: str) -> None:
    """Write a file in one step, and its digest beside it, which `as_written` asks for."""
    with replacing_file(path, remedy, sync=False) as fresh:
        write(fresh)
        digest = sha256(fresh)
    write_digest(path, digest, remedy)


def write_digest(path: Path, digest: str | None = None, remedy: str = "free some space") -> None:
    """Write the digest of a file, as it is by default, beside it."""
    with replacing_file(_digest_of(path), remedy, sync=False) as fresh:
        fresh.write_text(digest or sha256(path))


def is_digested(path: Path) -> bool:
    """Whether there is a digest beside a file."""
    return _digest_of(path).exists()


def as_written(path: Path) -> bool:
    """Whether a file is there and is what it was when its digest was written."""
    try:
        return _digest_of(path).read_text() == sha256(path)
    except (OSError, ValueError):
        return False


def remove_digested(path: Path) -> None:
    """Remove a file and its digest."""
    path.unlink(missing_ok=True)
    _digest_of(path).unlink(missing_ok=True)


def _digest_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{_DIGEST}")


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Make a folder, hold it against other processes and threads, and remove it at the end if it is empty.

    A process that ends in any way lets go of it, so one that is found unlocked was left behind and is taken over.

    Raises
    ------
    BlockingIOError
        While another holds it.
    OSError
    """
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
        try:
            handle = os.open(folder, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except FileNotFoundError:  # another was just done with it
            continue
        try:
            _lock(handle)
            held = os.fstat(handle)
            if hasattr(os, "geteuid") and held.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, f"{folder} belongs to another user")
            if not _is_at(folder, held):
                continue
            try:
                yield folder
            finally:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            return
        finally:
            os.close(handle)


def _lock(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass


def _is_at(path: Path, held: os.stat_result) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False, with nothing done, where the system has no such step."""
    step = _exchange_step()
    if step is None:
        return False
    if step(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


@functools.cache
def _exchange_step() -> Callable[[bytes, bytes], int] | None:
    """renameat2(RENAME_EXCHANGE) of Linux, renamex_np(RENAME_SWAP) of macOS."""
    library = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        here, swap = ctypes.c_int(-100), ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
        return lambda one, other: library.renameat2(here, one, here, other, swap)  # pyright: ignore
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda one, other: library.renamex_np(one, other, ctypes.c_uint(2))  # pyright: ignore
    return None
