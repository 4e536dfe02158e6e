"""Distributions of responses given what is known of their groups: mixtures of the family over the linear predictor.

Of each row the effects of its group have a posterior, from all rows or from the others. The response's distribution
function, density and moments are averages over it, by the trapezoid rule at points as close as the row's own
likelihood is narrow.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from jaxglmm.fitted.history import History, Prior, is_normal, nodes_for, of_levels, posteriors
from jaxglmm.fitted.leave_one_out import without_each_row
from jaxglmm.fitted.rowwise import rowwise
from jaxglmm.fitted.state import State


_REACH, _POINTS, _MOST = 7.5, 31, 1921  # standard deviations of a posterior, points: at least and at most
_AT_ONCE = 4_000_000  # rows times points
# Rows of a group whose posteriors without each of them are worked out one by one. In longer ones a row is taken out of
# the posterior given all by dividing its likelihood out, for which that is wide enough.
_SHORT = 50
_LEAST = 1e-9  # share of a posterior's precision that other rows have, at least
_NEGLIGIBLE = 1e-24  # mass of a point


@dataclass(frozen=True)
class Spread:
    """eta of some rows as a discrete distribution: `eta`, `weights` (m, K), of the rows `rows` (m,)."""

    rows: np.ndarray
    eta: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Observed:
    """Response and weights of rows (n,), in the family's form."""

    y: np.ndarray
    weights: np.ndarray


def plugged_in(eta: np.ndarray) -> Iterator[Spread]:
    """Rows whose eta (n,) is taken as known."""
    yield Spread(np.arange(len(eta)), eta[:, None], np.ones((len(eta), 1)))


def given_history(state: State, history: History, prior: Prior, rows: np.ndarray, data: Observed) -> Iterator[Spread]:
    """Some rows of a history, with their own weights in `data`, given its rows of positive weight."""
    groups, at = np.unique(history.codes[rows], return_inverse=True)
    part, _ = of_levels(history, groups)
    yield from _spread(state, part, prior, rows, at, data, history.eta, history.z)


def given_others(state: State, history: History, prior: Prior) -> Iterator[Spread]:
    """Every row given the other rows of its group, the parameters frozen; for responses that are not Gaussian."""
    rows = Observed(history.y, history.weights)
    long = np.bincount(history.codes, minlength=history.n_groups)[history.codes] > _SHORT
    for which, short in ((np.flatnonzero(~long), True), (np.flatnonzero(long), False)):
        if not len(which):
            continue
        code = np.unique(history.codes[which], return_inverse=True)[1]
        part = History(
            code, history.y[which], history.weights[which], history.eta[which], history.z[:, which], int(code.max()) + 1
        )
        if short:
            for own, without in without_each_row(part):
                at = np.arange(len(own))
                yield from _spread(state, without, prior, which[own], at, rows, history.eta, history.z)
        else:
            for found in _spread(state, part, prior, which, code, rows, history.eta, history.z):
                yield _divided(state, rows, found)


def given_all(state: State, history: History, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and variance (n,), (n,) of eta in each row, the parameters frozen."""
    mean, variance = np.array(history.eta), np.zeros(len(history.y))
    if not prior.factor.any():
        return mean, variance
    nodes = nodes_for(state.family, prior, history, n_agq=state.estimate.n_agq)
    for groups, p in posteriors(state.family, state.log_dispersion, history, prior, nodes):
        place = np.full(history.n_groups, -1)
        place[groups] = np.arange(len(groups))
        here = np.flatnonzero(place[history.codes] >= 0)
        at, z = place[history.codes[here]], history.z[:, here]
        normal = is_normal(state.family)
        mean[here] += np.sum(z * (p.mode if normal else p.mean)[:, at], 0)
        variance[here] = np.einsum("am,abm,bm->m", z, (p.curvature if normal else p.covariance)[:, :, at], z)
    return mean, variance


def without_own(
    state: State, rows: Observed, mode: np.ndarray, variance: np.ndarray, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (n,), (n,) of eta in each row given the others, from mode and variance given all rows.

    With the row's log-likelihood taken as a parabola at the mode, of slope s and curvature -w, the others leave
    eta ~ N(mode - s v, v), v = 1/(1/variance - w): exact for Gaussian responses with identity link. They leave no more
    than the variance `prior` (n,) without any row.
    """
    w = rowwise(state.family, "expected", mode, rows.weights, state.log_dispersion)
    s = rowwise(state.family, "score", mode, rows.y, rows.weights, state.log_dispersion)
    wide = np.minimum(variance / np.maximum(1 - w * variance, _LEAST), prior)
    return mode - s * wide, wide


def of_normal(state: State, rows: Observed, mean: np.ndarray, variance: np.ndarray) -> Iterator[Spread]:
    """Every row with eta ~ N(mean, variance)."""
    normal = lambda _, t: -0.5 * np.square(t)
    yield from _at_points(state, np.arange(len(mean)), mean, np.sqrt(variance), rows, normal)


def _spread(state, history, prior, rows, at, data: Observed, eta, z) -> Iterator[Spread]:
    """Rows (m,), whose groups in `history` are `at` (m,), given that history."""
    x, zr = eta[rows], z[:, rows]
    if not prior.factor.any():
        yield Spread(rows, x[:, None], np.ones((len(rows), 1)))
        return
    lattice = len(zr) == 1 and not is_normal(state.family)
    nodes = nodes_for(state.family, prior, history, n_agq=state.estimate.n_agq)
    for groups, p in posteriors(state.family, state.log_dispersion, history, prior, nodes, keep=lattice):
        place = np.full(history.n_groups, -1)
        place[groups] = np.arange(len(groups))
        here = np.flatnonzero(place[at] >= 0)
        if not len(here):
            continue
        own = place[at[here]]
        if lattice:
            mean, sd = p.mean[0, own], np.sqrt(p.covariance[0, 0, own])
            density = _of_lattice(p, own, mean, sd)
            centre, width = x[here] + zr[0, here] * mean, np.abs(zr[0, here]) * sd
            sign = np.where(zr[0, here] < 0, -1.0, 1.0)[:, None]
            log = lambda k, t, density=density, sign=sign: density(k, sign[k] * t)
        else:
            normal = is_normal(state.family)
            mean, spread = (p.mode, p.curvature) if normal else (p.mean, p.covariance)
            centre = x[here] + np.sum(zr[:, here] * mean[:, own], 0)
            width = np.sqrt(np.einsum("am,abm,bm->m", zr[:, here], spread[:, :, own], zr[:, here]))
            log = lambda k, t: -0.5 * np.square(t)
        yield from _at_points(state, rows[here], centre, width, data, log)


def _of_lattice(p, own, mean, sd) -> Callable:
    """Log density of some groups at mean + t sd: cubic in the logarithms, which is exact where they are parabolas."""
    table = np.log(np.maximum(p.weights, _NEGLIGIBLE))  # (points, groups)

    def density(k, t):
        x = (mean[k, None] + t * sd[k, None]) / p.step[own[k], None] - p.first[own[k], None]
        i = np.clip(np.floor(x).astype(np.int64), 1, len(table) - 3)
        f, total = x - i, np.zeros_like(x)
        for shift, weight in (
            (-1, -f * (f - 1) * (f - 2) / 6), (0, (f + 1) * (f - 1) * (f - 2) / 2), (1, -(f + 1) * f * (f - 2) / 2),
            (2, (f + 1) * f * (f - 1) / 6),
        ):  # fmt: skip
            total += weight * table[i + shift, own[k][:, None]]
        return np.where((x >= 0) & (x <= len(table) - 1), total, -np.inf)

    return density


def _at_points(state, rows, centre, sd, data: Observed, log_density) -> Iterator[Spread]:
    """Trapezoid rules about `centre` (m,), half a standard deviation or half the row's own width apart."""
    w = rowwise(state.family, "expected", centre, data.weights[rows], state.log_dispersion)
    ratio = sd * np.sqrt(np.maximum(w, 0))  # widths of the likelihood in one of the posterior
    finer = np.clip(np.ceil(np.log2(np.maximum(ratio, 1))), 0, np.log2((_MOST - 1) / (_POINTS - 1))).astype(int)
    for level in np.unique(finer):
        count = (_POINTS - 1) * 2**level + 1
        t = np.linspace(-_REACH, _REACH, count)
        chosen = np.flatnonzero(finer == level)
        for part in np.array_split(chosen, -(-len(chosen) * count // _AT_ONCE)):
            log = log_density(part, np.broadcast_to(t, (len(part), count)))
            mass = np.exp(log - log.max(1, keepdims=True))
            mass /= mass.sum(1, keepdims=True)
            yield Spread(rows[part], centre[part, None] + sd[part, None] * t, mass)


def _divided(state, data: Observed, found: Spread) -> Spread:
    """A mixture without the row's own likelihood."""
    log = log_density(state, data, found)
    weights = found.weights * np.exp(np.clip(log.max(1, keepdims=True) - log, None, 600))
    weights[found.weights < 1e-14] = 0.0  # the ends say nothing
    return Spread(found.rows, found.eta, weights / weights.sum(1, keepdims=True))


def log_density(state: State, data: Observed, found: Spread) -> np.ndarray:
    """Log density (m, K) of each row's response at each eta, without the constants of the data."""
    K = found.eta.shape[1]
    y, weight = (np.repeat(v[found.rows], K) for v in (data.y, data.weights))
    log = rowwise(state.family, "loglik", found.eta.ravel(), y, weight, state.log_dispersion)
    return log.reshape(found.eta.shape)


def means(state: State, found: Spread) -> np.ndarray:
    """mu (m, K)."""
    return rowwise(state.family, "mean", found.eta.ravel()).reshape(found.eta.shape)
