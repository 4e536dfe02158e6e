"""Posteriors of members from their own rows, the parameters frozen."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxglmm.errors import DataError, NotYetError
from jaxglmm.fitted.history import History, Prior, is_normal, moments, nodes_for, posteriors
from jaxglmm.fitted.lattice import quantiles
from jaxglmm.fitted.state import State
from jaxglmm.fitted.tables import text_column
from jaxglmm.model.centring import variances


def only_factor(state: State, what: str) -> None:
    """Refuse models for which `what` is not there.

    Raises
    ------
    DataError, NotYetError
    """
    if not state.terms:
        raise DataError(f"{what} needs a model with random effects; {state.spec.formula!r} has none")
    if len(state.terms) > 1:
        names = ", ".join(repr(term.group) for term in state.terms)
        raise NotYetError(
            f"{what} takes models with one grouping factor: a member's rows alone do not tell its effect from those of "
            f"the others ({names})"
        )


def own_prior(state: State) -> Prior:
    """N(0, Sigma) of the only grouping factor."""
    return Prior(np.zeros(len(state.terms[0].names)), np.asarray(state.estimate.factors[0], float))


@dataclass(frozen=True)
class CompleteRows:
    """The rows of a table without missing values: labels (n,) of their groups, their levels in the fit (-1 for new
    ones), columns X (n, p) of the fixed effects, and the rest as in `History`."""

    labels: np.ndarray
    levels: np.ndarray
    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    eta: np.ndarray
    z: np.ndarray

    def history(self) -> tuple[History, np.ndarray]:
        """With codes by label, and the labels (G,), sorted."""
        labels, codes = np.unique(self.labels, return_inverse=True)
        return History(codes.astype(np.int32), self.y, self.weights, self.eta, self.z, len(labels)), labels


def complete_rows(state: State, data: Any, *, raw: bool = False) -> CompleteRows:
    """Rows of a table for a fit with one grouping factor; those with a missing value are left out.

    Prior weights that the fit took from a column are taken from it again; a row whose weight is missing or zero is left
    out like any other. `raw` leaves labels as the text of a file, see `labels_of_rows`.

    Raises
    ------
    DataError
        For missing columns, other types or an offset that was given as an array.
    """
    from jaxglmm.fitted.predict import new_rows

    spec = state.spec
    data = spec.read(data, response=True)
    rows = new_rows(state, data, raw=raw)
    y, trials = spec.response_values(data)
    weights = trials * spec.weight_values(data)
    (z, levels), label = rows.effects[0], rows.labels[0]
    assert label is not None
    known = np.isfinite(rows.eta) & np.isfinite(y) & (weights > 0) & np.isfinite(weights) & np.isfinite(z).all(0)
    kept = np.flatnonzero(known)
    if len(kept):
        name = spec.response.text if spec.response else "response"
        state.family.check_response(y[kept], weights[kept], " ".join(name.split()), kept)
    return CompleteRows(
        _sortable(label[kept]), levels[kept], rows.X[kept], y[kept], weights[kept], rows.eta[kept], z[:, kept]
    )


def history_from(state: State, data: Any) -> tuple[History, np.ndarray]:
    """History of a table, and the labels (G,) of its groups, sorted.

    Raises
    ------
    DataError
        As `complete_rows`, and when no row is complete.
    """
    kept = complete_rows(state, data)
    if not len(kept.y):
        raise DataError("no row is complete: there is no history to score")
    return kept.history()


def _sortable(label: np.ndarray) -> np.ndarray:
    return label.astype(str) if label.dtype == object and any(isinstance(v, str) for v in label[:1]) else label


def posterior_moments(state: State, history: History, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
    """Mean (G, S) and covariance (G, S, S) of the effects of all members."""
    return moments(state.family, state.log_dispersion, history, prior, n_agq=state.estimate.n_agq)


def score_columns(state: State, history: History, prior: Prior, interval: float | None = None) -> dict[str, np.ndarray]:
    """Columns of the table of scores, one row a level and effect; see `Fit.score`."""
    family, S = state.family, history.z.shape[0]
    G, normal = history.n_groups, is_normal(family)
    basis, variance = state.terms[0].basis, np.diag(state.column_covariances[0])
    mode, mean = np.zeros((G, S)), np.zeros((G, S))
    curvature, spread = np.zeros((G, S)), np.zeros((G, S))
    ends = np.zeros((G, S, 2))
    tail = None if interval is None else 0.5 * (1 - interval)
    if prior.factor.any():
        nodes = nodes_for(family, prior, history, n_agq=state.estimate.n_agq)
        keep = tail is not None and S == 1 and not normal
        for groups, p in posteriors(family, state.log_dispersion, history, prior, nodes, keep=keep):
            mode[groups], mean[groups] = (basis @ p.mode).T, (basis @ p.mean).T
            curvature[groups] = variances(basis, np.moveaxis(p.curvature, -1, 0))
            spread[groups] = variances(basis, np.moveaxis(p.covariance, -1, 0))
            if keep and tail is not None:
                ends[groups, 0] = quantiles(p.first, p.step, p.weights, (tail, 1 - tail))
        if normal:
            mean, spread = mode, curvature
    sd = np.sqrt(np.maximum(spread, 0))
    share = np.divide(spread, variance, out=np.ones_like(spread), where=variance > 0)
    out = {
        "n": np.repeat(np.bincount(history.codes, minlength=G), S),
        "estimate": mode.ravel(),
        "sd": np.sqrt(np.maximum(curvature, 0)).ravel(),
        "mean": mean.ravel(),
        "sd_mean": sd.ravel(),
        "reliability": np.clip(1 - share, 0, 1).ravel(),
    }
    if tail is not None:
        if normal or S > 1:
            from scipy.special import ndtri

            ends = mean[..., None] + sd[..., None] * ndtri([tail, 1 - tail])
        out |= {"lower": ends[..., 0].ravel(), "upper": ends[..., 1].ravel()}
    return out


def score_table(state: State, data: Any, interval: float | None = None) -> Any:
    """Table of the posteriors of all members in `data`; see `Fit.score`."""
    from jaxglmm.fitted.tables import native_table
    from jaxglmm.formula.table import open_table

    only_factor(state, "score()")
    history, labels = history_from(state, data)
    return native_table(open_table(data).native, scores(state, history, labels, own_prior(state), interval))


def scores(state: State, history: History, labels, prior: Prior, interval: float | None) -> dict[str, np.ndarray]:
    """Columns of the table of scores, with the labels of the members."""
    names = state.terms[0].names
    head = {"level": np.repeat(labels, len(names)), "term": np.tile(text_column(names), len(labels))}
    return head | score_columns(state, history, prior, interval)
