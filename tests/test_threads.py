"""BLAS in one thread where kernels work beside it; the caller's number of threads comes back."""

import threading

import numpy as np
import pytest
import scipy.linalg  # noqa: F401 - loads its BLAS
from threadpoolctl import ThreadpoolController

import jaxglmm as jg
from jaxglmm.ops.threads import calm
from jaxglmm.optimise import marginal_fit


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in ThreadpoolController().info() if library["user_api"] == "blas"}


@pytest.fixture
def three():
    """BLAS of the caller's in three threads."""
    with ThreadpoolController().limit(limits=3, user_api="blas"):
        if blas_threads() != {3}:
            pytest.skip("this BLAS does not say how many threads it uses")
        yield


def test_the_callers_number_comes_back(three):
    with calm(10):
        assert blas_threads() == {1}
        with calm():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == {3}
    with calm(10_000):
        assert blas_threads() == {3}
    with pytest.raises(ZeroDivisionError), calm():
        1 / 0  # noqa: B018
    assert blas_threads() == {3}


def test_another_thread_of_python_takes_nothing_back(three):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with calm():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with calm():
        thread.start()
        assert inside.wait(10)
        assert blas_threads() == {1}
    assert blas_threads() == {3}
    leave.set()
    thread.join()
    assert blas_threads() == {3}


def test_a_fit_leaves_the_callers_number(three, monkeypatch):
    rng = np.random.default_rng(0)
    data = {"g": np.repeat(np.arange(30), 5), "x": rng.normal(size=150)}
    data["y"] = (rng.random(150) < 0.5).astype(int)
    seen, evaluate = [], marginal_fit.evaluate
    monkeypatch.setattr(
        marginal_fit, "evaluate", lambda *args, **options: seen.append(blas_threads()) or evaluate(*args, **options)
    )
    jg.fit("y ~ x + (1 | g)", data, family="binomial")
    assert seen and all(threads == {1} for threads in seen)
    assert blas_threads() == {3}
    with pytest.raises(jg.DataError):
        jg.fit("y ~ x + x2 + (1 | g)", data | {"x2": 2 * data["x"]}, family="binomial")
    assert blas_threads() == {3}
