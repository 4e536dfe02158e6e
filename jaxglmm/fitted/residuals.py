"""Residuals, and what they and the variances say about a fit."""

import math

import numpy as np

from jaxglmm.arguments import choice
from jaxglmm.errors import DataError
from jaxglmm.fitted.history import is_normal
from jaxglmm.fitted.posterior import term_index
from jaxglmm.fitted.predictive import Observed, given_all, given_others, means, of_normal, plugged_in, without_own
from jaxglmm.fitted.rowwise import rowwise
from jaxglmm.fitted.scoring import own_prior
from jaxglmm.fitted.state import State
from jaxglmm.optimise.estimate import modes_of


KINDS = ("response", "pearson", "deviance", "quantile")
# Variance of the error of a latent response whose sign is observed.
_LATENT = {"logit": math.pi**2 / 3, "probit": 1.0, "cloglog": math.pi**2 / 6}


def residuals(fit, kind: str, seed=0) -> np.ndarray:
    """Residuals (n,) of the rows of a fit.

    Parameters
    ----------
    kind : {"response", "pearson", "deviance", "quantile"}
        With mu at the conditional modes: y - mu; divided by the standard deviation that the family gives,
        sqrt(V(mu)/weight) with the estimated dispersion; signed square roots of the unit deviances. Or standard normal
        quantiles of the response's distribution function, randomised between its two ends where the response is
        discrete: that of the row given the *other* rows of its groups, averaged over the posterior that these leave,
        so that they are standard normal under the model however few rows a group has. (About its own conditional mode
        a row is too well explained: with two rows a group such residuals have a standard deviation of 0.8.) The
        parameters have seen the row. With several grouping factors the posterior of eta is taken as normal.
    seed : int or numpy.random.Generator
        Of the randomised ones.

    Raises
    ------
    DataError

    References
    ----------
    Dunn & Smyth (1996), J. Comp. Graph. Stat. 5, 236. Gelfand, Dey & Chang (1992), Bayesian Statistics 4, 147.
    """
    choice(*KINDS)("kind", kind)
    frame, family, log_phi = fit._training("residuals"), fit.family, fit.state.log_dispersion
    y, weight = frame.y, frame.weights
    if kind == "quantile":
        return _quantile(fit, frame, seed)
    mu = fit.fitted
    if kind == "response":
        return y - mu
    if kind == "pearson":
        return (y - mu) * np.sqrt(weight / rowwise(family, "variance", mu, log_phi))
    return rowwise(family, "deviance_residual", y, mu, weight, log_phi)


def _quantile(fit, frame, seed) -> np.ndarray:
    from scipy.special import ndtri

    family, log_phi, n = fit.family, fit.state.log_dispersion, len(frame.y)
    low, high = np.empty(n), np.empty(n)
    if is_normal(family):
        mean, variance = _normal_given_others(fit, frame)
        return (frame.y - mean) / np.sqrt(variance + math.exp(2 * log_phi) / frame.weights)
    weights = frame.weights if family.weight_is != "copies" else np.broadcast_to(1.0, n)
    for found in _given_others(fit, frame):
        mu, y, w = means(fit.state, found), frame.y[found.rows, None], weights[found.rows, None]
        high[found.rows] = np.sum(found.weights * family.cdf(y, mu, w, log_phi), 1)
        if family.discrete:
            low[found.rows] = np.sum(found.weights * family.cdf_below(y, mu, w, log_phi), 1)
    share = np.random.default_rng(seed).uniform(size=n) if family.discrete else 1.0
    low = low if family.discrete else high
    # A response in the far tail has a distribution function of 0 or 1 in floating point.
    tiny = np.finfo(float).tiny
    return ndtri(np.clip(low + share * (high - low), tiny, 1 - np.finfo(float).eps / 2))


def overdispersion(fit) -> dict[str, float]:
    """Pearson chi-squared of the rows given the others over its degrees of freedom: {ratio, chi2, df}.

    chi2 = sum (y - m)^2 / v with m and v the mean and variance of a row's response given the other rows of its groups,
    what is not known of its effects included; df = rows - fixed effects. Under the model every term is 1 in
    expectation, however few rows a group has; about conditional modes they are less, by as much as the effects follow
    the rows.

    Raises
    ------
    DataError
        Where all responses are 0 or 1, one trial a row: their variance is m (1 - m) whatever the model, so that there
        is nothing to find. Single trials among others do not count.
    """
    frame, family, log_phi = fit._training("overdispersion"), fit.family, fit.state.log_dispersion
    y, weight = frame.y, frame.weights
    alone = (weight == 1) & ((y == 0) | (y == 1)) if family.weight_is == "trials" else np.zeros(len(y), bool)
    if alone.all() or (family.weight_is != "trials" and ((y == 0) | (y == 1)).all()):
        raise DataError(
            "overdispersion is not defined for responses that are 0 or 1, one trial a row: their variance follows from "
            "their mean. Group rows with equal columns into counts, cbind(successes, failures), to look for it, or use "
            'residuals("quantile")'
        )
    centre, variance = np.empty(len(y)), np.empty(len(y))
    copies = weight if family.weight_is == "copies" else np.broadcast_to(1.0, len(y))
    if is_normal(family):
        centre, variance = _normal_given_others(fit, frame)
        variance = variance + math.exp(2 * log_phi) / weight
    else:
        for found in _given_others(fit, frame):
            mu, rows = means(fit.state, found), found.rows
            own = rowwise(family, "variance", mu.ravel(), log_phi).reshape(mu.shape) * (copies / weight)[rows, None]
            centre[rows] = np.sum(found.weights * mu, 1)
            variance[rows] = np.sum(found.weights * (own + np.square(mu - centre[rows, None])), 1)
    used = ~alone
    chi2 = float(np.sum((copies * np.square(y - centre) / variance)[used]))
    df = float(copies[used].sum()) - len(fit.names)
    return {"ratio": chi2 / df if df > 0 else math.nan, "chi2": chi2, "df": df}


def _given_others(fit, frame):
    """Mixtures of eta of all rows, each given the others; not for Gaussian responses with identity link."""
    state = fit.state
    if not state.terms:
        return plugged_in(frame.offset + frame.X @ state.estimate.beta)
    if len(state.terms) == 1:
        return given_others(state, fit._history("residuals")[0], own_prior(state))
    rows = Observed(frame.y, frame.weights)
    return of_normal(state, rows, *_normal_given_others(fit, frame))


def _normal_given_others(fit, frame) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (n,) of eta in each row given the others, as if it was normal."""
    state, rows = fit.state, Observed(frame.y, frame.weights)
    eta = frame.offset + frame.X @ state.estimate.beta
    if not state.terms:
        return eta, np.zeros(len(eta))
    parts = zip(frame.terms, state.covariances, strict=True)
    prior = np.sum([np.einsum("am,ab,bm->m", term.z, sigma, term.z, optimize=True) for term, sigma in parts], axis=0)
    if len(state.terms) == 1:
        return without_own(state, rows, *given_all(state, fit._history("residuals")[0], own_prior(state)), prior)
    for term, mode in zip(frame.terms, modes_of(state.posteriors), strict=True):
        eta = eta + np.einsum("sm,ms->m", term.z, mode[term.codes])
    none = np.zeros(len(eta), bool)
    variance = fit._joint().variance([(term.z, term.codes) for term in frame.terms], [none] * len(frame.terms))
    return without_own(state, rows, eta, variance, prior)


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
