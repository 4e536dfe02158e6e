"""Executables kept between processes: found again for the same call only, and never in the way of a transformation."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxglmm.ops import programs
from jaxglmm.ops.programs import keep_programs, program


@pytest.fixture
def folder(tmp_path):
    keep_programs(tmp_path)
    yield tmp_path
    keep_programs(None)


def fresh():
    """A function as a new process would have it: never traced."""

    @program(static=("exponent",))
    def power(x, *, exponent=2):
        return {"power": x["a"] ** exponent + x["b"]}

    return power


def kept(folder):
    return sorted(path.name for path in folder.iterdir())


X = {"a": np.arange(4.0), "b": 1.0}


def test_without_a_folder_it_is_jit(tmp_path):
    f = fresh()
    np.testing.assert_allclose(f(X)["power"], X["a"] ** 2 + 1)
    assert f.jitted._cache_size() == 1 and not kept(tmp_path)


def test_a_kept_program_is_found_and_neither_traced_nor_compiled_again(folder):
    wanted = fresh()(X)["power"]
    assert len(kept(folder)) == 1
    second = fresh()
    np.testing.assert_array_equal(second(X)["power"], wanted)
    np.testing.assert_array_equal(second({"a": X["a"] + 1, "b": 2.0})["power"], (X["a"] + 1) ** 2 + 2)
    assert second.jitted._cache_size() == 0 and len(kept(folder)) == 1


def test_other_static_arguments_shapes_types_and_structures_are_other_programs(folder):
    f = fresh()
    calls = (
        lambda: f(X),
        lambda: f(X, exponent=3),
        lambda: f({**X, "a": np.arange(5.0)}),
        lambda: f({**X, "a": np.arange(4)}),
        lambda: f({**X, "c": 1.0}),
    )
    for count, call in enumerate(calls, start=1):
        call()
        assert len(kept(folder)) == count
    f(X, exponent=2)  # the default, spelt out
    assert len(kept(folder)) == len(calls)
    with jax.enable_x64(True):
        assert f(X)["power"].dtype == np.float64
    assert len(kept(folder)) == len(calls) + 1


def test_transformations_pass_through(folder):
    f = fresh()
    of = lambda a: jnp.sum(f({"a": a, "b": 0.0}, exponent=3)["power"])
    np.testing.assert_allclose(jax.grad(of)(X["a"]), 3 * X["a"] ** 2)
    np.testing.assert_allclose(jax.vmap(lambda a: f({"a": a, "b": 0.0})["power"])(X["a"]), X["a"] ** 2)
    assert not kept(folder)
    assert "stablehlo" in f.lower(X).as_text()


def test_what_has_no_name_in_another_process_is_not_kept(folder):
    applied = program(static=("h",))(lambda x, *, h: h(x))
    np.testing.assert_allclose(applied(np.ones(2), h=lambda x: 2 * x), 2.0)
    assert not kept(folder)


def test_a_damaged_file_is_replaced(folder):
    wanted = fresh()(X)["power"]
    (path,) = folder.iterdir()
    path.write_bytes(b"no program")
    np.testing.assert_array_equal(fresh()(X)["power"], wanted)
    again = fresh()
    again(X)
    assert again.jitted._cache_size() == 0 and len(kept(folder)) == 1


def test_a_folder_that_cannot_be_written_is_no_error(folder):
    keep_programs(folder / "gone")
    np.testing.assert_allclose(fresh()(X)["power"], X["a"] ** 2 + 1)


def test_programs_unused_for_long_are_removed(folder):
    for name, days in ((f"old{programs._SUFFIX}", 31), (f"new{programs._SUFFIX}", 29), ("other", 99)):
        (folder / name).write_text("")
        os.utime(folder / name, (time.time() - 86400 * days,) * 2)
    fresh()(X)
    assert len(kept(folder)) == 3 and f"old{programs._SUFFIX}" not in kept(folder)
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    fresh()(X)  # reading counts as use
    assert sum(path.stat().st_mtime > 0 for path in folder.iterdir()) == 1


def test_a_flipped_bit_is_never_read(folder, monkeypatch):
    """What is in the file could do anything: it is a pickle, and machine code."""
    wanted = fresh()(X)["power"]
    (path,) = folder.iterdir()
    content = path.read_bytes()
    monkeypatch.setattr(programs.pickle, "loads", lambda _: pytest.fail("it was read"))
    for at in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        np.testing.assert_array_equal(fresh()(X)["power"], wanted)
        assert [p.name for p in folder.iterdir()] == [path.name]


ENDS = """
import hashlib, os, pickle, sys
from pathlib import Path
import numpy as np
from jaxglmm.ops import programs

folder = Path({folder!r})
programs.keep_programs(folder)
f = programs.program()(lambda x: x + 1)
if {plant}:
    f(np.ones(3))
    (path,) = folder.iterdir()
    ends = type("Ends", (), {{"__reduce__": lambda self: (os._exit, (9,))}})
    content = pickle.dumps(ends())
    path.write_bytes(hashlib.sha256(content).digest() + content)
    f = programs.program()(lambda x: x + 1)
print(f(np.ones(3)))
"""


def test_a_program_that_ends_the_process_is_met_once(tmp_path, run_python):
    with pytest.raises(AssertionError):
        run_python(ENDS.format(folder=str(tmp_path), plant=True))
    assert [p.suffix for p in tmp_path.iterdir()] == [".trial"]
    assert run_python(ENDS.format(folder=str(tmp_path), plant=False)) == "[2. 2. 2.]"
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".program", ".trial"]


def test_an_interrupt_puts_a_program_back(folder, monkeypatch):
    fresh()(X)

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(programs.pickle, "loads", interrupted)
        fresh()(X)
    assert [p.suffix for p in folder.iterdir()] == [".program"]
