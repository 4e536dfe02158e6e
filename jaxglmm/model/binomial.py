"""Binomial responses with logit, probit, complementary log-log and Cauchy links."""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy

from jaxglmm.model.family import AbstractFamily, Derivatives, refuse
from jaxglmm.model.special import exp_capped, horner, mills


_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# r + r/(e^r - 1) - 1 = sum over even n of B_n r^n/n!, plus r/2 (Abramowitz & Stegun 23.1.1), in powers of r^2.
_BERNOULLI = (
    1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000, 1 / 74724249600,
    -3617 / 10670622842880000, 43867 / 5109094217170944000, -174611 / 802857662698291200000,
)  # fmt: skip


class Binomial(AbstractFamily):
    """Proportion of successes among ``weight`` trials; 0/1 responses have weight 1.

    l = weight [y log mu + (1 - y) log(1 - mu)], with mu = g^-1(eta). The binomial coefficient is in `constant`.

    Parameters
    ----------
    link : {"logit", "probit", "cloglog", "cauchit"}
        With "cauchit" the log-likelihood is not concave in eta.

    References
    ----------
    McCullagh & Nelder (1989), Generalized Linear Models, 2nd ed., chapter 4.
    """

    link: str = eqx.field(static=True, default="logit")
    name: ClassVar[str] = "binomial"
    links: ClassVar[tuple[str, ...]] = ("logit", "probit", "cloglog", "cauchit")
    dispersion_name: ClassVar[str | None] = None
    discrete: ClassVar[bool] = True
    weight_is: ClassVar[str] = "trials"

    @property
    def log_concave(self) -> bool:
        return self.link != "cauchit"

    def unit(self, eta, y, log_phi) -> Derivatives:
        return _ROWS[self.link](eta, y)

    def unit_expected(self, eta, log_phi):
        return _EXPECTED[self.link](eta)

    def variance(self, mu, log_phi):
        return mu * (1.0 - mu)

    def deviance_residual(self, y, mu, weight, log_phi):
        unit = 2.0 * (xlogy(y, y) - xlogy(y, mu) + xlogy(1.0 - y, 1.0 - y) - xlogy(1.0 - y, 1.0 - mu))
        return jnp.sign(y - mu) * jnp.sqrt(weight * jnp.maximum(unit, 0.0))

    def constant(self, y, weight) -> float:
        from scipy.special import gammaln

        y, weight = np.asarray(y, np.float64), np.asarray(weight, np.float64)
        y, weight = y[weight > 1], weight[weight > 1]
        successes = weight * y
        return float(np.sum(gammaln(weight + 1) - gammaln(successes + 1) - gammaln(weight - successes + 1)))

    def check_response(self, y, weight, column: str, rows=None) -> None:
        y, weight = np.asarray(y, np.float64), np.asarray(weight, np.float64)
        if (weight == 1).all() and ((y == 0) | (y == 1)).all():
            return
        live = weight > 0
        refuse(
            live & ~((y >= 0) & (y <= 1)), y, column, rows, "binomial", "0, 1 or a proportion between them",
            "For counts use cbind(successes, failures), or the proportion with weights= the number of trials; for a "
            "count without a known number of trials use family='poisson'.",
        )  # fmt: skip
        between = (y > 0) & (y < 1)
        refuse(
            (weight == 1) & between, y, column, rows, "binomial", "0 or 1 where the weight is 1",
            "Pass weights= with the number of trials or use cbind(successes, failures); for a measured fraction "
            "without trials use family='beta'.",
        )  # fmt: skip
        successes = weight * y
        part = np.maximum(np.abs(successes - np.round(successes)), np.abs(weight - np.round(weight)))
        bad = live & (part > 1e-3)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            refuse(
                bad, y, column, rows, "binomial", "a proportion of a whole number of trials",
                f"There weight * proportion = {weight[row]:g} * {y[row]:g} = {successes[row]:g}: weights= must hold "
                "whole numbers of trials, and their product with the proportion must be whole; or use "
                "cbind(successes, failures).",
            )  # fmt: skip

    def start(self, y, weight) -> tuple[float, float]:
        total = float(np.sum(weight))
        mu = (float(np.sum(np.asarray(weight) * y)) + 0.5) / (total + 1.0)
        return _HOST_LINK[self.link](mu), 0.0

    def sample(self, rng, mu, weight, log_phi) -> np.ndarray:
        mu, weight = np.broadcast_arrays(np.asarray(mu, np.float64), np.asarray(weight, np.float64))
        return rng.binomial(np.round(weight).astype(np.int64), mu) / np.maximum(weight, 1.0)

    def cdf(self, y, mu, weight, log_phi) -> np.ndarray:
        from scipy.stats import binom

        return binom.cdf(np.round(np.asarray(weight) * y), weight, mu)

    def cdf_below(self, y, mu, weight, log_phi) -> np.ndarray:
        from scipy.stats import binom

        return binom.cdf(np.round(np.asarray(weight) * y) - 1.0, weight, mu)


def _host_probit(mu):
    from scipy.special import ndtri

    return float(ndtri(mu))


_HOST_LINK = {
    "logit": lambda mu: math.log(mu / (1 - mu)),
    "probit": _host_probit,
    "cloglog": lambda mu: math.log(-math.log1p(-mu)),
    "cauchit": lambda mu: math.tan(math.pi * (mu - 0.5)),
}


def _logit(eta, y):
    negative = eta < 0
    z = jnp.where(negative, -eta, eta)
    t = jnp.exp(-z)
    near = 1.0 / (1.0 + t)  # probability of the likelier outcome
    far = t * near
    far_y = jnp.where(negative, y, 1.0 - y)  # share of the unlikelier outcome
    sign = jnp.where(negative, 1.0, -1.0).astype(eta.dtype)
    w = near * far
    return Derivatives(
        l=-jnp.log1p(t) - z * far_y,
        s=sign * (far_y * near - (1.0 - far_y) * far),
        w=w,
        a=sign * w * (near - far),
        c=w * (1.0 - 6.0 * w),
    )


def _fold(eta, y, tail, body):
    """Row derivatives from those of f = log F at -|eta| (``tail``) and at |eta| (``body``), F symmetric."""
    negative = eta < 0
    far = jnp.where(negative, y, 1.0 - y)
    near = 1.0 - far
    sign = jnp.where(negative, 1.0, -1.0).astype(eta.dtype)
    return Derivatives(
        l=far * tail[0] + near * body[0],
        s=sign * (far * tail[1] - near * body[1]),
        w=-(far * tail[2] + near * body[2]),
        a=-sign * (far * tail[3] - near * body[3]),
        c=-(far * tail[4] + near * body[4]),
    )


def _probit(eta, y):
    """log Phi: the lower tail by the continued fraction's parts (see `mills`), the upper by s' = -s (s + x)."""
    z = jnp.where(eta < 0, -eta, eta)
    m, d, e1, e2, e3 = mills(z)
    skew = m * d * d * e1
    third = skew * (e2 - e1)
    fourth = skew * ((e2 - e1) * (e2 - 3.0 * d) + e2 * (e3 - e2))
    log_phi = -0.5 * z * z - _HALF_LOG_2PI
    tail = (log_phi - jnp.log(m), m, -m * d, third, fourth)

    density = jnp.exp(log_phi)
    tail_probability = density / m
    s = density / (1.0 - tail_probability)
    w = s * (s + z)
    u = 2.0 * s + z
    a = s - w * u
    body = (jnp.log1p(-tail_probability), s, -w, -a, a * u + 2.0 * w * (1.0 - w))
    return _fold(eta, y, tail, body)


def _cauchy_derivatives(log_f, h, x):
    """Derivatives of f = log F from h = F'/F: h' = h u, u = F''/F' - h."""
    q = 1.0 / (1.0 + x * x)
    u = -2.0 * x * q - h
    du = -2.0 * (1.0 - x * x) * q * q - h * u
    v = u * u + du
    ddu = 4.0 * (x * q) * (3.0 - x * x) * q * q - h * v
    return log_f, h, h * u, h * v, h * (u * v + 2.0 * u * du + ddu)


def _cauchit(eta, y):
    z = jnp.where(eta < 0, -eta, eta)
    angle = jnp.arctan2(jnp.ones_like(z), z)  # pi times the tail probability, exact in the tail
    q = 1.0 / (1.0 + z * z)
    tail = _cauchy_derivatives(jnp.log(angle / math.pi), q / angle, -z)
    body = _cauchy_derivatives(jnp.log1p(-angle / math.pi), q / (math.pi - angle), z)
    return _fold(eta, y, tail, body)


def _cloglog_parts(eta):
    """r = e^eta, B = r/(e^r - 1), and k = r + B - 1 without cancellation for small r."""
    r = exp_capped(eta)
    bounded = jnp.minimum(r, 1000.0)  # e^-1000 is 0: keeps polynomials in r, which B multiplies, finite
    small = bounded < 1.0
    r_small = jnp.where(small, bounded, 0.0)
    r_large = jnp.where(small, 1.0, bounded)
    ratio = jnp.where(small, r_small, r_large)
    series = r_small * (0.5 + r_small * horner(_BERNOULLI, r_small * r_small))
    b_large = r_large * jnp.exp(-r_large) / -jnp.expm1(-r_large)
    k = jnp.where(small, series, r_large + b_large - 1.0)
    b = jnp.where(small, 1.0 + series - r_small, b_large)
    return r, ratio, b, k


def _cloglog(eta, y):
    """mu = 1 - exp(-e^eta); for y = 1 f' = B, B' = -B k, k' = r - B k, so that f'' = -B k and so on."""
    r, bounded, b, k = _cloglog_parts(eta)
    j = bounded - k * (k + b)
    dk = bounded - b * k
    dj = bounded - dk * (k + b) - k * (dk - b * k)
    # log(1 - e^-r): eta + log((1 - e^-r)/r) for small r, log1p(-e^-r) for large.
    small = eta < -0.3665
    r_small = jnp.where(small, jnp.maximum(r, float(jnp.finfo(eta.dtype).tiny)), 1.0)
    r_large = jnp.where(small, 1.0, r)
    log_mu = jnp.where(small, eta + jnp.log(-jnp.expm1(-r_small) / r_small), jnp.log1p(-jnp.exp(-r_large)))
    rest = (1.0 - y) * r
    return Derivatives(
        l=y * log_mu - rest,
        s=y * b - rest,
        w=y * (b * k) + rest,
        a=y * (b * j) + rest,
        c=y * (b * (dj - k * j)) + rest,
    )


def _expected_logit(eta):
    t = jnp.exp(-jnp.abs(eta))
    return t / ((1.0 + t) * (1.0 + t))


def _expected_probit(eta):
    z = jnp.abs(eta)
    m = mills(z)[0]
    density = jnp.exp(-0.5 * z * z - _HALF_LOG_2PI)
    return m * density / (1.0 - density / m)


def _expected_cloglog(eta):
    _, r, b, _ = _cloglog_parts(eta)
    return r * b


def _expected_cauchit(eta):
    angle = jnp.arctan2(jnp.ones_like(eta), jnp.abs(eta))
    q = 1.0 / (1.0 + eta * eta)
    return (q / angle) * (q / (math.pi - angle))


_ROWS = {"logit": _logit, "probit": _probit, "cloglog": _cloglog, "cauchit": _cauchit}
_EXPECTED = {
    "logit": _expected_logit,
    "probit": _expected_probit,
    "cloglog": _expected_cloglog,
    "cauchit": _expected_cauchit,
}
