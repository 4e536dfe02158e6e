"""The logarithm of a prior density, with derivatives, in the coordinates that an optimiser moves in."""

import functools
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxglmm.design.design import Scaling
from jaxglmm.model.covariance import Covariance
from jaxglmm.model.priors import AbstractPrior


class PriorTerm(eqx.Module):
    """One density and the parameters that have it, independently: columns, or effects of all factors in turn."""

    prior: AbstractPrior
    at: Int[Array, " k"]


@dataclass(frozen=True)
class LogPrior:
    """Sum of log densities in psi = (coefficients of scaled columns, free entries of Lambda, log dispersion).

    The density is one of the coefficients of the columns as they are, and of absolute standard deviations.

    Attributes
    ----------
    terms : tuple of PriorTerm
    scaling : Scaling
    covariances : tuple of Covariance
        Of each grouping factor.
    loads : tuple of (S, S)
        Of each grouping factor: loads Lambda is the factor of the columns as they were written, Lambda that of the
        columns that the optimiser has.
    """

    terms: tuple[PriorTerm, ...]
    scaling: Scaling
    covariances: tuple[Covariance, ...] = ()
    loads: tuple[np.ndarray, ...] = ()

    def __call__(self, beta, rest, columns):
        """(value, gradient, Hessian) for coefficients of `columns` (k,), all others being zero."""
        s = self.scaling
        T = np.zeros((len(s.scale), len(columns)))
        T[columns, np.arange(len(columns))] = 1 / s.scale[columns]
        if s.intercept is not None:
            T[s.intercept] -= (s.center @ T) / s.scale[s.intercept]
        psi = jnp.asarray(np.append(beta, rest))
        value, gradient, hessian = _log_prior(self.terms, psi, jnp.asarray(T), self.loads, self.covariances)
        return float(value), np.asarray(gradient), np.asarray(hessian)


@functools.partial(jax.jit, static_argnames=("covariances",))
def _log_prior(terms, psi, T, loads, covariances):
    def value(psi):
        coefficients = jnp.matmul(T, psi[: T.shape[1]], precision="highest")
        each, first = [jnp.zeros(0)], T.shape[1]
        for covariance, load in zip(covariances, loads, strict=True):
            last = first + len(covariance.diagonal)
            factor = jnp.matmul(load, covariance.raw_factor(psi[first:last]), precision="highest")
            each.append(jnp.sqrt(jnp.sum(jnp.square(factor), axis=1)))
            first = last
        sds = jnp.concatenate(each)
        each = [jnp.sum(t.prior.log_density((sds if t.prior.on_sd else coefficients)[t.at])) for t in terms]
        return sum(each, jnp.zeros(()))

    return value(psi), jax.grad(value)(psi), jax.hessian(value)(psi)
