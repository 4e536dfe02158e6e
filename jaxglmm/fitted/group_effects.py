"""How the effects of a fit get the parameters' uncertainty: by the delta method, integrated, or not at all."""

import numpy as np

from jaxglmm.fitted.conditional import Conditional, conditional, with_fixed
from jaxglmm.fitted.effects import Effects, given_effects
from jaxglmm.fitted.state import State
from jaxglmm.inference.theta_posterior import NODES, integrate, needs_integration


# Effects' covariances with the fixed effects are kept for all levels while they are so many numbers; beyond, for those
# whose predictions they change: by this share of the variance.
_CROSS_NUMBERS, _CROSS_SHARE = 4_000_000, 1e-3


def effects_of(state: State, problem, term: int, prior=None) -> Effects:
    """Effects of one grouping factor of a fit that has its rows.

    Parameters
    ----------
    prior : AbstractPrior, optional
        Of the standard deviation where it is integrated over.
    """
    p = len(state.estimate.beta)
    if len(state.terms) > 1 or problem is None:
        posterior = state.posteriors[term]
        return given_effects(posterior.mean, posterior.covariance_mean, "given", p)
    found = conditional(state, problem)
    integrated = needs_integration(state)
    levels = _levels_that_matter(state, found, NODES if integrated else 1)
    if integrated:
        return integrate(state, problem, found, levels, prior)
    cross = with_fixed(state, problem, levels)
    return Effects(found.mean, found.covariance, found.mean, found.covariance + found.added, "delta", levels, cross)


def _levels_that_matter(state: State, found: Conditional, copies: int) -> np.ndarray:
    """Levels whose covariance with the fixed effects is kept, in so many copies.

    It adds 2 x'V d to the variance of a prediction, at most 2 (x'V x d'V d)^(1/2); x'V x is as of the mean of the
    columns' squares where predictions are made, for which p times the variance of the predictor's mean stands in.
    """
    (G, S), p = found.mean.shape, len(state.estimate.beta)
    if G * S * p * copies <= _CROSS_NUMBERS:
        return np.arange(G)
    variance = np.trace(found.covariance, axis1=1, axis2=2)
    added = np.trace(found.added, axis1=1, axis2=2)
    share = 2 * np.sqrt(added * np.max(added)) / np.maximum(variance, 1e-300)
    found_levels = np.flatnonzero(share > _CROSS_SHARE)
    most = _CROSS_NUMBERS // (S * p * copies)
    if len(found_levels) > most:
        found_levels = np.sort(found_levels[np.argpartition(-share[found_levels], most)[:most]])
    return found_levels
