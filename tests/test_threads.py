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


AT_ONCE = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np, scipy.linalg
from threadpoolctl import ThreadpoolController
from jaxglmm.ops.threads import calm

numbers = lambda: {lib["num_threads"] for lib in ThreadpoolController().info() if lib["user_api"] == "blas"}
before = numbers()
first, second = threading.Event(), threading.Event()

def early():
    with calm():
        first.set()
        second.wait(10)

def late():
    first.wait(10)
    with calm():
        second.set()
        one.join()

one, other = threading.Thread(target=early), threading.Thread(target=late)
for thread in (one, other):
    thread.start()
other.join()
assert numbers() == before, numbers()

def work(seed):
    for pause in np.random.default_rng(seed).uniform(0, 2e-3, 30):
        with calm():
            time.sleep(pause)

with ThreadPoolExecutor(8) as pool:
    list(pool.map(work, range(8)))
assert numbers() == before, numbers()
with calm():
    print(*numbers())
print(*numbers())
"""


def test_threads_that_are_within_at_once_leave_the_callers_number(run_python):
    """The one that came second found 1, and put that back."""
    assert run_python(AT_ONCE, OPENBLAS_NUM_THREADS="2").split() in (["1", "2"], ["1", "1"])


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
