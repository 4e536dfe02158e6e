"""Predictions for new rows and for the rows of the fit; simulated responses."""

from dataclasses import dataclass

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.posterior import check_level
from jaxglmm.fitted.rowwise import normal_average, rowwise
from jaxglmm.fitted.state import State
from jaxglmm.optimise.estimate import modes_of


KINDS = ("response", "link")
EFFECTS = ("conditional", "mode", "marginal", "population")
NEW_LEVELS = ("integrate", "population", "error")


@dataclass(frozen=True)
class Rows:
    """What prediction needs of rows.

    Attributes
    ----------
    X : (m, p)
    eta : (m,)
        Offset plus fixed part.
    effects : tuple of (z (S, m), codes (m,))
        Of each term; -1 for a level that the fit has not seen. Rows whose group is missing have z = NaN.
    labels : tuple of (m,) or None
        Of each term; None for the rows of the fit, and where no group is needed.
    """

    X: np.ndarray
    eta: np.ndarray
    effects: tuple[tuple[np.ndarray, np.ndarray], ...]
    labels: tuple[np.ndarray | None, ...]


def training_rows(frame, beta) -> Rows:
    """The rows of the fit."""
    eta = frame.offset + frame.X @ beta
    return Rows(frame.X, eta, tuple((t.z, t.codes) for t in frame.terms), (None,) * len(frame.terms))


def new_rows(state: State, data, *, groups: bool = True, slopes: bool = True, raw: bool = False) -> Rows:
    """Rows of a table.

    Without `groups` the grouping columns are not read, and every level is a new one; without `slopes` there are no
    effects. `raw` leaves labels as the text of
    a file, see `labels_of_rows`.

    Raises
    ------
    DataError
        For missing columns, other types, new levels of a fixed factor, or an offset that was given as an array.
    """
    spec = state.spec
    if spec.offset_given:
        raise DataError(
            "the offset of this fit was given as an array, which new data cannot repeat: fit with offset='column', or "
            "with offset(...) in the formula, to predict new rows"
        )
    data = spec.read(data, groups=groups, slopes=slopes)
    X, offset = spec.fixed_matrix(data)
    eta = offset + X @ state.estimate.beta
    effects, labels = [], []
    for term in range(len(state.terms)) if slopes else ():
        z = spec.effect_columns(term, data)
        if not groups:
            effects.append((z, np.full(len(eta), -1)))
            labels.append(None)
            continue
        label, missing, codes = spec.groups(term, data, raw=raw)
        z[:, missing] = np.nan
        effects.append((z, codes))
        labels.append(label)
    return Rows(X, eta, tuple(effects), tuple(labels))


def check_options(kind, effects, interval, new_levels) -> None:
    """Refuse options that are not among the documented ones.

    Raises
    ------
    DataError
    """
    for name, value, known in (
        ("kind", kind, KINDS),
        ("effects", effects, EFFECTS),
        ("new_levels", new_levels, NEW_LEVELS),
    ):
        if value not in known:
            raise DataError(f"{name} must be one of {', '.join(map(repr, known))}; found {value!r}")
    if interval is not None:
        check_level(interval)


def predict_rows(fit, rows: Rows, kind: str, effects: str, new_levels: str) -> np.ndarray:
    """Predictions (m,); see `Fit.predict`."""
    state: State = fit.state
    family = state.family
    if effects == "population" or not rows.effects:
        return rows.eta if kind == "link" else rowwise(family, "mean", rows.eta)
    prior = [_variance(z, sigma) for (z, _), sigma in zip(rows.effects, state.covariances, strict=True)]
    if effects == "marginal":
        variance = np.sum(prior, axis=0)
        return rows.eta + 0 * variance if kind == "link" else normal_average(family, rows.eta, variance)
    # A row has its own mixture of levels that the fit knows and of new ones.
    unseen = [codes < 0 for _, codes in rows.effects]
    if new_levels == "error":
        for term, label, new, (z, _) in zip(state.terms, rows.labels, unseen, rows.effects, strict=True):
            _refuse_unseen(term.group, label, new, z)
    several = len(rows.effects) > 1
    at_mode = rows.eta + _shift(rows, unseen, modes_of(state.posteriors))
    if kind == "link":
        return at_mode
    new = np.logical_or.reduce(unseen)
    spread = np.zeros_like(at_mode)
    if new_levels == "integrate":
        spread += np.sum([np.where(where, v, 0.0) for where, v in zip(unseen, prior, strict=True)], axis=0)
    if effects == "conditional" and several:
        return _several_means(fit, rows, unseen, spread)
    rule = None if effects == "mode" else fit._rule()
    out = rowwise(family, "mean", at_mode)
    if rule is not None:
        z, codes = rows.effects[0]
        at = np.flatnonzero(~new)
        out[at] = rule.means(family, rows.eta[at], z[:, at], codes[at])
    if new.any():
        out[new] = normal_average(family, at_mode[new], spread[new])
    return out


def _several_means(fit, rows, unseen, spread) -> np.ndarray:
    """Posterior mean of mu under several factors: eta taken as normal, with the variance of all its effects together.

    Exact for the identity link.
    """
    state: State = fit.state
    eta = rows.eta + _shift(rows, unseen, [posterior.mean for posterior in state.posteriors])
    if state.family.link != "identity":
        spread = spread + fit._joint().variance(rows.effects, unseen)
    return normal_average(state.family, eta, spread)


def _shift(rows, unseen, effects) -> np.ndarray:
    """Sum over the terms of z'b of each row, b = 0 for new levels; NaN where a group is missing."""
    total = np.zeros_like(rows.eta)
    for (z, codes), new, b in zip(rows.effects, unseen, effects, strict=True):
        total += np.where(new, 0 * z.sum(0), np.einsum("sm,ms->m", z, b[codes]))
    return total


def _variance(z, sigma) -> np.ndarray:
    """z'Sigma z of each row."""
    return np.einsum("am,ab,bm->m", z, sigma, z)


def _refuse_unseen(group, labels, unseen, z):
    unseen = unseen & ~np.isnan(z).any(0)
    if unseen.any():
        new = list(dict.fromkeys(np.asarray(labels)[unseen].tolist()))
        more = f" and {len(new) - 5} more" if len(new) > 5 else ""
        raise DataError(
            f"column {group!r} has levels that the fit has not seen: {', '.join(map(repr, new[:5]))}{more}, first in "
            f"row {int(np.flatnonzero(unseen)[0])} (counting from 0); use new_levels='integrate' to average over the "
            "distribution of groups, or 'population' to set their effects to zero"
        )


def simulate(state: State, frame, n: int, seed) -> np.ndarray:
    """Responses (rows, n) of the fitted model with newly drawn random effects; see `Fit.simulate`."""
    rng = np.random.default_rng(seed)
    rows = training_rows(frame, state.estimate.beta)
    out = np.empty((len(rows.eta), n))
    for j in range(n):
        eta = rows.eta
        for (z, codes), factor, term in zip(rows.effects, state.estimate.factors, state.terms, strict=True):
            b = rng.standard_normal((len(term.levels), len(term.names))) @ factor.T
            eta = eta + np.einsum("sm,ms->m", z, b[codes])
        out[:, j] = state.family.sample(rng, rowwise(state.family, "mean", eta), frame.weights, state.log_dispersion)
    return out
