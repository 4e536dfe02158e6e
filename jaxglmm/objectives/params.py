"""The unknowns of a model, as a pytree."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxglmm.arguments import a_design, floats, instance
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


def check_params(params: Params, design) -> None:
    """Refuse what is no point in the parameters of a design, and what `check_dtypes` refuses.

    Raises
    ------
    DataError
    """
    instance("Params", "jg.Params(beta, theta, log_dispersion)")("params", params)
    a_design("design", design)
    q = sum(len(term.covariance.entries[0]) for term in design.terms)
    for name, shape in (("beta", design.X.shape[1:]), ("theta", (q,)), ("log_dispersion", ())):
        value = getattr(params, name)
        floats(f"params.{name}", value)
        if value.shape != shape:
            raise DataError(f"params.{name} must have shape {shape} for this design; found {value.shape}")
    check_dtypes(params, design)


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
