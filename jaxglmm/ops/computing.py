"""Where JAX computes for a caller: in double precision under any settings of the caller's, or refused at once."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.core import Tracer

import jaxglmm
from jaxglmm.errors import DataError
from jaxglmm.ops.traced import ON_ARRAYS


# Settings that are there to find faults in the caller's own code, what ours needs, and how it is set for a while.
_SETTINGS = (
    ("jax_numpy_rank_promotion", "allow", jax.numpy_rank_promotion),
    ("jax_numpy_dtype_promotion", "standard", jax.numpy_dtype_promotion),
    ("jax_debug_nans", False, jax.debug_nans),  # a trial point may be without a value
    ("jax_debug_infs", False, jax.debug_infs),
)
_WAYS = ("", "_host_to_device", "_device_to_device", "_device_to_host")


def anywhere() -> np.errstate:
    """Within, NumPy says nothing of numbers without a value: points of a search may lie anywhere."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


@contextlib.contextmanager
def computing(x64: bool = True) -> Iterator[None]:
    """Within, JAX has what this package needs of it: float64, unless `x64` is False, ranks and types promoted.

    The setting is this thread's, and the caller's comes back at the end.

    Raises
    ------
    DataError
        In a process that was forked from one in which JAX ran: its threads are not here, and whatever waits for them
        waits for ever. While JAX traces a function of the caller's, where there are no numbers to judge a search by.
    """
    if jaxglmm._forked:
        raise DataError(
            "this process was forked from one in which JAX ran, and would wait for its threads for ever: start "
            "processes by multiprocessing.get_context('spawn') or 'forkserver', or do this before forking"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(x64))
        for name, needed, setting in _SETTINGS:
            if getattr(jax.config, name) != needed:
                stack.enter_context(setting(needed))
        if any(getattr(jax.config, f"jax_transfer_guard{way}") not in (None, "allow") for way in _WAYS):
            stack.enter_context(jax.transfer_guard("allow"))
        if isinstance(jax.device_put(np.float32(0)), Tracer):
            raise DataError(f"this looks at numbers, and cannot run within jax.jit: {ON_ARRAYS}")
        yield
