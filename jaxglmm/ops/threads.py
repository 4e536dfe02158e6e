"""Threads of BLAS, where more of them would be in each other's way."""

import functools
import sys
import threading
from contextlib import contextmanager


# Order of a dense matrix from which on BLAS may use all threads.
_MANY_THREADS = 3_000

_lock = threading.Lock()
_inside = threading.local()  # .many: whether the innermost context of this thread is for large matrices
_holders = {True: 0, False: 0}  # threads of Python whose innermost context is for large matrices, and for small ones
_limit = None


@contextmanager
def calm(order: float = 0.0):
    """BLAS in one thread within this context, unless its matrices are of a large order.

    Its threads wait for each other at each product, and look for work for some 20 ms after each, on processors that the
    kernels' threads need: a pass over the rows between two small systems took twice its time, and products of order
    1,000 on a busy machine twenty times. The setting is the process's: it holds while any of our threads is within such
    a context and none within one for large matrices, and the caller's comes back with the last.
    """
    outer, inner = getattr(_inside, "many", None), order > _MANY_THREADS
    _change(outer, inner)
    try:
        yield
    finally:
        _change(inner, outer)


def _change(before: bool | None, after: bool | None) -> None:
    global _limit
    with _lock:
        _inside.many = after
        if before is not None:
            _holders[before] -= 1
        if after is not None:
            _holders[after] += 1
        limited = _holders[False] > 0 and _holders[True] == 0
        if limited and _limit is None:
            _limit = _libraries("scipy.linalg" in sys.modules).limit(limits=1, user_api="blas")
        elif not limited and _limit is not None:
            _limit.restore_original_limits()
            _limit = None


@functools.cache
def _libraries(scipy: bool):
    """BLAS libraries in this process: numpy's, and scipy's once that is there. Finding them takes a millisecond."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
