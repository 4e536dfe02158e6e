"""Run the tests that call the CPU library with another build of it: instrumented.py FOLDER [PYTEST ARGUMENT ...].

FOLDER has _kernels/_jaxglmm_cpu.so, which is taken before the installed one. Ends with the exported functions that were
called, and fails where one was not (unless arguments choose the tests). See sanitize.sh.
"""

import collections
import re
import sys
from pathlib import Path

import pytest

import jaxglmm
from jaxglmm.ops import native


ROOT = Path(__file__).resolve().parents[2]
FILES = """
    test_native test_native_fuzz test_fused test_modes test_nested test_pair_products test_pairs test_moments
    test_layout test_lattices test_lane_pass test_gaussian_lanes test_group_posterior test_stratum_rows test_encoder
    test_host_fuzz
""".split()


def exported() -> set[str]:
    """Names that the library's sources export, but those that only tell of it, and one that tests open it anew for."""
    sources = "".join(path.read_text() for path in sorted((ROOT / "kernels/cpu").glob("*.cc")))
    found = re.findall(r"^(?:JAXGLMM_EXPORT|extern \"C\")[^;{]*?\b(jaxglmm_\w+)\(", sources, re.MULTILINE)
    found += re.findall(r"^JAXGLMM_HANDLER\((jaxglmm_\w+)", sources, re.MULTILINE)
    others = ("ffi_api_major", "ffi_api_minor", "kernels_version", "handlers", "elementary")
    return set(found) - {f"jaxglmm_{name}" for name in others}


def main(folder: str, *arguments: str) -> int:
    """Returns the exit status."""
    jaxglmm.__path__.insert(0, folder)
    status = native.native_status()
    assert str(status.path).startswith(folder), f"{status}: {status.path}"
    calls = collections.Counter()
    call = native.call

    def counted(kernel, *operands, **attributes):
        calls[f"jaxglmm_{kernel}"] += 1
        return call(kernel, *operands, **attributes)

    def count(result, function, _):
        calls[function.__name__] += 1
        return result

    native.call = counted
    for name in exported():
        getattr(native.library(), name).errcheck = count
    files = [str(ROOT / "tests" / f"{name}.py") for name in FILES]
    options = ["-p", "no:faulthandler", "-p", "no:cacheprovider", "--capture=sys", "-q", f"--rootdir={ROOT}"]
    failed = pytest.main([*options, *(arguments or files)])
    for name in sorted(exported()):
        print(f"{name}: {calls[name]} calls")
    missing = sorted(name for name in exported() if not calls[name])
    if missing and not arguments:
        print("not called:", *missing)
    return int(failed) or int(bool(missing) and not arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
