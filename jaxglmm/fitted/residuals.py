"""Residuals, and what they and the variances say about a fit."""

import math

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.posterior import term_index
from jaxglmm.fitted.rowwise import rowwise
from jaxglmm.fitted.state import State


KINDS = ("response", "pearson", "deviance", "quantile")
# Variance of the error of a latent response whose sign is observed.
_LATENT = {"logit": math.pi**2 / 3, "probit": 1.0, "cloglog": math.pi**2 / 6}


def residuals(state: State, frame, mu: np.ndarray, kind: str, seed=0) -> np.ndarray:
    """Residuals (n,) about the means `mu`.

    Parameters
    ----------
    kind : {"response", "pearson", "deviance", "quantile"}
        y - mu; divided by the standard deviation that the family gives, sqrt(V(mu)/weight) with the estimated
        dispersion; signed square roots of the unit deviances; or standard normal quantiles of the response's
        distribution function, randomised between its two ends where the response is discrete.
    seed : int or numpy.random.Generator
        Of the randomised ones.

    Raises
    ------
    DataError

    References
    ----------
    Dunn & Smyth (1996), J. Comp. Graph. Stat. 5, 236.
    """
    family, log_phi = state.family, state.log_dispersion
    y, weight = frame.y, frame.weights
    if kind == "response":
        return y - mu
    if kind == "pearson":
        return (y - mu) * np.sqrt(weight / rowwise(family, "variance", mu, log_phi))
    if kind == "deviance":
        return rowwise(family, "deviance_residual", y, mu, weight, log_phi)
    if kind != "quantile":
        raise DataError(f"kind must be one of {', '.join(map(repr, KINDS))}; found {kind!r}")
    from scipy.special import ndtri

    low, high = family.cdf_below(y, mu, weight, log_phi), family.cdf(y, mu, weight, log_phi)
    share = np.random.default_rng(seed).uniform(size=len(y)) if family.discrete else 1.0
    # A response in the far tail has a distribution function of 0 or 1 in floating point.
    tiny = np.finfo(float).tiny
    return ndtri(np.clip(low + share * (high - low), tiny, 1 - np.finfo(float).eps / 2))


def intraclass(state: State, group: str | None = None) -> float:
    """Share of the latent variance that lies between groups, fixed effects held.

    v / (v + e), with v the mean over rows of z'Sigma z and e the variance that the family gives on the link scale:
    sigma^2 (Gaussian), pi^2/3, 1 and pi^2/6 (binomial with logit, probit and complementary log-log), log(1 + Var/m^2)
    with the log link (the log-normal approximation), else by the delta method, Var(m) g'(m)^2; m is the mean response.

    Raises
    ------
    DataError
        Without random effects, or for the Cauchy link, whose latent variance is infinite.

    References
    ----------
    Nakagawa, Johnson & Schielzeth (2017), J. R. Soc. Interface 14, 20170213. Johnson (2014), Methods Ecol. Evol. 5,
    944, for random slopes.
    """
    at = term_index(state, group)
    between = [float(np.sum(sigma * z2)) for sigma, z2 in zip(state.covariances, state.effect_squares, strict=True)]
    return between[at] / (sum(between) + _latent_variance(state))


def _latent_variance(state: State) -> float:
    family, m = state.family, state.mean_response
    if family.name == "binomial":
        if family.link not in _LATENT:
            raise DataError(f"the latent variance of the {family.link} link is infinite: there is no such correlation")
        return _LATENT[family.link]
    variance = float(rowwise(family, "variance", np.array([m]), state.log_dispersion)[0])
    if family.link == "identity":
        return variance
    if family.link == "log":
        return math.log1p(variance / m**2)
    slope = {"sqrt": 0.5 / math.sqrt(m), "inverse": 1 / m**2, "logit": 1 / (m * (1 - m))}[family.link]
    return variance * slope**2
