"""Threads of BLAS, where more of them would be in each other's way."""

import functools
import sys
from contextlib import nullcontext


# Order of a dense matrix from which on BLAS may use all threads.
_MANY_THREADS = 3_000


def calm(order: float = 0.0):
    """BLAS in one thread within this context, unless its matrices are of a large order.

    Its threads wait for each other at each product, and look for work for some 20 ms after each, on processors that the
    kernels' threads need: a pass over the rows between two small systems took twice its time, and products of order
    1,000 on a busy machine twenty times. The setting is the process's; the caller's comes back at the end.
    """
    if order > _MANY_THREADS:
        return nullcontext()
    return _libraries("scipy.linalg" in sys.modules).limit(limits=1, user_api="blas")


@functools.cache
def _libraries(scipy: bool):
    """BLAS libraries in this process: numpy's, and scipy's once that is there. Finding them takes a millisecond."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
