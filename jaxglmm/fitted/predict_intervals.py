"""Intervals of predictions: the distribution of eta in each row, given the data, turned into quantiles."""

import numpy as np

from jaxglmm.fitted.effects import standard_quantiles, with_slopes
from jaxglmm.fitted.predict import Rows
from jaxglmm.fitted.rowwise import rowwise


def ends(fit, rows: Rows, effects: str, new_levels: str, kind: str, level: float, uncertain: bool):
    """Lower and upper ends (m,), (m,) of intervals of eta, or of mu on the response scale.

    The effect of a level that the fit knows has its posterior, that of a new level N(0, Sigma); under "marginal" all
    have N(0, Sigma), under "population" there are none. With the parameters' uncertainty the variance of eta is

        z'Var(b)z + x'V x + 2 x'V d z,     Var(b) with that uncertainty, d the slopes of E(b) in the parameters

    (without the last term for several factors and for fits without their rows). The shape is the posterior's for one
    effect a group and a fit with its rows, else normal; the ends on the response scale are those of eta through the
    inverse link.

    Parameters
    ----------
    fit : Fit
    rows : Rows
    effects, new_levels, kind : str
        As in `Fit.predict`.
    level : float
    uncertain : bool
    """
    from scipy.special import ndtri

    state, estimate = fit.state, fit.state.estimate
    X, (m, p) = rows.X, rows.X.shape
    tail = ndtri([0.5 * (1 - level), 0.5 * (1 + level)])
    centre, shape = rows.eta.copy(), np.broadcast_to(tail, (m, 2)).copy()
    variance = np.zeros(m)
    if uncertain:
        variance += np.einsum("ma,ab,mb->m", X, estimate.covariance[:p, :p], X, optimize=True)
    for t, (z, codes) in enumerate(() if effects == "population" else rows.effects):
        prior = np.einsum("am,ab,bm->m", z, state.covariances[t], z)
        if effects == "marginal":
            variance += prior
            continue
        new = codes < 0
        variance += np.where(new, prior if new_levels == "integrate" else 0 * prior, 0.0)
        known = np.flatnonzero(~new)
        own, zk = codes[known], z[:, known]
        found = fit._effects(t)
        eb = uncertain and not np.isnan(found.variance_eb).any()
        mean = found.mean_eb if eb else found.mean
        centre[new] += 0 * z[:, new].sum(0)
        centre[known] += np.einsum("sm,ms->m", zk, mean[own])
        if len(zk) == 1:
            variance[known] += np.square(zk[0]) * (found.variance_eb if eb else found.variance)[own, 0]
        else:
            variance[known] += np.einsum("am,mab,bm->m", zk, state.posteriors[t].covariance_mean[own], zk)
        if len(rows.effects) > 1:
            continue
        if fit.has_rows and len(zk) == 1:
            quantile = standard_quantiles(state, found, lambda: fit._history("predict(interval=...)"), level)[own, 0]
            shape[known] = np.where(zk[0][:, None] >= 0, quantile, -quantile[:, ::-1])
        if uncertain and fit._problem is not None:
            variance[known] += _parameters(fit, X[known], zk, own, len(zk) > 1)
    half = np.sqrt(np.maximum(variance, 0))[:, None] * shape
    eta = centre[:, None] + half
    if kind == "link":
        return eta[:, 0], eta[:, 1]
    mu = np.stack([rowwise(state.family, "mean", eta[:, a]) for a in (0, 1)])
    return mu.min(0), mu.max(0)


def _parameters(fit, X, z, codes, squares: bool) -> np.ndarray:
    """2 x'V d z of each row, and with `squares` z'd'V d z, which `variance_eb` has for one effect."""
    from jaxglmm.inference.likelihood import raw_covariance

    V = raw_covariance(fit.state)
    out = np.zeros(len(X))
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    for groups, p in with_slopes(fit.state, fit._problem):
        place = np.full(len(fit.state.terms[0].levels), -1)
        place[groups] = np.arange(len(groups))
        here = order[place[ordered] >= 0]
        if not len(here):
            continue
        k = p.slopes.shape[1]
        d = np.einsum("sam,sm->ma", p.slopes[:, :, place[codes[here]]], z[:, here])
        out[here] = 2 * np.einsum("ma,ab,mb->m", X[here], V[: X.shape[1], :k], d, optimize=True)
        if squares:
            out[here] += np.einsum("ma,ab,mb->m", d, V[:k, :k], d, optimize=True)
    return out
