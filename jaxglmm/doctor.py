"""`jaxglmm doctor`: what this installation is, whether its native kernels work, and what to do if not."""

import os
import platform
import sys
import warnings
from dataclasses import asdict, dataclass
from importlib import metadata
from json import dumps, loads
from pathlib import Path


EDITABLE = "pip install -e ."
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "equinox", "formulaic", "narwhals", "pandas", "pyarrow")


@dataclass(frozen=True)
class Check:
    """One thing looked at: `state` is "ok", "note" (it works, but know this) or "problem"."""

    name: str
    state: str
    found: str
    remedy: str = ""


def report() -> list[Check]:
    """Return every check, most basic first. Starts JAX, to see its devices."""
    import jaxglmm

    return [
        Check("jaxglmm", "ok", f"{jaxglmm.__version__} in {_package_folder()}"),
        _installation(),
        Check("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        Check("processors", "ok", str(os.cpu_count())),
        *map(_version, PACKAGES),
        _devices(),
        _native(),
        _cuda(),
        _kernels(),
        _cache(),
    ]


def main(json: bool = False) -> int:
    """Print the report, as a table or as JSON; return 1 if there is a problem, else 0."""
    checks = report()
    if json:
        print(dumps([asdict(check) for check in checks], indent=2))
    else:
        _print(checks)
    return int(any(check.state == "problem" for check in checks))


def install_kind() -> str:
    """Say how the running package came here.

    Returns
    -------
    str
        "editable", "installed", "shadowed" (Python imports a source folder that hides the installed package)
        or "source" (a source folder that was never installed).
    """
    try:
        distribution = metadata.distribution("jaxglmm")
    except metadata.PackageNotFoundError:
        return "source"
    origin = loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        from urllib.parse import unquote, urlparse

        source = Path(unquote(urlparse(origin["url"]).path)) / "jaxglmm"
        return "editable" if _same(source, _package_folder()) else "shadowed"
    return "installed" if _same(str(distribution.locate_file("jaxglmm")), _package_folder()) else "shadowed"


def _installation() -> Check:
    kind, folder = install_kind(), _package_folder()
    if kind == "shadowed":
        return Check(
            "installation",
            "problem",
            f"Python imports the source folder {folder}, which hides the installed package and has no native library",
            f"install the checkout editable ({EDITABLE}), or start Python in another folder",
        )
    if kind == "source":
        return Check(
            "installation",
            "problem",
            f"Python imports the source folder {folder}, which was never installed and has no native library",
            f"in the checkout: {EDITABLE}",
        )
    return Check("installation", "ok", kind)


def _version(name: str) -> Check:
    """Compare a package's version with the one that jaxglmm's own metadata asks for, if they are at hand."""
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "problem", "not installed", f"pip install {name}")
    try:
        from packaging.requirements import Requirement  # comes with matplotlib

        needs = [Requirement(line) for line in metadata.requires("jaxglmm") or ()]
    except (ImportError, metadata.PackageNotFoundError):
        needs = []
    for need in needs:
        if need.name == name and not need.marker and not need.specifier.contains(found, prereleases=True):
            return Check(name, "problem", f"{found}; needed {need.specifier}", f"pip install '{need}'")
    return Check(name, "ok", found)


def _devices() -> Check:
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # whatever keeps JAX from starting is the finding
        return Check(
            "devices",
            "problem",
            f"JAX does not start: {error}",
            "install jax and jaxlib of one version again",
        )
    return Check(
        "devices",
        "ok",
        ", ".join(f"{device.platform}:{device.id} ({device.device_kind})" for device in devices),
    )


def _native() -> Check:
    from jaxglmm.ops.native import REMEDY, native_status

    status = native_status()
    if status.loaded:
        assert status.api is not None and status.jaxlib_api is not None
        versions = "built for XLA FFI {}.{}, jaxlib speaks {}.{}".format(*status.api, *status.jaxlib_api)
        return Check("native library", "ok", f"{status.path} ({versions})")
    if status.path is None:
        asked_off = "JAXGLMM_NATIVE=off" in status.reason
        return Check("native library", "note", f"{status.reason}: plain JAX computes", "" if asked_off else REMEDY)
    return Check("native library", "problem", status.reason)


def _cuda() -> Check:
    from jaxglmm.ops.native import native_status

    name, status = "library for CUDA", native_status("cuda")
    if status.loaded:
        return Check(
            name,
            "note",
            f"{status.path}; its code is tested on CPUs, but was never run on a GPU by its authors",
            "compare it with the CPU before use: python -m bench device (JAXGLMM_KERNELS=plain computes without it)",
        )
    if status.path is not None:
        return Check(name, "problem", status.reason)
    return Check(name, "ok", "not built (on request only): on a GPU the groups' tiles are computed in plain JAX")


def _kernels() -> Check:
    from jaxglmm.ops.native import NativeError, why_plain

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the library is missing is said above
            return Check("kernels in use", "ok", f"plain JAX ({why})" if (why := why_plain()) else "native")
    except (NativeError, ValueError) as error:
        return Check("kernels in use", "problem", str(error))


def _cache() -> Check:
    from jaxglmm.cache import cache_folder

    folder = cache_folder()
    entries = len(list(folder.glob("*-cache"))) if folder.is_dir() else 0
    return Check("compiled programs", "ok", f"{folder} ({entries} kept by the command line)")


def _print(checks: list[Check]) -> None:
    if not sys.stdout.isatty():  # one line a finding, never wrapped, for a bug report
        for check in checks:
            print(f"{check.state:8}{check.name:20}{check.found}" + (f" -> {check.remedy}" if check.remedy else ""))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False)
    style = {"ok": "green", "note": "yellow", "problem": "bold red"}
    for check in checks:
        found = Text(check.found)
        if check.remedy:
            found.append(f"\n→ {check.remedy}", style="bold")
        table.add_row(Text(check.state, style=style[check.state]), check.name, found)
    Console().print(table)


def _package_folder() -> Path:
    return Path(__file__).resolve().parent


def _same(one: str | Path, other: str | Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
