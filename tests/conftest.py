"""What every test shares: float64 by context, the reference results, the state of the native library."""

import os
import subprocess
import sys
import warnings
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent


def compile_quickly() -> dict[str, str]:
    """Have XLA compile without its optimisations in the tests' own processes; returns how, as an environment.

    Two thirds of the tests' time would be XLA's compiler at work on programs that then run for milliseconds. What an
    optimised program computes differs by rounding only, and every tolerance holds with either. Processes that tests
    start (the command line, the documentation, cold starts) and the native kernels are as users have them; with
    XLA_FLAGS set, `XLA_FLAGS= python -m pytest`, so is everything.
    """
    if "XLA_FLAGS" in os.environ:
        return {}
    flags = ["--xla_backend_optimization_level=0"]
    if version("jaxlib").startswith("0.10."):  # a flag that jaxlib does not know ends the process
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)
    import jax

    jax.devices()  # reads them
    return {"XLA_FLAGS": os.environ.pop("XLA_FLAGS")}


COMPILER = compile_quickly()


def pytest_report_header(config) -> str:
    """Say which code the tests run on: a checkout that was never installed silently has no library."""
    from jaxglmm.ops.native import NativeError, native_status, why_plain

    try:
        return f"jaxglmm: {f'plain JAX ({why})' if (why := why_plain()) else native_status()}"
    except NativeError as error:
        return f"jaxglmm: {error}"


def pytest_configure(config) -> None:
    """Have it said here that there is no library, where that is no error."""
    from jaxglmm.ops.native import NativeError, use_native

    with suppress(NativeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        use_native()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    """Leave out what is marked `native` where plain JAX computes; an error where the environment insists otherwise."""
    from jaxglmm.ops.native import why_plain

    if item.get_closest_marker("native") and (why := why_plain()):
        pytest.skip(f"native kernels are not in use: {why}")


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory):
    """Keep the command line's compiled programs in the tests' folder, one for each worker.

    JAX's cache writes its files in place, so two processes sharing a folder could read a half-written one.
    """
    os.environ["JAXGLMM_CACHE"] = str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Forget compiled programs after a file of tests that leaves the process with many memory maps.

    Every program has maps of its own, and XLA's compiler ends the process by a segmentation fault where the system
    grants no more (Linux: vm.max_map_count). One file has been seen to add 30 % of what there are.
    """
    yield
    maps, limit = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
    if limit.is_file() and maps.read_text().count("\n") > int(limit.read_text()) / 3:
        import jax

        jax.clear_caches()


@pytest.fixture(autouse=True)
def command_line_leaves_no_trace():
    """After a test that ran the command line in this process, end its cache: other tests count compilations."""
    yield
    programs = sys.modules.get("jaxglmm.ops.programs")
    if programs is not None and programs._folder is not None:
        import jax
        from jax.experimental.compilation_cache import compilation_cache

        programs.keep_programs(None)
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


@pytest.fixture
def x64():
    """Run one test with float64 enabled in JAX; the global configuration is never changed."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Return the folder of other programs' results: `$JAXGLMM_REFERENCE`, else beside the repository.

    With JAXGLMM_REFERENCE=require, as in CI, it is an error where that is missing.
    """
    named = os.environ.get("JAXGLMM_REFERENCE", "")
    folder = ROOT.parent / "shared" / "reference" if named in ("", "require") else Path(named)
    if not folder.is_dir():
        missing = f"reference results: no folder {folder}; name theirs by JAXGLMM_REFERENCE"
        pytest.fail(missing) if named == "require" else pytest.skip(missing)
    return folder


@pytest.fixture(scope="session")
def same_compiler() -> dict[str, str]:
    """Return the environment of a process that is to compute the same bits as this one."""
    return COMPILER


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """Return a function that runs code in a fresh interpreter and returns what it printed."""

    def run(code: str, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, **env},
            cwd=tmp_path_factory.getbasetemp(),  # not the checkout, so that what is installed is imported
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
