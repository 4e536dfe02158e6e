"""Threads of BLAS, where more of them would be in each other's way."""

import contextlib


# Order of a dense matrix from which on BLAS may use all threads.
_MANY_THREADS = 3_000


def calm(order: float):
    """BLAS in one thread within this context, where the matrices are of a small order: on a busy machine its threads
    wait for each other at each product, which at order 1,000 was seen to cost twenty times the arithmetic."""
    if order > _MANY_THREADS:
        return contextlib.nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1, user_api="blas")
