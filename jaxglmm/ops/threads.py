"""Threads of BLAS, where more of them would be in each other's way."""

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator


# Order of a dense matrix from which on BLAS may use all threads.
_MANY_THREADS = 3_000

_lock = threading.Lock()
_held = False  # whether some thread holds the threads that all of the process share


@contextlib.contextmanager
def calm(order: float = 0.0) -> Iterator[None]:
    """BLAS in one thread within this context, unless its matrices are of a large order.

    Its threads wait for each other at each product, and look for work for some 20 ms after each, on processors that the
    kernels' threads need: a pass over the rows between two small systems took twice its time, and products of order
    1,000 on a busy machine twenty times. The caller's setting comes back at the end.

    Where it is the process's, one thread of Python at a time sets it and puts it back: another that is within at once
    would find 1, and put that back for good.
    """
    global _held
    if order > _MANY_THREADS:
        yield
        return
    libraries = _libraries("scipy.linalg" in sys.modules)
    with _lock:
        holder, _held = not _held, True
        if not holder:
            libraries = libraries.select(internal_api="mkl", threading_layer="openmp")  # settings of each thread
        limit = libraries.limit(limits=1, user_api="blas")
    try:
        with limit:
            yield
    finally:
        if holder:
            with _lock:
                _held = False


@functools.cache
def _libraries(scipy: bool):
    """BLAS libraries in this process: numpy's, and scipy's once that is there. Finding them takes a millisecond."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
