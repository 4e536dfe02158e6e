"""Continuous responses: Gaussian, gamma, beta."""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxglmm.model.family import AbstractFamily, Derivatives, refuse
from jaxglmm.model.special import exp_capped, lgamma_gap, polygammas


def _moments(y, weight):
    """Weighted mean and variance of the response."""
    y, weight = np.asarray(y, np.float64), np.asarray(weight, np.float64)
    total = max(float(weight.sum()), 1e-300)
    mean = float((weight * y).sum()) / total
    return mean, float((weight * (y - mean) ** 2).sum()) / total


class Gaussian(AbstractFamily):
    """Normal responses with residual standard deviation sigma / sqrt(weight), log_phi = log sigma.

    l = -weight (y - mu)^2 / (2 sigma^2) - log sigma [weight > 0]

    Parameters
    ----------
    link : {"identity", "log"}
        With "log" the log-likelihood is not concave in eta, and mu is held at the square root of the largest float.
    """

    link: str = eqx.field(static=True, default="identity")
    name: ClassVar[str] = "gaussian"
    links: ClassVar[tuple[str, ...]] = ("identity", "log")
    dispersion_name: ClassVar[str | None] = "sigma"
    discrete: ClassVar[bool] = False
    weight_is: ClassVar[str] = "precision"

    @property
    def log_concave(self) -> bool:
        return self.link == "identity"

    def derivatives(self, eta, y, weight, log_phi) -> Derivatives:
        row = super().derivatives(eta, y, weight, log_phi)
        # The one normaliser that the weight does not multiply.
        return row._replace(l=row.l - jnp.where(jnp.asarray(weight) > 0, log_phi, 0.0).astype(row.l.dtype))

    def unit(self, eta, y, log_phi) -> Derivatives:
        precision = jnp.exp(-2.0 * log_phi)
        if self.link == "identity":
            residual = y - eta
            s = precision * residual
            zero = jnp.zeros_like(eta)
            return Derivatives(-0.5 * s * residual, s, precision, zero, zero)
        mu = _exp_half_range(eta)
        residual = y - mu
        scaled = precision * mu
        return Derivatives(
            l=-0.5 * precision * residual * residual,
            s=scaled * residual,
            w=scaled * (2.0 * mu - y),
            a=scaled * (4.0 * mu - y),
            c=scaled * (8.0 * mu - y),
        )

    def unit_expected(self, eta, log_phi):
        precision = jnp.exp(-2.0 * log_phi)
        return precision if self.link == "identity" else precision * _exp_half_range(eta) ** 2

    def variance(self, mu, log_phi):
        return jnp.exp(2.0 * log_phi) + jnp.zeros_like(mu)

    def deviance_residual(self, y, mu, weight, log_phi):
        return jnp.sqrt(weight) * (y - mu)

    def constant(self, y, weight) -> float:
        live = np.asarray(weight, np.float64)
        live = live[live > 0]
        return 0.5 * float(np.sum(np.log(live))) - 0.5 * live.size * math.log(2 * math.pi)

    def check_response(self, y, weight, column: str, rows=None) -> None:
        y = np.asarray(y, np.float64)
        bad = ~np.isfinite(y) & (np.asarray(weight) > 0)
        refuse(bad, y, column, rows, "Gaussian", "finite", "Drop or recode the row.")

    def start(self, y, weight) -> tuple[float, float]:
        mean, variance = _moments(y, weight)
        rows = max(int(np.sum(np.asarray(weight) > 0)), 1)
        sigma = math.sqrt(variance * float(np.sum(weight)) / rows)  # sigma belongs to weight 1
        sigma = sigma if sigma > 0 else 1.0
        eta = mean if self.link == "identity" else math.log(max(mean, 0.1 * math.sqrt(variance), 1e-8))
        return eta, math.log(sigma)

    def sample(self, rng, mu, weight, log_phi) -> np.ndarray:
        return rng.normal(mu, math.exp(float(log_phi)) / np.sqrt(weight))

    def cdf(self, y, mu, weight, log_phi) -> np.ndarray:
        from scipy.stats import norm

        return norm.cdf((np.asarray(y) - mu) * np.sqrt(weight) / math.exp(float(log_phi)))


def _exp_half_range(eta):
    return jnp.exp(jnp.minimum(eta, 0.5 * math.log(float(jnp.finfo(eta.dtype).max)) - 6))


class Gamma(AbstractFamily):
    """Positive responses with Var = mu^2/shape, log_phi = log shape.

    l = weight [k log(k y/mu) - k y/mu - lgamma(k)], k the shape; -weight log y is in `constant`.

    Parameters
    ----------
    link : {"log", "inverse"}
        "inverse" has the domain eta > 0.

    References
    ----------
    McCullagh & Nelder (1989), Generalized Linear Models, 2nd ed., chapter 8.
    """

    link: str = eqx.field(static=True, default="log")
    name: ClassVar[str] = "gamma"
    links: ClassVar[tuple[str, ...]] = ("log", "inverse")
    dispersion_name: ClassVar[str | None] = "shape"
    discrete: ClassVar[bool] = False
    weight_is: ClassVar[str] = "copies"

    def unit(self, eta, y, log_phi) -> Derivatives:
        shape = jnp.exp(log_phi)
        normaliser = lgamma_gap(shape, log_phi)
        if self.link == "log":
            log_ratio = jnp.log(y) - eta
            k_ratio = shape * exp_capped(log_ratio)  # shape * y / mu
            l = shape * (1.0 + log_ratio) - k_ratio + normaliser
            return Derivatives(l, k_ratio - shape, k_ratio, -k_ratio, k_ratio)
        r = 1.0 / jnp.maximum(eta, 2.0 * float(jnp.finfo(eta.dtype).tiny))
        w = shape * r * r
        return Derivatives(
            l=shape * (1.0 + jnp.log(y) + jnp.log(eta) - y * eta) + normaliser,
            s=shape * (r - y),
            w=w,
            a=-2.0 * w * r,
            c=6.0 * w * r * r,
        )

    def unit_expected(self, eta, log_phi):
        shape = jnp.exp(log_phi)
        return shape + jnp.zeros_like(eta) if self.link == "log" else shape / (eta * eta)

    def variance(self, mu, log_phi):
        return mu * mu * jnp.exp(-log_phi)

    def deviance_residual(self, y, mu, weight, log_phi):
        unit = 2.0 * ((y - mu) / mu - jnp.log(y / mu))
        return jnp.sign(y - mu) * jnp.sqrt(weight * jnp.maximum(unit, 0.0))

    def constant(self, y, weight) -> float:
        y, weight = np.asarray(y, np.float64), np.asarray(weight, np.float64)
        live = weight > 0
        return -float(np.sum(weight[live] * np.log(y[live])))

    def check_response(self, y, weight, column: str, rows=None) -> None:
        y = np.asarray(y, np.float64)
        refuse(
            (np.asarray(weight) > 0) & ~((y > 0) & np.isfinite(y)), y, column, rows, "gamma",
            "greater than 0 and finite",
            "Model zeros apart (family='binomial' on y > 0), or use family='gaussian' where values may be negative.",
        )  # fmt: skip

    def start(self, y, weight) -> tuple[float, float]:
        mean, variance = _moments(y, weight)
        shape = mean * mean / variance if variance > 0 else 1e4
        return (math.log(mean) if self.link == "log" else 1.0 / mean), math.log(min(max(shape, 0.05), 1e4))

    def sample(self, rng, mu, weight, log_phi) -> np.ndarray:
        self.single(weight)
        shape = math.exp(float(log_phi))
        return rng.gamma(shape, np.asarray(mu) / shape)

    def cdf(self, y, mu, weight, log_phi) -> np.ndarray:
        from scipy.stats import gamma

        shape = math.exp(float(log_phi))
        return gamma.cdf(y, shape, scale=np.asarray(mu) / shape)


class Beta(AbstractFamily):
    """Fractions strictly inside (0, 1) with Var = mu (1 - mu)/(1 + phi), log_phi = log phi.

    l = weight [lgamma(phi) - lgamma(p) - lgamma(q) + p log y + q log(1 - y)],  p = mu phi, q = (1 - mu) phi;
    -weight log(y (1 - y)) is in `constant`. Not log-concave in eta.

    Parameters
    ----------
    link : {"logit"}

    References
    ----------
    Ferrari & Cribari-Neto (2004), Beta regression for modelling rates and proportions, Journal of Applied
    Statistics 31, 799-815.
    """

    link: str = eqx.field(static=True, default="logit")
    name: ClassVar[str] = "beta"
    links: ClassVar[tuple[str, ...]] = ("logit",)
    dispersion_name: ClassVar[str | None] = "phi"
    discrete: ClassVar[bool] = False
    weight_is: ClassVar[str] = "copies"

    @property
    def log_concave(self) -> bool:
        return False

    def unit(self, eta, y, log_phi) -> Derivatives:
        phi = jnp.exp(log_phi)
        log_y, log_1y = jnp.log(y), jnp.log1p(-y)
        mu, nu, log_mu, log_nu = _logit_parts(eta)
        p, q = mu * phi, nu * phi
        gaps = lgamma_gap(p, log_phi + log_mu) + lgamma_gap(q, log_phi + log_nu) - lgamma_gap(phi, log_phi)
        # From lgamma(p) = lgamma(1 + p) - log p: polygammas of p blow up and cancel as p -> 0, of 1 + p not.
        psi_p, psi_q = polygammas(1.0 + p), polygammas(1.0 + q)
        h = mu * nu
        f = h * phi
        skew = nu - mu
        h1, h2, h3 = h * skew, h * (1.0 - 6.0 * h), h * skew * (1.0 - 12.0 * h)  # derivatives of h in eta
        g = phi * (log_y - log_1y - psi_p[0] + psi_q[0])
        g1 = -(psi_p[1] + psi_q[1])
        g2 = -(psi_p[2] - psi_q[2])
        g3 = -(psi_p[3] + psi_q[3])
        f1 = f * skew
        return Derivatives(
            l=gaps - p * (log_mu - log_y) - q * (log_nu - log_1y),
            s=skew + h * g,
            w=2.0 * h - (h1 * g + f * f * g1),
            a=2.0 * h1 - (h2 * g + 3.0 * f * f1 * g1 + f * f * f * g2),
            c=2.0 * h2
            - (h3 * g + (4.0 * f * f * (1.0 - 6.0 * h) + 3.0 * f1 * f1) * g1 + 6.0 * f * f * f1 * g2 + f**4 * g3),
        )

    def unit_expected(self, eta, log_phi):
        phi = jnp.exp(log_phi)
        mu, nu, _, _ = _logit_parts(eta)
        trigamma = polygammas(1.0 + mu * phi)[1] + polygammas(1.0 + nu * phi)[1]
        return nu * nu + mu * mu + (mu * nu * phi) ** 2 * trigamma

    def variance(self, mu, log_phi):
        return mu * (1.0 - mu) / (1.0 + jnp.exp(log_phi))

    def deviance_residual(self, y, mu, weight, log_phi):
        def loglik(at):
            p, q = at * jnp.exp(log_phi), (1.0 - at) * jnp.exp(log_phi)
            gaps = lgamma_gap(p, jnp.log(p)) + lgamma_gap(q, jnp.log(q))
            return gaps - p * jnp.log(at / y) - q * (jnp.log1p(-at) - jnp.log1p(-y))

        # y is not the mode of the likelihood in mu, so the difference may be negative (as in R's betareg).
        return jnp.sign(y - mu) * jnp.sqrt(weight * 2.0 * jnp.abs(loglik(y) - loglik(mu)))

    def constant(self, y, weight) -> float:
        y, weight = np.asarray(y, np.float64), np.asarray(weight, np.float64)
        y, weight = y[weight > 0], weight[weight > 0]
        return -float(np.sum(weight * (np.log(y) + np.log1p(-y))))

    def check_response(self, y, weight, column: str, rows=None) -> None:
        y = np.asarray(y, np.float64)
        refuse(
            (np.asarray(weight) > 0) & ~((y > 0) & (y < 1)), y, column, rows, "beta", "strictly between 0 and 1",
            "For proportions of whole trials use family='binomial' with weights= trials; exact 0s and 1s may be moved "
            "inside by (y (n - 1) + 1/2)/n (Smithson & Verkuilen 2006).",
        )  # fmt: skip

    def start(self, y, weight) -> tuple[float, float]:
        mean, variance = _moments(y, weight)
        phi = mean * (1 - mean) / variance - 1 if variance > 0 else 1e4
        return math.log(mean / (1 - mean)), math.log(min(max(phi, 0.1), 1e4))

    def sample(self, rng, mu, weight, log_phi) -> np.ndarray:
        self.single(weight)
        phi = math.exp(float(log_phi))
        tiny = np.finfo(np.float64).eps / 2  # a draw that rounds to 0 or 1 would be outside of the support
        return np.clip(rng.beta(np.asarray(mu) * phi, (1 - np.asarray(mu)) * phi), tiny, 1 - tiny)

    def cdf(self, y, mu, weight, log_phi) -> np.ndarray:
        from scipy.stats import beta

        phi = math.exp(float(log_phi))
        return beta.cdf(y, np.asarray(mu) * phi, (1 - np.asarray(mu)) * phi)


def _logit_parts(eta):
    """mu, 1 - mu and their logs, each with full relative accuracy."""
    negative = eta < 0
    z = jnp.where(negative, -eta, eta)
    t = jnp.exp(-z)
    near = 1.0 / (1.0 + t)
    far = t * near
    log_near = -jnp.log1p(t)
    log_far = log_near - z
    return (
        jnp.where(negative, far, near),
        jnp.where(negative, near, far),
        jnp.where(negative, log_far, log_near),
        jnp.where(negative, log_near, log_far),
    )
