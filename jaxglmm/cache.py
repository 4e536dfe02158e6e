"""The folder of compiled programs that the command line keeps between runs.

Only the command line uses it: a library must not change JAX's global configuration. The folder is named
by what a compiled program depends on, and belongs to its user alone, because JAX runs what it finds there. JAX reads
its own files without a look at them, and what is damaged may end the process; so these have digests beside them, which
are compared before JAX is told of the folder.
"""

import hashlib
import os
import platform
import stat
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxglmm.errors import DataError
from jaxglmm.ops.files import as_written, is_digested, remove_digested, write_digest


_JAXS = "*-cache"  # what JAX calls its files


def cache_folder() -> Path:
    """Return the folder of compiled programs for this jaxlib and this processor.

    `$JAXGLMM_CACHE` names its parent ("off": none is used); otherwise it lies in the user's cache folder.
    """
    from importlib.metadata import version

    if "JAXGLMM_CACHE" in os.environ:
        parent = Path(os.environ["JAXGLMM_CACHE"])
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches" / "jaxglmm"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxglmm"
    return parent / f"jaxlib-{version('jaxlib')}-{platform.machine()}-{_processor()}"


def use_cache_folder() -> Path | None:
    """Keep every compiled program of this process, the large ones traced and lowered as well, and return where.

    Call before the first computation, and from programs only. Returns None, and changes nothing, if
    `JAXGLMM_CACHE=off`, or if the folder cannot be made or belongs to another user.
    """
    if os.environ.get("JAXGLMM_CACHE") == "off":
        return None
    folder = cache_folder()
    try:
        if not _made_private(folder):
            return None
        for path in folder.glob(_JAXS):
            if not as_written(path):
                remove_digested(path)
    except (OSError, ValueError):  # a name that is none
        return None
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    from jaxglmm.ops.programs import keep_programs

    keep_programs(folder, _jax_keeps_nothing)
    return folder


@contextmanager
def kept_programs():
    """Within, `use_cache_folder`; at the end digests are written of what JAX has added."""
    folder = use_cache_folder()
    try:
        yield
    finally:
        for path in folder.glob(_JAXS) if folder is not None else ():
            with suppress(OSError, DataError):  # a full disk: the next process compiles again
                if not is_digested(path):
                    write_digest(path)


def _made_private(folder: Path) -> bool:
    """Make a folder that only its owner, who is the user, can write; False where that is not to be had."""
    folder.mkdir(0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
        return False
    if found.st_mode & 0o022:  # whoever could write here may have
        for path in folder.iterdir():
            path.unlink()
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return True


@contextmanager
def _jax_keeps_nothing():
    """Within, what is compiled is not written to JAX's cache, and so is never answered from there later."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _processor() -> str:
    """Return a short name of the processor's instruction sets: XLA compiles for exactly these."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return hashlib.sha256(" ".join(sorted(features.split())).encode()).hexdigest()[:12]
