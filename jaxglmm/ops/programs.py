"""Compiled functions whose executables one process may leave to the next.

JAX's persistent cache saves compiling, but a new process still traces and lowers, and for a small fit that takes longer
than all the rest. Here the executable itself is kept, under a name made of all that it depends on: the function and its
static arguments, structure, shapes and types of the others, devices, environment, versions, this package's files.
Only programs that call `keep_programs` do so: a library must not write files unasked.
"""

import functools
import hashlib
import inspect
import os
import pickle
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.core import Tracer


_SUFFIX, _TRIAL = ".program", ".trial"
_DIGEST = hashlib.sha256().digest_size
_UNUSED = 30 * 86400  # seconds after which a file that was not read is removed
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}")
_folder: Path | None = None
_compiling: Callable = nullcontext


def keep_programs(folder: Path | None, compiling: Callable = nullcontext) -> None:
    """Keep executables in `folder` from now on; None to stop.

    What is found there is run: the folder must belong to the user alone. A digest of each file guards against damage,
    not against another who writes there.

    Parameters
    ----------
    folder : pathlib.Path or None
    compiling : callable
        Makes the context to compile in. JAX's persistent cache must not answer there: an executable that was read
        from it lacks functions when it is written again (jaxlib 0.10, CPU), which shows only when it is run.
    """
    global _folder, _compiling
    _folder, _compiling = folder, compiling


def program(*, static: tuple[str, ...] = ()):
    """Decorator for a function of arrays: `jax.jit`, with its executables kept where `keep_programs` says.

    Parameters
    ----------
    static : tuple of str
        Names of arguments that are no arrays. Their `repr` must tell them apart.
    """
    return lambda function: Program(function, static)


class Program:
    """See `program`; what is not here (`lower`, `trace`, ...) is that of `jitted`, the plain `jax.jit`."""

    def __init__(self, function, static):
        functools.update_wrapper(self, function)
        self.jitted: Any = jax.jit(function, static_argnames=static)
        self._signature, self._static, self._loaded = inspect.signature(function), static, {}

    def __getattr__(self, name):
        return getattr(self.__dict__["jitted"], name)

    def __call__(self, *args, **kwargs):
        if _folder is None:
            return self.jitted(*args, **kwargs)
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        static = {name: bound.arguments.pop(name) for name in self._static}
        leaves, tree = jax.tree.flatten(bound.arguments)
        what = repr((self.__module__, self.__qualname__, static, str(tree), [str(jax.typeof(x)) for x in leaves]))
        # Inside a transformation there is nothing to keep; an address would never be found again.
        if _ADDRESS.search(what) or any(isinstance(x, Tracer) for x in leaves):
            return self.jitted(*args, **kwargs)
        if what in self._loaded:
            return self._loaded[what](*leaves)
        path = _folder / f"{_surroundings()}-{_digest(what)}{_SUFFIX}"
        found = _tried(path, leaves)
        if found is None:
            loaded = _compile(lambda *leaves: self.jitted(**jax.tree.unflatten(tree, leaves), **static), leaves, path)
            found = loaded, loaded(*leaves)
        loaded, result = found
        self._loaded[what] = loaded
        return result


def _compile(flat, leaves, path: Path):
    from jax.experimental import serialize_executable

    with _compiling():
        compiled = jax.jit(flat).lower(*leaves).compile()
    try:
        _write(path, pickle.dumps(serialize_executable.serialize(compiled)))
    except Exception:  # a full disk, or a platform whose executables cannot be written: the next process compiles again
        pass
    return compiled


def _tried(path: Path, leaves) -> tuple[Any, Any] | None:
    """The executable in a file and what it makes of these arguments; None where there is none that works.

    What was damaged may end the process, when it is read as when it runs. So a file is read only if it is what was
    written, and is away while it runs for the first time: no process meets it twice.
    """
    trial = path.with_suffix(f".{secrets.token_hex(4)}{_TRIAL}")
    try:
        os.rename(path, trial)
        content = trial.read_bytes()
    except OSError:
        return None
    from jax.experimental import serialize_executable

    digest, content = content[:_DIGEST], content[_DIGEST:]
    try:
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("not what was written")
        loaded = serialize_executable.deserialize_and_load(*pickle.loads(content))
        result = jax.block_until_ready(loaded(*leaves))
    except Exception:  # damaged, or of another jaxlib after all
        trial.unlink(missing_ok=True)
        return None
    except BaseException:  # an interrupt
        _put_back(trial, path)
        raise
    _put_back(trial, path)
    return loaded, result


def _put_back(trial: Path, path: Path) -> None:
    with suppress(OSError):
        os.utime(trial)
        os.replace(trial, path)


def _write(path: Path, content: bytes) -> None:
    """Write a file in one step, its digest first, and remove those that nobody has used for long."""
    for old in (*path.parent.glob(f"*{_SUFFIX}"), *path.parent.glob(f"*{_TRIAL}")):
        with suppress(OSError):
            if old.stat().st_mtime < time.time() - _UNUSED:
                old.unlink(missing_ok=True)
    handle, fresh = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(fresh, path)
    except OSError:
        Path(fresh).unlink(missing_ok=True)
        raise


@functools.cache
def _surroundings() -> str:
    """Digest of what any program depends on."""
    package = Path(__file__).resolve().parent.parent
    files = sorted(p for p in package.rglob("*") if p.suffix in (".py", ".so", ".dylib"))
    source = [(str(p.relative_to(package)), (s := p.stat()).st_size, s.st_mtime_ns) for p in files]
    settings = sorted((k, v) for k, v in os.environ.items() if k.startswith(("JAX", "XLA_")))
    devices = [(d.platform, d.device_kind) for d in jax.devices()]
    return _digest(repr((sys.version, version("jax"), version("jaxlib"), devices, os.cpu_count(), settings, source)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
