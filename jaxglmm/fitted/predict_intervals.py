"""Intervals of predictions: the distribution of eta in each row, given the data, turned into quantiles."""

import numpy as np

from jaxglmm.fitted.effects import Effects, Mixture, standard_quantiles
from jaxglmm.fitted.mixtures import Mixtures, quantiles
from jaxglmm.fitted.predict import Rows
from jaxglmm.fitted.rowwise import rowwise
from jaxglmm.inference.coordinates import coordinates, raw_covariance


_LOG_NODES = 15  # for the logarithm of a variance that the delta method tells the error of
_LARGEST_LOG_SD = 1.5  # of that logarithm; beyond, it says no more than that nothing is known
_BLOCK = 1 << 16  # rows whose covariances are looked up at once


def ends(fit, rows: Rows, effects: str, new_levels: str, kind: str, level: float, uncertain: bool, prior=None):
    """Lower and upper ends (m,), (m,) of intervals of eta, or of mu on the response scale.

    With a and A the mean and covariance of beta and of the effects b of the levels that the fit knows, all of them
    together, given the data, eta = offset + x'beta + z'b has mean and variance

        offset + (x, z)'a,     (x, z)'A (x, z)

    A holds the negative covariance of fixed effects and effects, and of the effects of factors that cross, in which
    most of either's variance cancels; without the parameters' uncertainty it is that of the effects alone. The effect
    of a new level, or of all under "marginal", is N(0, Sigma), and Sigma is uncertain too: eta is then a mixture of
    normals over the posterior of the standard deviation where effects are integrated over it, and else over
    log z'Sigma z, taken as normal by the delta method. Under "population" there are no effects.

    The shape of a known level's part is its posterior's for one effect a group, else normal; where effects are
    integrated over the standard deviation the interval's ends are quantiles of the mixture over it. The ends on the
    response scale are those of eta through the inverse link.

    Parameters
    ----------
    fit : Fit
    rows : Rows
    effects, new_levels, kind : str
        As in `Fit.predict`.
    level : float
    uncertain : bool
        Whether the parameters are.
    prior : AbstractPrior, optional
        Of the standard deviation where it is integrated over.

    References
    ----------
    Henderson (1975), Biometrics 31, 423, for Gaussian responses; Kass & Steffey (1989), JASA 84, 717; Booth & Hobert
    (1998), JASA 93, 262.
    """
    probabilities = _tails(level)
    used = () if effects == "population" else rows.effects
    new = [np.full(len(rows.eta), effects == "marginal") | (codes < 0) for _, codes in used]
    drawn = [mask & (effects == "marginal" or new_levels == "integrate") for mask in new]
    known = np.logical_and.reduce([~mask for mask in new]) if used else np.zeros(len(rows.eta), bool)
    if len(used) == 1:
        eta = np.empty((len(rows.eta), 2))
        at = np.flatnonzero(known)
        eta[at] = _known(fit, _part(rows, at), level, uncertain, prior)
        at = np.flatnonzero(~known)
        eta[at] = quantiles(_drawn(fit, _part(rows, at), drawn[0][at], uncertain, prior), probabilities)
    else:
        eta = quantiles(_several(fit, rows, used, new, drawn, uncertain), probabilities)
    if kind == "link":
        return eta[:, 0], eta[:, 1]
    mu = np.stack([rowwise(fit.state.family, "mean", eta[:, a]) for a in (0, 1)])
    return mu.min(0), mu.max(0)


def _part(rows: Rows, at: np.ndarray) -> Rows:
    return Rows(rows.X[at], rows.eta[at], tuple((z[:, at], codes[at]) for z, codes in rows.effects), ())


def _known(fit, rows: Rows, level: float, uncertain: bool, prior) -> np.ndarray:
    """Ends (m, 2) of eta for levels that the fit knows, one grouping factor."""
    scaling, (z, codes) = fit.state.estimate.scaling, rows.effects[0]
    X, found = scaling.rows(rows.X), fit._effects(0, prior if uncertain else None)
    eb = uncertain and not np.isnan(found.covariance_eb).any()
    if eb and found.mixture is not None:
        return _integrated(fit.state, found, found.mixture, rows, level)
    mean, spread = (found.mean_eb, found.covariance_eb) if eb else (found.mean, found.covariance)
    centre = rows.eta + np.einsum("sm,ms->m", z, mean[codes])
    variance = _squares(z.T, spread[codes])
    if uncertain:
        vcov = found.vcov_of_beta(fit.state)
        place = np.full(len(found.mean), -1)
        place[found.levels] = np.arange(len(found.levels))
        at = place[codes]
        has = np.flatnonzero(at >= 0)
        variance += _squares(X, vcov)
        cross = np.einsum("msp,sm->mp", found.with_beta[at[has]], z[:, has], optimize=True)
        variance[has] += 2 * np.einsum("mp,mp->m", X[has], cross)
        if not eb:  # after an update: the part of beta alone
            variance[has] += _squares(cross, np.linalg.pinv(vcov, hermitian=True))
    shape = np.broadcast_to(_normal_quantiles(level), (len(centre), 2))
    if len(z) == 1 and (rule := fit._rule()) is not None:
        groups, back = np.unique(codes, return_inverse=True)
        quantile = standard_quantiles(fit.state, found, rule, level, groups)[back, 0]
        shape = np.where(z[0][:, None] >= 0, quantile, -quantile[:, ::-1])
    return centre[:, None] + np.sqrt(np.maximum(variance, 0))[:, None] * shape


def _integrated(state, found: Effects, of: Mixture, rows: Rows, level: float) -> np.ndarray:
    """Ends (m, 2) of eta for known levels whose effects are integrated over the posterior of the parameters."""
    scaling, (z, codes) = state.estimate.scaling, rows.effects[0]
    away = of.beta - scaling.beta_from_columns(state.estimate.beta)
    place = np.full(len(found.mean), -1)
    place[found.levels] = np.arange(len(found.levels))
    out = np.empty((len(codes), 2))
    for begin in range(0, len(out), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        X, scale, at = scaling.rows(rows.X[part]), z[0, part, None], codes[part]
        centre = rows.eta[part, None] + X @ away.T + scale * of.mean[:, at].T
        variance = np.einsum("ma,kab,mb->mk", X, of.vcov, X, optimize=True) + scale**2 * of.variance[:, at].T
        has = np.flatnonzero(place[at] >= 0)
        variance[has] += 2 * scale[has] * np.einsum("kmp,mp->mk", of.with_beta[:, place[at[has]]], X[has])
        variance = np.maximum(variance, 1e-300)
        skewness = scale**3 * of.third[:, at].T / variance**1.5
        out[part] = quantiles(Mixtures(of.weights, centre, variance, skewness), _tails(level))
    return out


def _tails(level: float) -> tuple[float, float]:
    return 0.5 * (1 - level), 0.5 * (1 + level)


def _normal_quantiles(level: float) -> np.ndarray:
    from scipy.special import ndtri

    return ndtri(_tails(level))


def _drawn(fit, rows: Rows, drawn: np.ndarray, uncertain: bool, prior) -> Mixtures:
    """eta for new levels of the only grouping factor, whose effect is N(0, Sigma) where it is drawn and else 0."""
    state, (z, _) = fit.state, rows.effects[0]
    found = fit._effects(0, prior) if uncertain and len(z) == 1 else None
    if found is not None and found.mixture is not None:
        of, scaling = found.mixture, state.estimate.scaling
        X = scaling.rows(rows.X)
        centre = rows.eta[:, None] + X @ (of.beta - scaling.beta_from_columns(state.estimate.beta)).T
        spread = np.einsum("ma,kab,mb->mk", X, of.vcov, X, optimize=True)
        return Mixtures(of.weights, centre + 0 * z.sum(0)[:, None], spread + np.outer(drawn * z[0] ** 2, of.sds**2))
    return _by_delta(state, rows, rows.eta + 0 * z.sum(0), np.zeros(len(rows.X)), None, [drawn], uncertain)


def _several(fit, rows: Rows, used, new, drawn, uncertain: bool) -> Mixtures:
    """eta under several factors, or none, each level known or new."""
    state = fit.state
    centre, given, slopes = rows.eta.copy(), np.zeros(len(rows.eta)), None
    if used:
        joint = fit._joint()
        for (z, codes), mask, effects in zip(used, new, (fit._effects(t) for t in range(len(used))), strict=True):
            at = np.flatnonzero(~mask)
            centre[at] += np.einsum("sm,ms->m", z[:, at], effects.mean[codes[at]])
            centre[mask] += 0 * z[:, mask].sum(0)
        given = joint.variance(used, new)
        slopes = joint.slopes_of(used, new) if uncertain else None
    return _by_delta(state, rows, centre, given, slopes, drawn, uncertain)


def _by_delta(state, rows: Rows, centre, given, slopes, drawn, uncertain: bool) -> Mixtures:
    """Mixtures over log v, v = sum z'Sigma z of the effects that are drawn, with the joint errors of eta's mean and it.

    Parameters
    ----------
    centre, given : (m,)
        Mean of eta, and its variance given the parameters but for v.
    slopes : (m, k) or None
        Derivatives of the known levels' part in the parameters.
    drawn : list of bool (m,)
    """
    m, p = rows.X.shape
    v = np.zeros(m)
    for (z, _), mask, sigma in zip(rows.effects, drawn, state.covariances, strict=False):
        v[mask] += _squares(z[:, mask].T, sigma)
    if not uncertain:
        return Mixtures(np.ones(1), centre[:, None], (given + v)[:, None])
    V, at = raw_covariance(state), coordinates(state)
    of_mean = np.zeros((m, len(V)))
    of_mean[:, :p] = state.estimate.scaling.rows(rows.X)
    if slopes is not None:
        of_mean += slopes
    of_v = np.zeros((m, len(V)))
    if drawn:
        z = np.concatenate([np.where(mask, z, 0.0) for (z, _), mask in zip(rows.effects, drawn, strict=True)])
        white = state.factor.T @ z
        for e, (r, c) in enumerate(zip(*at.entries, strict=True)):
            of_v[:, at.p + e] = 2 * z[r] * white[c]
    variance = given + _squares(of_mean, V)
    positive = v > 0
    safe = np.where(positive, v, 1.0)
    error = np.where(positive, np.sqrt(np.maximum(_squares(of_v, V), 0)) / safe, 0.0)
    if not (error > 0).any():
        return Mixtures(np.ones(1), centre[:, None], (variance + v)[:, None])
    shared = np.einsum("ma,ab,mb->m", of_mean, V, of_v, optimize=True) / safe
    along = np.divide(shared, error, out=np.zeros(m), where=error > 0)  # of the mean, for an error of one in log v
    points, weights = np.polynomial.hermite_e.hermegauss(_LOG_NODES)
    scale = np.minimum(error, _LARGEST_LOG_SD)
    return Mixtures(
        weights / weights.sum(), centre[:, None] + along[:, None] * points,
        np.maximum(variance - along**2, 0)[:, None] + v[:, None] * np.exp(scale[:, None] * points),
    )  # fmt: skip


def _squares(rows: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """r'A r of each row (m, k), with one matrix (k, k) or each its own (m, k, k)."""
    if matrices.ndim == 2:
        return np.einsum("ma,ma->m", rows @ matrices, rows)
    return np.einsum("ma,mab,mb->m", rows, matrices, rows)
