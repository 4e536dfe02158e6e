"""The native library: that it is there where it must be, what it computes, and how it is refused."""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxglmm.ops import native


def test_the_library_is_loaded_where_it_is_required():
    if os.environ.get("JAXGLMM_NATIVE") != "require":
        pytest.skip("JAXGLMM_NATIVE is not require")
    status = native.native_status()
    assert status.loaded, status.reason
    assert status.path is not None and status.path.parent.name == "_kernels"


def test_status_starts_no_jax(run_python):
    code = "import sys; from jaxglmm import native_status; native_status(); print('jax' in sys.modules)"
    assert run_python(code) == "False"


def total_in_numpy(v, sizes):
    """Sum tile by tile: block b is (sizes[b], R / sizes[b]), k-major."""
    out = np.empty_like(v)
    for block, size in enumerate(sizes):
        tile = v[..., block, :].reshape(*v.shape[:-2], size, -1)
        total = np.broadcast_to(tile.sum(-2, keepdims=True), tile.shape)
        out[..., block, :] = total.reshape(v[..., block, :].shape)
    return out


def group_total(v, sizes):
    import jax

    return native.call("group_total", jax.ShapeDtypeStruct(v.shape, v.dtype), v, sizes)


def kernel_errors():
    """A handler's InvalidArgument comes as either, by whether JAX waits for it."""
    import jax

    return ValueError, jax.errors.JaxRuntimeError


def example(lead=(), blocks=7, slots=480, dtype=np.float64, seed=1):
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32], blocks).astype(np.int32)
    return rng.normal(size=(*lead, blocks, slots)).astype(dtype), sizes


@pytest.mark.native
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lead, blocks", [((), 1), ((), 7), ((), 700), ((3,), 5), ((2, 3), 70)])
def test_group_total(x64, lead, blocks, dtype):
    v, sizes = example(lead, blocks, dtype=dtype)
    total = group_total(v, sizes)
    assert total.dtype == dtype
    tolerance = 32 * np.finfo(dtype).eps
    np.testing.assert_allclose(total, total_in_numpy(v, sizes), rtol=tolerance, atol=10 * tolerance)


@pytest.mark.native
def test_group_total_of_nothing(x64):
    assert group_total(np.zeros((0, 480)), np.zeros(0, np.int32)).shape == (0, 480)


@pytest.mark.native
def test_group_total_under_jit_and_nested_vmap(x64):
    import jax

    v, sizes = example((2, 3), 5)
    other_sizes = np.stack([sizes, sizes[::-1]])
    want = np.stack([total_in_numpy(v[i], other_sizes[i]) for i in range(2)])

    both = jax.jit(jax.vmap(jax.vmap(group_total, (0, None)), (0, 0)))  # sizes batched by the outer one only
    np.testing.assert_allclose(both(v, other_sizes), want, rtol=1e-13, atol=1e-13)

    only_sizes = jax.vmap(group_total, (None, 0))(v[0, 0], other_sizes)  # v not batched at all
    want = np.stack([total_in_numpy(v[0, 0], s) for s in other_sizes])
    np.testing.assert_allclose(only_sizes, want, rtol=1e-13, atol=1e-13)


@pytest.mark.native
@pytest.mark.parametrize("bad", [0, -3, 7, 481, 2**30])
def test_group_total_names_a_bad_size(x64, bad):
    v, sizes = example()
    sizes[4] = bad
    with pytest.raises(kernel_errors(), match=rf"sizes\[4\] = {bad} does not divide .* 480 slots"):
        group_total(v, sizes).block_until_ready()


@pytest.mark.native
@pytest.mark.parametrize(
    "v_shape, sizes_shape, out_shape",
    [
        ((480,), (1,), (480,)),
        ((7, 480), (6,), (7, 480)),
        ((7, 480), (7,), (7, 240)),
        ((7, 480), (7,), (8, 480)),
        ((2, 7, 480), (7,), (7, 480)),
        ((3, 7, 480), (7,), (2, 7, 480)),
    ],
)
def test_group_total_names_bad_shapes(x64, v_shape, sizes_shape, out_shape):
    import jax

    out = jax.ShapeDtypeStruct(out_shape, np.float64)
    with pytest.raises(kernel_errors(), match=r"group_total: .*result"):
        native.call("group_total", out, np.ones(v_shape), np.ones(sizes_shape, np.int32)).block_until_ready()


@pytest.mark.native
def test_group_total_passes_nan_through_its_group_only(x64):
    v, sizes = np.ones((1, 12)), np.array([3], np.int32)
    v[0, 1] = np.nan  # first row of the second of four groups
    total = np.asarray(group_total(v, sizes)).reshape(3, 4)
    assert np.isnan(total[:, 1]).all() and (total[:, [0, 2, 3]] == 3).all()


@pytest.mark.native
@pytest.mark.parametrize("threads", [1, 2])
def test_group_total_has_the_same_bits_for_any_number_of_threads(run_python, threads):
    code = f"""
import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{threads}])
import jax, numpy as np
from jaxglmm.ops import native
v = np.random.default_rng(1).normal(size=(400, 480)).astype(np.float32)
sizes = np.resize(np.array([1, 3, 8, 32], np.int32), 400)
out = native.call("group_total", jax.ShapeDtypeStruct(v.shape, v.dtype), v, sizes)
def total(block, size):
    tile = block.reshape(size, -1)
    return np.broadcast_to(np.add.accumulate(tile, 0)[-1], tile.shape).ravel()
want = np.stack([total(block, size) for block, size in zip(v, sizes)])
print(np.array_equal(out, want))
"""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < threads:
        pytest.skip(f"cannot run on {threads} processors")
    assert run_python(code) == "True"  # bit for bit: the rows are added in order


def write_library(folder, **numbers):
    """Build a library that says these numbers of itself, to be judged."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, out = folder / "fake.c", folder / "_jaxglmm_cpu.so"
    source.write_text("\n".join(f"int jaxglmm_{name}(void) {{ return {n}; }}" for name, n in numbers.items()))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", out, source], check=True)
    return out


@pytest.mark.parametrize(
    "api, framework, kernels, word",
    [
        ((0, 1), (0, 3), 0, ""),
        ((0, 3), (0, 3), 0, ""),
        ((0, 4), (0, 3), 0, "built for XLA FFI 0.4"),
        ((1, 0), (0, 3), 0, "speaks 0.3"),
        ((0, 3), (1, 0), 0, "speaks 1.0"),
        ((0, 3), None, 0, "does not say"),
        ((0, 3), (0, 3), 1, "built from other sources"),
    ],
)
def test_a_library_that_does_not_fit_is_refused(tmp_path, api, framework, kernels, word):
    path = write_library(tmp_path, ffi_api_major=api[0], ffi_api_minor=api[1], kernels_version=native.KERNELS + kernels)
    status, library = native.judge(path, framework)
    assert status.loaded == (library is not None) == (word == "")
    assert word in status.reason and status.path == path


def test_a_file_that_is_no_library_is_refused(tmp_path):
    path = tmp_path / "_jaxglmm_cpu.so"
    path.write_bytes(b"not a library")
    status, library = native.judge(path, (0, 3))
    assert library is None and "cannot be loaded" in status.reason and str(path) in status.reason


@pytest.mark.parametrize("native_word, kernels_word", itertools.product(["", "off"], ["", "plain", "native"]))
def test_what_the_environment_asks_for(run_python, native_word, kernels_word):
    code = """
from jaxglmm.ops.native import NativeError, native_status, use_native
try: print(use_native("cpu") == native_status().loaded, use_native("cpu"), use_native("cuda"))
except NativeError as error: print(error)
"""
    printed = run_python(code, JAXGLMM_NATIVE=native_word, JAXGLMM_KERNELS=kernels_word)
    loaded = native.native_status().loaded and native_word != "off"
    if kernels_word == "native" and not loaded:
        assert printed.startswith("JAXGLMM_KERNELS=native, but ") and "doctor" in printed
    elif kernels_word == "plain":
        assert printed.endswith("False False")
    else:
        assert printed == f"True {loaded} False"


@pytest.mark.parametrize(("word", "times"), [("", 1), ("off", 0)])
def test_a_missing_library_is_told_once(run_python, word, times):
    code = """
import warnings
from jaxglmm.ops import native
native.library_path = lambda platform="cpu": None
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    print(native.use_native(), native.use_native(), len(told), *(w.message for w in told))
"""
    printed = run_python(code, JAXGLMM_NATIVE=word, JAXGLMM_KERNELS="")
    assert printed.startswith(f"False False {times}") and ("C++ compiler" in printed) == (times == 1)


def test_an_unknown_word_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("JAXGLMM_KERNELS", "fast")
    with pytest.raises(ValueError, match="JAXGLMM_KERNELS=fast is not known; it may be native or plain"):
        native.use_native()


def test_a_library_for_cuda_is_registered_with_cuda_alone(monkeypatch):
    """Its handlers only; and only what it has is asked of it."""
    monkeypatch.delenv("JAXGLMM_KERNELS", raising=False)
    import types

    import jax

    import jaxglmm as jg
    from jaxglmm.design.design import make_design
    from jaxglmm.ops import fused, moments

    design, _ = make_design(np.ones(4), np.ones((4, 1)), codes=np.array([0, 0, 1, 1]), blocked=False)
    handlers = lambda *names: types.SimpleNamespace(
        jaxglmm_handlers=lambda: " ".join(names).encode(), **dict.fromkeys(names, "function")
    )
    libraries = {"cpu": handlers("a", "b"), "cuda": handlers("a")}
    monkeypatch.setattr(native, "_load", lambda platform: (native.NativeStatus(True), libraries[platform]))
    found = []
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda name, _, platform: found.append((name, platform)))
    monkeypatch.setattr(jax.ffi, "pycapsule", lambda function: function)
    native._register.__wrapped__()
    assert found == [("a", "cpu"), ("b", "cpu"), ("a", "CUDA")]

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    gpu = lambda version: [types.SimpleNamespace(client=types.SimpleNamespace(platform_version=version))]
    monkeypatch.setattr(jax, "devices", lambda _: gpu("rocm 60000"))
    assert not fused.covers(jg.Binomial(), design)
    monkeypatch.setattr(jax, "devices", lambda _: gpu("PJRT C API\ncuda 12090"))
    assert fused.covers(jg.Binomial(), design) and not moments.covers(jg.Binomial(), design)
    assert not fused.covers(jg.Beta(), design)
    libraries["cuda"] = None
    monkeypatch.setattr(native, "_load", lambda platform: (native.NativeStatus(platform == "cpu"), libraries[platform]))
    assert not fused.covers(jg.Binomial(), design)


@pytest.mark.native
@pytest.mark.skipif(sys.platform != "linux", reason="lengths of ELF files")
@pytest.mark.parametrize("noted", [True, False], ids=["digest", "length"])
def test_a_damaged_library_is_not_loaded(tmp_path, noted):
    """One that is cut off ends the process where it is loaded."""
    library = native.library_path()
    assert library is not None
    content = library.read_bytes()
    path, framework = tmp_path / "library.so", native.jaxlib_api()
    if noted:
        path.with_name("library.so.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  library.so\n")
    path.write_bytes(content)
    assert not native._damage(path)
    for length in (0, 10, 60, 4096, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        status, library = native.judge(path, framework)
        assert not status.loaded and library is None and str(path) in status.reason and "install" in status.reason
    if noted:
        path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
        assert "is not the file that was built" in native.judge(path, framework)[0].reason
