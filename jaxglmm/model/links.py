"""Link functions: eta = g(mu) and mu = g^-1(eta), elementwise and dtype-keeping."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxglmm.model.special import exp_capped, mills


class Link(NamedTuple):
    """A link: ``forward`` maps mu to eta, ``inverse`` maps eta to mu."""

    forward: Callable
    inverse: Callable


def normal_cdf(eta):
    """Phi(eta) with full relative accuracy in the lower tail."""
    negative = eta < 0
    z = jnp.where(negative, -eta, eta)
    tail = jnp.exp(-0.5 * z * z) / (math.sqrt(2 * math.pi) * mills(z)[0])
    return jnp.where(negative, tail, 1.0 - tail)


def _cauchit(mu):
    low = mu < 0.5
    cotangent = 1.0 / jnp.tan(math.pi * jnp.where(low, mu, 1.0 - mu))
    return jnp.where(low, -cotangent, cotangent)


LINKS = {
    "identity": Link(lambda mu: mu, lambda eta: eta),
    "log": Link(jnp.log, exp_capped),
    "inverse": Link(lambda mu: 1.0 / mu, lambda eta: 1.0 / eta),
    "sqrt": Link(jnp.sqrt, lambda eta: eta * eta),
    "logit": Link(lambda mu: jnp.log(mu) - jnp.log1p(-mu), jax.lax.logistic),
    "probit": Link(jax.scipy.special.ndtri, normal_cdf),
    "cloglog": Link(lambda mu: jnp.log(-jnp.log1p(-mu)), lambda eta: -jnp.expm1(-exp_capped(eta))),
    "cauchit": Link(_cauchit, lambda eta: jnp.arctan2(jnp.ones_like(eta), -eta) / math.pi),
}
