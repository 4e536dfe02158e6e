"""Counts: Poisson and negative binomial."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy

from jaxglmm.model.family import AbstractFamily, Derivatives, refuse
from jaxglmm.model.special import exp_capped, lgamma_rise, log1pmx


def _check_counts(family, y, weight, column, rows, means=False):
    """`means`: whether y may be the mean of as many whole numbers as its weight says."""
    y, weight = np.asarray(y, np.float64), np.asarray(weight, np.float64)
    live = weight > 0
    refuse(
        live & ~(y >= 0), y, column, rows, family, "a count of 0 or more",
        "Check the column for codes that stand for missing values; a response that may be negative needs "
        "family='gaussian'.",
    )  # fmt: skip
    part = live & (y != np.floor(y))
    if means and part.any():
        total = weight * y
        part &= (weight != np.floor(weight)) | (np.abs(total - np.round(total)) > 1e-6 * np.maximum(total, 1))
    refuse(
        part, y, column, rows, family, "a whole number",
        "For a rate model the count with offset(log(exposure)); for a positive measurement use family='gamma'.",
    )  # fmt: skip


def _total(y, weight):
    """Events of all copies of a row."""
    total = np.asarray(weight) * y
    return np.where(np.abs(total - np.round(total)) < 1e-6 * np.maximum(total, 1), np.round(total), total)


def _mean_count(y, weight):
    total = max(float(np.sum(weight)), 1e-300)
    return max(float(np.sum(np.asarray(weight) * y)), 0.5) / total


class Poisson(AbstractFamily):
    """Counts with variance equal to the mean: l = weight [y log mu - mu].

    A row of weight w stands for w counts whose mean is y: it may have fractions of w.

    Parameters
    ----------
    link : {"log", "sqrt"}
        "sqrt" has the domain eta > 0.

    References
    ----------
    McCullagh & Nelder (1989), Generalized Linear Models, 2nd ed., chapter 6.
    """

    link: str = eqx.field(static=True, default="log")
    name: ClassVar[str] = "poisson"
    links: ClassVar[tuple[str, ...]] = ("log", "sqrt")
    dispersion_name: ClassVar[str | None] = None
    discrete: ClassVar[bool] = True
    weight_is: ClassVar[str] = "mean of copies"

    def unit(self, eta, y, log_phi) -> Derivatives:
        if self.link == "log":
            mu = exp_capped(eta)
            return Derivatives(y * eta - mu, y - mu, mu, mu, mu)
        r = 1.0 / jnp.maximum(eta, 2.0 * float(jnp.finfo(eta.dtype).tiny))
        yr = y * r
        yr2 = yr * r
        return Derivatives(
            l=2.0 * y * jnp.log(eta) - eta * eta,
            s=2.0 * (yr - eta),
            w=2.0 * (yr2 + 1.0),
            a=-4.0 * yr2 * r,
            c=12.0 * yr2 * r * r,
        )

    def unit_expected(self, eta, log_phi):
        return exp_capped(eta) if self.link == "log" else jnp.full_like(eta, 4.0)

    def variance(self, mu, log_phi):
        return mu

    def deviance_residual(self, y, mu, weight, log_phi):
        unit = 2.0 * (xlogy(y, y) - xlogy(y, mu) - (y - mu))
        return jnp.sign(y - mu) * jnp.sqrt(weight * jnp.maximum(unit, 0.0))

    def constant(self, y, weight) -> float:
        from scipy.special import gammaln

        return -float(np.sum(np.asarray(weight) * gammaln(np.asarray(y, np.float64) + 1)))

    def check_response(self, y, weight, column: str, rows=None) -> None:
        _check_counts("Poisson", y, weight, column, rows, means=True)

    def start(self, y, weight) -> tuple[float, float]:
        mu = _mean_count(y, weight)
        return (math.log(mu) if self.link == "log" else math.sqrt(mu)), 0.0

    def sample(self, rng, mu, weight, log_phi) -> np.ndarray:
        weight = np.asarray(weight, np.float64)
        live = np.where(weight > 0, weight, 1.0)
        return rng.poisson(live * np.asarray(mu)) / live

    def cdf(self, y, mu, weight, log_phi) -> np.ndarray:
        from scipy.stats import poisson

        return poisson.cdf(_total(y, weight), np.asarray(weight) * mu)

    def cdf_below(self, y, mu, weight, log_phi) -> np.ndarray:
        from scipy.stats import poisson

        return poisson.cdf(_total(y, weight) - 1.0, np.asarray(weight) * mu)


class NegativeBinomial(AbstractFamily):
    """Overdispersed counts, Var = mu + mu^2/theta ("NB2"); theta to infinity is Poisson.

    l = weight [lgamma(y + theta) - lgamma(theta) + y log mu + theta log theta - (y + theta) log(mu + theta)]

    with log_phi = log theta. It is written with q = eta - log theta and differences that vanish with 1/theta, so that
    the Poisson limit and the derivatives in log theta keep their accuracy.

    Parameters
    ----------
    link : {"log"}

    References
    ----------
    Lawless (1987), Negative binomial and mixed Poisson regression, Canadian Journal of Statistics 15.
    """

    link: str = eqx.field(static=True, default="log")
    name: ClassVar[str] = "negativebinomial"
    links: ClassVar[tuple[str, ...]] = ("log",)
    dispersion_name: ClassVar[str | None] = "theta"
    discrete: ClassVar[bool] = True
    limit: ClassVar[str | None] = "poisson"
    weight_is: ClassVar[str] = "copies"

    def unit(self, eta, y, log_phi) -> Derivatives:
        theta = jnp.exp(log_phi)
        q = eta - log_phi
        low = q <= 0  # mu <= theta
        mu = jnp.exp(jnp.where(low, eta, 0.0))
        t = jnp.exp(jnp.where(low, q, -q))  # mu/theta or theta/mu, whichever is at most 1
        big = 1.0 / (1.0 + t)
        # low: y eta - (y + theta) log1p(mu/theta), its terms of order theta cancelled by hand.
        l_low = y * eta - mu - y * t - (y + theta) * log1pmx(t)
        l_high = y * log_phi - theta * q - (y + theta) * jnp.log1p(t)
        w = jnp.where(low, y * t + mu, (y + theta) * t) * big * big
        far = t * big
        difference = jnp.where(low, big - far, far - big)
        return Derivatives(
            l=jnp.where(low, l_low, l_high) + lgamma_rise(y, theta, log_phi),
            s=jnp.where(low, y - mu, y * t - theta) * big,
            w=w,
            a=w * difference,
            c=w * (1.0 - 6.0 * far * big),
        )

    def unit_expected(self, eta, log_phi):
        return jnp.exp(log_phi) * jax.lax.logistic(eta - log_phi)

    def variance(self, mu, log_phi):
        return mu + mu * mu * jnp.exp(-log_phi)

    def deviance_residual(self, y, mu, weight, log_phi):
        theta = jnp.exp(log_phi)
        unit = 2.0 * (xlogy(y, y) - xlogy(y, mu) - (y + theta) * jnp.log1p((y - mu) / (mu + theta)))
        return jnp.sign(y - mu) * jnp.sqrt(weight * jnp.maximum(unit, 0.0))

    def constant(self, y, weight) -> float:
        from scipy.special import gammaln

        return -float(np.sum(np.asarray(weight) * gammaln(np.asarray(y, np.float64) + 1)))

    def check_response(self, y, weight, column: str, rows=None) -> None:
        _check_counts("negative binomial", y, weight, column, rows)

    def start(self, y, weight) -> tuple[float, float]:
        mu = _mean_count(y, weight)
        variance = float(np.sum(np.asarray(weight) * (np.asarray(y) - mu) ** 2)) / max(float(np.sum(weight)), 1e-300)
        theta = mu * mu / (variance - mu) if variance > mu else 100.0
        return math.log(mu), math.log(min(max(theta, 0.05), 100.0))

    def sample(self, rng, mu, weight, log_phi) -> np.ndarray:
        self.single(weight)
        if self.at_limit(log_phi):
            return Poisson().sample(rng, mu, weight, 0.0)
        theta = math.exp(float(log_phi))
        return rng.poisson(rng.gamma(theta, np.asarray(mu) / theta)).astype(np.float64)

    def cdf(self, y, mu, weight, log_phi) -> np.ndarray:
        from scipy.stats import nbinom

        if self.at_limit(log_phi):
            return Poisson().cdf(y, mu, weight, 0.0)
        theta = math.exp(float(log_phi))
        return nbinom.cdf(y, theta, theta / (theta + np.asarray(mu)))

    def cdf_below(self, y, mu, weight, log_phi) -> np.ndarray:
        return self.cdf(np.asarray(y) - 1.0, mu, weight, log_phi)
