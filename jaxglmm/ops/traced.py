"""Arrays of a caller's that JAX traces, told without importing JAX."""

import sys

from jaxglmm.errors import DataError


ON_ARRAYS = "use jg.solve on a design made by jg.make_design, which jit, grad and vmap go through"


def refuse_traced(**given) -> None:
    """Refuse arguments that are, or are mappings of, arrays that JAX traces.

    Raises
    ------
    DataError
        Naming the argument.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return
    for name, value in given.items():
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        for key, part in parts:
            if isinstance(part, jax.core.Tracer):
                which = name if key is None else f"{key!r} of {name}"
                raise DataError(f"{which} is traced by jax.jit, grad or vmap, and has no values yet: {ON_ARRAYS}")
