"""The native libraries: find them, judge them, register their kernels with JAX on first use.

The library only adds speed: every operation has a plain JAX form, which is used where there is no library; a process
is told so once, as pip shows nothing of what a build says (`jaxglmm doctor` tells at any time). A library that is there
and cannot be used is a fault, and warns. There is one for the CPU, and one for CUDA where it was asked for when the
package was built (JAXGLMM_CUDA=1).

Environment:

* ``JAXGLMM_NATIVE=require`` makes a missing library an error; ``off`` never loads it, and nothing is said of it.
* ``JAXGLMM_KERNELS=plain`` computes in plain JAX although the library is there; ``native`` insists on it.
* ``JAXGLMM_SIMD=avx512``, ``avx2`` or ``baseline`` takes that code of the library's where the processor has it
  (the baseline otherwise); the best there is by default.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import struct
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

from jaxglmm.errors import DataError


KERNELS = 16  # jaxglmm_kernels_version() in kernels/cpu/library.cc: the contract between handlers and Python

LIBRARIES = {"cpu": "cpu", "cuda": "CUDA"}  # platforms, and what JAX calls them where kernels are registered

REMEDY = "install with a C++ compiler at hand (in a checkout: pip install -e .); `jaxglmm doctor` tells more"


class NativeError(RuntimeError):
    """The native library was insisted on and cannot be used."""


@dataclass(frozen=True)
class NativeStatus:
    """What is known of the native library.

    Attributes
    ----------
    loaded : bool
        Whether its kernels can be called.
    path : Path or None
        The library file; None where there is none, or where it was not looked for.
    reason : str
        Why it is not loaded; empty when it is.
    api : tuple of int or None
        (major, minor) of the XLA FFI headers it was built with.
    jaxlib_api : tuple of int or None
        The same of the jaxlib that would call it.
    """

    loaded: bool
    path: Path | None = None
    reason: str = ""
    api: tuple[int, int] | None = None
    jaxlib_api: tuple[int, int] | None = None

    def __str__(self) -> str:
        if not self.loaded:
            return f"native kernels not loaded: {self.reason}"
        return "native kernels loaded (XLA FFI {}.{})".format(*(self.api or ("?", "?")))


def native_status(platform: str = "cpu") -> NativeStatus:
    """Return whether the native library for a platform is usable, where it is, and why not.

    Loads the library, but neither imports JAX nor registers anything with it.

    Parameters
    ----------
    platform : str
        "cpu" or "cuda".

    Returns
    -------
    NativeStatus
        Never raises: a library that cannot be used is told in `reason`.
    """
    return _load(platform)[0]


def use_native(platform: str = "cpu") -> bool:
    """Return whether operations on a device of this platform should call the native library.

    Parameters
    ----------
    platform : str
        There are kernels for "cpu" and "cuda"; the latter are used where they were built and loaded, and are never
        insisted on.

    Raises
    ------
    NativeError
        If the environment insists on a library that cannot be used.
    DataError
        If JAXGLMM_KERNELS, JAXGLMM_NATIVE or JAXGLMM_SIMD holds another word than those known.
    """
    native = _setting("JAXGLMM_NATIVE", ("require", "off"))
    kernels = _setting("JAXGLMM_KERNELS", ("native", "plain"))
    _setting("JAXGLMM_SIMD", ("avx512", "avx2", "baseline"))
    if platform not in LIBRARIES or kernels == "plain":
        return False
    status = native_status(platform)
    if platform == "cpu" and not status.loaded and (native == "require" or kernels == "native"):
        asked = "JAXGLMM_NATIVE=require" if native == "require" else "JAXGLMM_KERNELS=native"
        raise NativeError(f"{asked}, but {status.reason}; {REMEDY}")
    if platform == "cpu" and not status.loaded and status.path is None and native != "off" and os.name != "nt":
        _say_once(status.reason)
    return status.loaded


def why_plain(platform: str = "cpu") -> str:
    """Return why operations are computed in plain JAX; nothing where they call the native library.

    Raises as `use_native` does.
    """
    if use_native(platform):
        return ""
    asked = _setting("JAXGLMM_KERNELS", ("native", "plain")) == "plain"
    return "JAXGLMM_KERNELS=plain" if asked else native_status(platform).reason


def call(kernel: str, result, *operands, **attributes):
    """Call one kernel on the CPU or GPU; ask `use_native` first, since this raises NativeError without a library.

    Parameters
    ----------
    kernel : str
        The handler's name without its prefix, such as "group_total".
    result : jax.ShapeDtypeStruct or a sequence of them
        What it returns, from `jax.eval_shape` of the plain form.
    *operands : arrays
        Its inputs. Under `jax.vmap` each gains a leading axis of size 1 or B, which handlers broadcast.
    **attributes : NumPy scalars
        Static settings, of exactly the type that the handler declares.
    """
    register()
    import jax

    from jaxglmm.ops.varying import alike, axes_of, vary

    operands = alike(*operands)
    if axes := axes_of(operands[0]):
        of_zeros = lambda: jax.tree.map(lambda s: vary(jax.numpy.zeros(s.shape, s.dtype), axes), result)
        result = jax.eval_shape(of_zeros)
    return jax.ffi.ffi_call(f"jaxglmm_{kernel}", result, vmap_method="expand_dims")(*operands, **attributes)


def register() -> None:
    """Make the library's kernels known to JAX; quick after the first time."""
    with _lock:
        _register()


def library() -> ctypes.CDLL:
    """The loaded library for the CPU itself, for its plain functions.

    Raises
    ------
    NativeError
        When there is none.
    """
    status, found = _load("cpu")
    if found is None:
        raise NativeError(f"{status.reason}; {REMEDY}")
    return found


_lock = threading.Lock()


@functools.cache
def _say_once(reason: str) -> None:
    text = (
        f"jaxglmm computes in plain JAX, several times slower: {reason}; {REMEDY}; JAXGLMM_NATIVE=off if it is to be so"
    )
    warnings.warn(text, RuntimeWarning, stacklevel=3)


@functools.cache
def _register() -> None:
    import jax

    found = {platform: _load(platform)[1] for platform in LIBRARIES}
    if not any(found.values()):
        library()  # says why there is none
    for platform, loaded in found.items():
        if loaded is None:
            continue
        loaded.jaxglmm_handlers.restype = ctypes.c_char_p
        for name in loaded.jaxglmm_handlers().decode().split():
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform=LIBRARIES[platform])


@functools.cache
def _load(platform: str) -> tuple[NativeStatus, ctypes.CDLL | None]:
    if os.environ.get("JAXGLMM_NATIVE", "").lower() == "off":
        return NativeStatus(False, reason="JAXGLMM_NATIVE=off"), None
    path = library_path(platform)
    if path is None:
        which = "native library" if platform == "cpu" else f"native library for {LIBRARIES[platform]}"
        return NativeStatus(False, reason=f"this installation has no {which}"), None
    status, library = judge(path, jaxlib_api())
    if not status.loaded:
        warnings.warn(f"jaxglmm computes in plain JAX: {status.reason}", RuntimeWarning, stacklevel=2)
    return status, library


def library_path(platform: str = "cpu") -> Path | None:
    """Return the file of the library for a platform, or None.

    In an editable install sources and library lie in different folders; both are on the package's path.
    """
    import jaxglmm

    name = f"_jaxglmm_{platform}" + (
        ".dll" if os.name == "nt" else ".so"
    )  # .so on macOS too: CMake's name for a module
    candidates = [Path(folder) / "_kernels" / name for folder in jaxglmm.__path__]
    return next((path for path in candidates if path.is_file()), None)


def judge(path: Path, framework: tuple[int, int] | None) -> tuple[NativeStatus, ctypes.CDLL | None]:
    """Load the library and compare versions: of these sources, and of XLA FFI with `framework`'s.

    A library that is newer than the running jaxlib must not be registered: JAX's next operation of any kind,
    ours or not, would fail ("Unable to initialize backend 'cpu'"). Nor is a file loaded that is not what was built: one
    that was cut off ends the process.
    """
    if damage := _damage(path):
        return NativeStatus(False, path, f"{path} {damage}; {REMEDY}", None, framework), None
    try:
        library = ctypes.CDLL(str(path))
        api = library.jaxglmm_ffi_api_major(), library.jaxglmm_ffi_api_minor()
        kernels = library.jaxglmm_kernels_version()
    except (OSError, AttributeError) as error:
        return NativeStatus(False, path, f"{path} cannot be loaded ({error}); {REMEDY}", None, framework), None
    reason = ""
    if framework is None:
        reason = "the installed jaxlib does not say which XLA FFI version it speaks"
    elif api[0] != framework[0] or api[1] > framework[1]:
        reason = (
            "{} was built for XLA FFI {}.{}, and the installed jaxlib speaks {}.{}; "
            "install jaxglmm again, or a newer jaxlib".format(path, *api, *framework)
        )
    elif kernels != KERNELS:
        reason = (
            f"{path} was built from other sources (kernels version {kernels}, these sources need {KERNELS}); "
            "install jaxglmm again"
        )
    return NativeStatus(not reason, path, reason, api, framework), None if reason else library


def _damage(path: Path) -> str:
    """Say what is wrong with the file of a library, before it is mapped: its digest, which the build wrote beside it
    (`path` and ".sha256", as sha256sum writes it); where there is none, as of a copy, its length by its own header."""
    try:
        content = path.read_bytes()
        noted = path.with_name(f"{path.name}.sha256")
        if noted.is_file():
            told = noted.read_text().split()
            return "" if told[:1] == [hashlib.sha256(content).hexdigest()] else "is not the file that was built"
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
    if content[:4] == b"\x7fELF":
        return "" if len(content) >= _elf_length(content) else "is cut off"
    return ""


def _elf_length(content: bytes) -> float:
    """Length of an ELF file: the table of sections is its end, or what its segments are loaded from."""
    wide, order = content[4:5] == b"\x02", "<" if content[5:6] == b"\x01" else ">"
    try:
        programs, sections = struct.unpack_from(order + ("QQ" if wide else "II"), content, 32 if wide else 28)
        p_size, p_count, s_size, s_count = struct.unpack_from(order + "4H", content, 54 if wide else 42)
        ends = [sections + s_size * s_count]
        for k in range(p_count):
            at = programs + k * p_size
            offset, size = (
                (*struct.unpack_from(order + "Q", content, at + 8), *struct.unpack_from(order + "Q", content, at + 32))
                if wide
                else (
                    *struct.unpack_from(order + "I", content, at + 4),
                    *struct.unpack_from(order + "I", content, at + 16),
                )
            )
            ends.append(offset + size)
        return max(ends)
    except struct.error:
        return float("inf")


def jaxlib_api() -> tuple[int, int] | None:
    """Return (major, minor) of the XLA FFI that the installed jaxlib speaks; None if unknown."""
    spec = importlib.util.find_spec("jaxlib")  # finds it without importing it
    for folder in (spec and spec.submodule_search_locations) or ():
        header = Path(folder) / "include" / "xla" / "ffi" / "api" / "c_api.h"
        if header.is_file():
            found = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header.read_text()))
            if len(found) == 2:
                return int(found["MAJOR"]), int(found["MINOR"])
    return None


def _setting(variable: str, words: tuple[str, ...]) -> str:
    value = os.environ.get(variable, "").lower()
    if value and value not in words:
        raise DataError(f"{variable}={value} is not known; it may be {' or '.join(words)}, or unset")
    return value
