"""The unknowns of a model, as a pytree."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxglmm.errors import DataError


class Params(eqx.Module):
    """Unknowns of a generalized linear mixed model.

    Attributes
    ----------
    beta : (p,)
        Fixed effects, link scale.
    theta : (q,)
        Log-Cholesky parameters of Lambda (see `Covariance`); empty without random effects.
    log_dispersion : ()
        Natural logarithm of the family's dispersion; ignored by families that have none.
    """

    beta: Float[Array, " p"]
    theta: Float[Array, " q"]
    log_dispersion: Float[Array, ""]


def check_dtypes(params: Params, design) -> None:
    """Refuse float64 arrays while x64 is off: JAX would compute in float32 without a word.

    Raises
    ------
    DataError
    """
    for name, value in (("params.beta", params.beta), ("design.X", design.X), ("design.y", design.y)):
        if jnp.result_type(value) != value.dtype:
            raise DataError(
                f"{name} is {value.dtype}, but JAX computes in {jnp.result_type(value)} while x64 is off: "
                "enter `with jax.enable_x64(True):`, or make the design with dtype=numpy.float32"
            )
