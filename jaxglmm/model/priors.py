"""Prior densities of fixed effects and of random effects' standard deviations, for fits at the posterior mode."""

import abc
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array

from jaxglmm.arguments import number


class AbstractPrior(eqx.Module):
    """Density of one parameter, on its own scale."""

    on_sd: eqx.AbstractClassVar[bool]  # of a standard deviation, otherwise of a coefficient

    @abc.abstractmethod
    def log_density(self, x: Array) -> Array:
        """Logarithm of the density at x, elementwise; a standard deviation is at least 0."""

    def __str__(self) -> str:
        return f"{type(self).__name__.removesuffix('Prior')}({', '.join(f'{v:g}' for v in vars(self).values())})"

    def to_json(self) -> dict:
        """Plain values that `prior_from_json` takes."""
        return {"prior": type(self).__name__} | {name: float(v) for name, v in vars(self).items()}


class NormalPrior(AbstractPrior):
    """Normal prior of a fixed effect.

    Attributes
    ----------
    scale : float
        Standard deviation.
    mean : float
    """

    on_sd: ClassVar[bool] = False
    scale: float
    mean: float = 0.0

    def __check_init__(self):
        _positive(self, scale=self.scale)
        _numbers(self, number(), mean=self.mean)

    def log_density(self, x):
        return -0.5 * jnp.square((x - self.mean) / self.scale) - jnp.log(self.scale) - 0.5 * math.log(2 * math.pi)


class StudentPrior(AbstractPrior):
    """Student's t prior of a fixed effect: t with 7 degrees of freedom and scale 2.5 is weakly informative on the logit
    scale (Gelman et al. 2008 have the Cauchy, df = 1).

    Attributes
    ----------
    df, scale, mean : float
    """

    on_sd: ClassVar[bool] = False
    df: float = 7.0
    scale: float = 2.5
    mean: float = 0.0

    def __check_init__(self):
        _positive(self, df=self.df, scale=self.scale)
        _numbers(self, number(), mean=self.mean)

    def log_density(self, x):
        return _student(x - self.mean, self.df, self.scale)


class HalfStudentPrior(AbstractPrior):
    """Half-t prior of a standard deviation (Gelman 2006).

    Attributes
    ----------
    df, scale : float
        df = 1 is the half-Cauchy.
    """

    on_sd: ClassVar[bool] = True
    df: float = 3.0
    scale: float = 2.5

    def __check_init__(self):
        _positive(self, df=self.df, scale=self.scale)

    def log_density(self, x):
        return math.log(2) + _student(x, self.df, self.scale)


def HalfCauchyPrior(scale: float = 2.5) -> HalfStudentPrior:
    """Half-Cauchy prior of a standard deviation: `HalfStudentPrior` with one degree of freedom."""
    return HalfStudentPrior(1.0, scale)


class GammaPrior(AbstractPrior):
    """Gamma prior of a standard deviation. With shape 2 and a small rate it is linear near zero, so that the mode is
    never there, and hardly informative elsewhere (Chung et al. 2013).

    Attributes
    ----------
    shape, rate : float
    """

    on_sd: ClassVar[bool] = True
    shape: float = 2.0
    rate: float = 1e-4

    def __check_init__(self):
        _positive(self, shape=self.shape, rate=self.rate)

    def log_density(self, x):
        constant = self.shape * jnp.log(self.rate) - gammaln(self.shape)
        return constant + (self.shape - 1) * jnp.log(x) - self.rate * x


class UniformShrinkagePrior(AbstractPrior):
    """Prior of a standard deviation tau under which the shrinkage scale^2/(scale^2 + tau^2) is uniform on (0, 1).

    The density is 2 tau scale^2 / (scale^2 + tau^2)^2, its median `scale`: linear near zero, so that the mode is not
    there, with a tail as tau^-3 (Strawderman 1971, Ann. Math. Stat. 42, 385; Daniels 1999, Can. J. Stat. 27, 567).

    Attributes
    ----------
    scale : float
    """

    on_sd: ClassVar[bool] = True
    scale: float = 0.75

    def __check_init__(self):
        _positive(self, scale=self.scale)

    def log_density(self, x):
        return math.log(2) + 2 * jnp.log(self.scale) + jnp.log(x) - 2 * jnp.log(self.scale**2 + jnp.square(x))


def prior_from_json(saved: dict) -> AbstractPrior:
    """The prior that `to_json` described."""
    kinds = (NormalPrior, StudentPrior, HalfStudentPrior, GammaPrior, UniformShrinkagePrior)
    known = {kind.__name__: kind for kind in kinds}
    return known[saved["prior"]](**{name: value for name, value in saved.items() if name != "prior"})


def _student(x, df, scale):
    constant = gammaln(0.5 * (df + 1)) - gammaln(0.5 * df) - 0.5 * jnp.log(df * math.pi) - jnp.log(scale)
    return constant - 0.5 * (df + 1) * jnp.log1p(jnp.square(x / scale) / df)


def _positive(prior, **values):
    _numbers(prior, number(above=0), **values)


def _numbers(prior, rule, **values):
    for name, value in values.items():
        if not isinstance(value, jax.Array):  # may be traced, or a vector of them
            rule(f"{type(prior).__name__}: {name}", value)
