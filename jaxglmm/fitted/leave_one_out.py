"""Predictions of each row from the other rows of its group, the parameters frozen."""

from collections.abc import Iterator

import numpy as np

from jaxglmm.errors import DataError, NotYetError
from jaxglmm.fitted.history import History, Prior, is_normal, nodes_for, posteriors
from jaxglmm.fitted.predict import KINDS
from jaxglmm.fitted.rowwise import average, normal_average
from jaxglmm.fitted.state import State


_AT_ONCE = 1_000_000  # rows of groups without a row, in one go
_LONGEST = 2000  # rows of a group: the work grows with their square


def leave_one_out(state: State, history: History, kind: str) -> np.ndarray:
    """eta at the conditional mode, or the posterior mean of mu, of each row given its group's other rows; (n,).

    Every group is taken once without each of its rows, so that the posteriors are those that scoring the others would
    give; the effect of a group of one row is that of an unknown group, mode 0. The parameters have seen all rows, and
    within a group the values fall as the row's own response rises: they serve diagnostics and predictive scores, not as
    features of a second model.

    Raises
    ------
    DataError, NotYetError
        For an unknown kind, or groups of more than 2,000 rows.
    """
    if kind not in KINDS:
        raise DataError(f"kind must be one of {', '.join(map(repr, KINDS))}; found {kind!r}")
    out = np.empty(len(history.y))
    for rows, without in without_each_row(history):
        out[rows] = _predicted(state, without, history.eta[rows], history.z[:, rows], kind)
    return out


def without_each_row(history: History) -> Iterator[tuple[np.ndarray, History]]:
    """Every row's group once more, with that row's weight at 0; about a million rows at a time.

    Yields
    ------
    rows : int (m,)
        Positions in `history`.
    History
        Group k is that of rows[k].

    Raises
    ------
    NotYetError
        For groups of more than 2,000 rows.
    """
    counts = np.bincount(history.codes, minlength=history.n_groups)
    if counts.max(initial=0) > _LONGEST:
        raise NotYetError(
            f"leave-one-out predictions take groups of up to {_LONGEST:,} rows; found one of {int(counts.max()):,}"
        )
    order = np.argsort(history.codes, kind="stable")
    size = counts[history.codes[order]]
    start = np.arange(len(order)) - _rank(size, history.codes[order])
    cut = np.searchsorted(np.cumsum(size), np.arange(_AT_ONCE, int(size.sum()), _AT_ONCE))
    for rows in np.split(np.arange(len(order)), cut):
        if len(rows):
            target = np.repeat(np.arange(len(rows)), size[rows])
            first = np.repeat(np.cumsum(size[rows]) - size[rows], size[rows])
            member = np.repeat(start[rows], size[rows]) + np.arange(len(target)) - first
            own = member == rows[target]
            at = order[member]
            yield order[rows], History(
                target, history.y[at], np.where(own, 0.0, history.weights[at]), history.eta[at], history.z[:, at],
                len(rows),
            )  # fmt: skip


def _rank(size, codes) -> np.ndarray:
    """Place of each row within its group; rows sorted by group."""
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    return np.arange(len(codes)) - np.repeat(first, size[first])


def _predicted(state, without, eta, z, kind) -> np.ndarray:
    """Predictions of rows (m,) with eta (m,) and z (S, m) from groups (m,) of other rows."""
    S, family, out = len(z), state.family, np.array(eta)
    prior = Prior(np.zeros(S), np.asarray(state.estimate.factors[0], float))
    if not prior.factor.any():
        return eta if kind == "link" else normal_average(family, eta, np.zeros_like(eta))
    nodes = nodes_for(family, prior, without, n_agq=state.estimate.n_agq)
    lattice = kind == "response" and S == 1 and not is_normal(family)
    for groups, p in posteriors(family, state.log_dispersion, without, prior, nodes, keep=lattice):
        at, x = z[:, groups], eta[groups]
        if kind == "link" or is_normal(family):
            out[groups] = x + np.sum(at * p.mode, 0)
        elif lattice:
            weights = np.asarray(p.weights).T
            points = np.arange(float(weights.shape[1]))[None]
            base, slope = x + at[0] * p.first * p.step, at * p.step
            out[groups] = average(family, base, slope, points, weights, np.arange(len(groups)))
        else:
            variance = np.einsum("ag,abg,bg->g", at, p.covariance, at)
            out[groups] = normal_average(family, x + np.sum(at * p.mean, 0), variance)
    return out
