"""The same groups shrunken in five ways: random intercept, one-hot ridge twice, no pooling, complete pooling."""

import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jaxglmm.arguments import mapping, optional, seed as seeds, takes, whole
from jaxglmm.errors import ConvergenceError, DataError, DataWarning
from jaxglmm.fitted.history import History
from jaxglmm.fitted.predictive import Observed, given_history, log_density, means, plugged_in
from jaxglmm.fitted.rowwise import rowwise
from jaxglmm.fitted.scoring import own_prior
from jaxglmm.fitted.tables import native_table, text_column
from jaxglmm.fitting import fit
from jaxglmm.formula.bars import parse_formula
from jaxglmm.formula.frame import model_frame
from jaxglmm.model.families import get_family
from jaxglmm.objectives.marginal import MOST_NODES
from jaxglmm.path_design import fold_labels


# Sds of the cross-validated ridge, relative to the estimated one; and the sd that stands for no shrinkage at all.
_GRID = 2.0 ** np.arange(-2.0, 2.5, 0.5)
_NO_SHRINKAGE = 300.0
_CLASSES = 3  # of groups, by size


@dataclass(frozen=True)
class ShrinkageComparison:
    """What `compare_shrinkage` found.

    Attributes
    ----------
    table
        Of the caller's kind, a row for each way: `method`, `log_loss` (mean negative log predictive density of held-out
        rows: averaged over the posterior of the group's effect for the random intercept, at the point estimate for the
        others, which have no more), `auc` (0/1 responses), `slope_all` and `slope_1` ... (calibration slope: of the
        response on the predicted link, over all groups and by size of group, ascending; 1 is right, below 1 the
        predictions are too extreme), `tau`, `lambda` (sigma^2/tau^2, or 1/tau^2, on the sum of the losses), `seconds`
        of its fit to all rows.
    size_classes : list of (int, int)
        Smallest and largest group of each class.
    groups : dict of str to (G,) array
        `level`, `n`, `raw` (own estimate), `shrunken` (mode in the random-intercept fit), `ridge` (that of the one-hot
        ridge at the implied lambda), `rho` (1 - sd^2/tau^2).
    fits : dict
        The fits to all rows, by method.
    information : float
        Mean information of a row on its group's effect: 1/sigma^2 for Gaussian responses.
    at_edge : bool
        Whether the best of the cross-validated ridge's sds is the first or last of its grid, so that a better one may
        lie beyond; a warning says so too.
    group : str
    """

    table: Any
    size_classes: list[tuple[int, int]]
    groups: dict[str, np.ndarray]
    fits: dict
    information: float
    at_edge: bool
    group: str

    def plot(self, path=None):
        """Shrunken against raw estimates, and rho against the size of the group; see `path_plots.plot_pooling`."""
        from jaxglmm.path_plots import plot_pooling

        return plot_pooling(self, path)


@takes(folds=whole(2), seed=seeds, n_agq=optional(whole(1, MOST_NODES)), levels=optional(mapping))
def compare_shrinkage(
    formula, data, *, family="gaussian", folds=5, seed=0, n_agq=None, weights=None, offset=None, levels=None
) -> ShrinkageComparison:
    """Shrink the groups of one factor in five ways, and score each on held-out rows.

    "random intercept": tau by the marginal likelihood, predictions averaged over the posterior; "ridge, lambda
    implied": one-hot ridge at the lambda = 1/tau^2 (Gaussian: sigma^2/tau^2) that this tau is; "ridge, lambda by
    cross-validation": at the best of nine; "no pooling": an estimate of its own for each group, where all of these
    exist; "complete pooling": none. No one-hot matrix is formed: ridge is the joint likelihood at a held tau.

    Parameters
    ----------
    formula : str
        With one bar, such as `"y ~ x + (1 | g)"`.
    data, family, weights, offset, levels
        As in `jaxglmm.fit`.
    folds : int
        Rows are held out, so that a group's other rows are known when it is predicted. The ridge's lambda for a fold is
        chosen by the other folds' scores.
    seed : int
    n_agq : int, optional
        Nodes of the random-intercept fit.

    Returns
    -------
    ShrinkageComparison

    Raises
    ------
    DataError
        When the formula has another random part than one intercept, or the variance is zero.
    """
    family = get_family(family)
    bars = parse_formula(formula).bars
    frame = model_frame(formula, data, family=family, weights=weights, offset=offset, levels=levels)
    if len(frame.terms) != 1 or frame.terms[0].z.shape[0] != 1 or np.ptp(frame.terms[0].z):
        raise DataError(f"compare_shrinkage is about one random intercept, such as (1 | g); found {formula!r}")
    group = frame.terms[0].group
    prior = np.zeros(frame.total)
    prior[frame.rows] = frame.weights if weights is not None else 1.0
    fold: Any = fold_labels(frame, folds, "rows", seed, frame.total)
    common = {"family": family, "offset": offset, "levels": levels}
    mixed = common | {"formula": formula, "data": data}
    plain = common | {"formula": _without_bars(formula, bars), "data": data}
    every = _Ways(mixed, plain, group, n_agq, _exist(frame, family))
    fits, seconds = every.fit(prior if weights is not None else None)
    scored = _held_out(every, frame, family, fold, prior)
    factor = scored.pop("factor")
    at_edge = factor in (_GRID[0], _GRID[-1])
    if at_edge:
        warnings.warn(
            f"the best of the ridge's sds, {factor:g} times the estimated one, is at the edge of the grid from "
            f"{_GRID[0]:g} to {_GRID[-1]:g}: a better one may lie beyond",
            DataWarning,
            stacklevel=2,
        )
    fits["ridge, lambda by cross-validation"], seconds["ridge, lambda by cross-validation"] = every.ridge(
        factor, prior if weights is not None else None
    )
    classes, sizes = _size_classes(frame.terms[0].codes)
    names = [name for name in fits if fits[name] is not None]
    rows = [_scores(frame, family, scored[name], classes) for name in names]
    taus = [math.sqrt(f.varcorr[0]["variance"]) if f.groups else 0.0 for f in (fits[name] for name in names)]
    taus = [math.inf if name == "no pooling" else tau for name, tau in zip(names, taus, strict=True)]
    sigma = fits["random intercept"].dispersion["value"] if family.name == "gaussian" else 1.0
    table = {"method": text_column(names)} | {key: np.array([row[key] for row in rows]) for key in rows[0]}
    table |= {"tau": np.array(taus), "lambda": np.array([_lambda(sigma, tau) for tau in taus])}
    table["seconds"] = np.array([seconds[name] for name in names])
    groups, information = _groups(fits, group)
    return ShrinkageComparison(native_table(frame.native, table), sizes, groups, fits, information, at_edge, group)


def _lambda(sigma, tau):
    return sigma**2 / tau**2 if tau > 0 else math.inf


def _without_bars(formula: str, bars) -> str:
    """The formula's fixed part: what stands in brackets with a bar is taken out."""
    left, right = formula.split("~", 1)
    depth, kept, term = 0, [], ""
    for character in right + "+":
        depth += (character == "(") - (character == ")")
        if character == "+" and depth == 0:
            if "|" not in term:
                kept.append(term.strip())
            term = ""
        else:
            term += character
    return f"{left.strip()} ~ {' + '.join(kept) or '1'}"


def _exist(frame, family) -> bool:
    """Whether every group has a finite estimate of its own."""
    if family.name not in ("binomial", "poisson", "negativebinomial"):
        return True
    codes, G = frame.terms[0].codes, len(frame.terms[0].levels)
    successes = np.bincount(codes, frame.weights * frame.y, minlength=G)
    trials = np.bincount(codes, frame.weights, minlength=G)
    return bool((successes > 0).all() and (family.name != "binomial" or (successes < trials).all()))


class _Ways:
    """The five ways as fits of rows with given weights."""

    def __init__(self, mixed: dict[str, Any], plain: dict[str, Any], group, n_agq, exist):
        self.mixed, self.plain, self.group, self.n_agq, self.exist = mixed, plain, group, n_agq, exist
        self.tau = math.nan

    def fit(self, weights) -> tuple[dict, dict]:
        """Fits and their seconds, without the cross-validated ridge's, which is chosen later."""
        fits, seconds = {}, {}

        def timed(name, run):
            began = time.perf_counter()
            fits[name], seconds[name] = run(), time.perf_counter() - began

        timed("random intercept", lambda: fit(**self.mixed, n_agq=self.n_agq, weights=weights))
        tau = fits["random intercept"].varcorr[0]["sd"]
        if math.isnan(self.tau):
            if tau == 0:
                raise DataError(
                    f"the variance of {self.group!r} is estimated as zero: there is no shrinkage to compare"
                )
            self.tau = tau
        timed("ridge, lambda implied", lambda: self._joint(max(tau, 1e-6 * self.tau), weights))
        fits["ridge, lambda by cross-validation"] = None
        fits["no pooling"] = None
        if self.exist:
            timed("no pooling", lambda: self._joint(_NO_SHRINKAGE * self.tau, weights))
        timed("complete pooling", lambda: fit(**self.plain, weights=weights))
        return fits, seconds

    def ridge(self, factor, weights):
        """The ridge at an sd of `factor` times the estimated one, with its seconds."""
        began = time.perf_counter()
        return self._joint(factor * self.tau, weights), time.perf_counter() - began

    def _joint(self, sd, weights):
        return fit(**self.mixed, method="joint", theta={self.group: sd}, weights=weights)


def _held_out(ways, frame, family, fold, prior) -> dict:
    """(mean, log predictive density) of every row by fits that did not see it, by way; and the best ridge's factor."""
    n, folds = len(frame.y), int(fold.max()) + 1
    out = {}
    losses = np.zeros((len(_GRID), folds))
    ridges = np.zeros((len(_GRID), 2, n))
    for k in range(folds):
        held = np.flatnonzero(fold == k)
        weights = prior.copy()
        weights[frame.rows[held]] = 0.0
        fits, _ = ways.fit(weights)
        for name, model in fits.items():
            if model is not None:
                out.setdefault(name, np.zeros((2, n)))[:, held] = _predicted(model, frame, held)
        for g, factor in enumerate(_GRID):
            ridges[g][:, held] = _predicted(ways.ridge(factor, weights)[0], frame, held)
            losses[g, k] = -ridges[g, 1, held].sum()
    chosen = np.zeros((2, n))
    for k in range(folds):
        best = np.argmin(losses.sum(1) - losses[:, k])
        chosen[:, fold == k] = ridges[best][:, fold == k]
    out["ridge, lambda by cross-validation"] = chosen
    return out | {"factor": float(_GRID[np.argmin(losses.sum(1))])}


def _predicted(model, frame, held) -> np.ndarray:
    """Mean and log predictive density (2, m) of the rows `held`, by a fit to the others.

    A fit that integrates over the effects predicts by their posterior given the other rows; one at their joint mode by
    that alone.
    """
    state, family = model.state, model.family
    lost = [name for name in frame.names if name not in model.names]
    if lost:
        raise DataError(
            f"a fold holds all rows from which {lost[0]!r} could be estimated: use fewer folds, or join rare levels"
        )
    eta = frame.offset + frame.X @ state.estimate.beta
    rows = Observed(frame.y, frame.weights)
    if not state.terms:
        found = plugged_in(eta)
    else:
        # The fit has no levels whose rows are all held out: their effects are those of N(0, tau^2), of mode 0.
        term, own = frame.terms[0], state.terms[0]
        at = pd.Index(own.levels).get_indexer(pd.Index(term.levels))[term.codes]
        if model.method == "joint":
            found = plugged_in(eta + np.where(at >= 0, state.posteriors[0].mode[at, 0], 0.0) * term.z[0])
        else:
            weights = frame.weights.copy()
            weights[held] = 0.0
            history = History(term.codes, frame.y, weights, eta, term.z, len(term.levels))
            found = given_history(state, history, own_prior(state), held, rows)
    out = np.empty((2, len(frame.y)))
    for part in found:
        log = log_density(state, rows, part)
        top = log.max(1)
        out[0, part.rows] = np.sum(part.weights * means(state, part), 1)
        out[1, part.rows] = top + np.log(np.sum(part.weights * np.exp(log - top[:, None]), 1))
    out = out[:, held]
    out[1] += family.constant(frame.y[held], frame.weights[held]) / len(held)
    return out


def _scores(frame, family, predicted, classes) -> dict:
    rows = np.ones(len(frame.y), bool)
    binary = family.name == "binomial" and np.isin(frame.y, (0.0, 1.0)).all()
    out = {"log_loss": float(-predicted[1].sum() / frame.weights.sum())}
    out["auc"] = _auc(frame.y, predicted[0], frame.weights) if binary else math.nan
    out["slope_all"] = _slope(frame, family, predicted[0], rows)
    for c in range(classes.max() + 1):
        out[f"slope_{c + 1}"] = _slope(frame, family, predicted[0], classes == c)
    return out


def _auc(y, score, weights) -> float:
    """P(score of an event > score of a non-event), ties one half."""
    values, at = np.unique(score, return_inverse=True)
    events = np.bincount(at, weights * y, minlength=len(values))
    others = np.bincount(at, weights * (1 - y), minlength=len(values))
    below = np.cumsum(others) - others
    return float(np.sum(events * (below + 0.5 * others)) / (events.sum() * others.sum()))


def _slope(frame, family, mean, rows) -> float:
    """Slope of the response on the predicted link; NaN where it has none."""
    if family.name == "binomial":
        mean = np.clip(mean, 1e-6, 1 - 1e-6)
    link = rowwise(family, "link_function", mean[rows])
    data = {"y": frame.y[rows], "link": link}
    try:
        return fit("y ~ link", data, family=family, weights=frame.weights[rows]).fixef["link"]
    except (ConvergenceError, DataError):  # predictions all alike, or that separate the responses
        return math.nan


def _size_classes(codes) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Class (n,) of each row by the size of its group, and the sizes of each class; about equally many rows in each."""
    size = np.bincount(codes)[codes]
    edges = np.quantile(size, np.arange(1, _CLASSES) / _CLASSES, method="lower")
    edges = np.unique(np.minimum(edges, size.max() - 1))  # where most are of the largest size, these are a class
    classes = np.searchsorted(edges, size, side="left")
    _, classes = np.unique(classes, return_inverse=True)
    return classes, [(int(size[classes == c].min()), int(size[classes == c].max())) for c in range(classes.max() + 1)]


def _groups(fits, group) -> tuple[dict[str, np.ndarray], float]:
    from jaxglmm.plots import columns_of

    mixed = fits["random intercept"]
    effects = columns_of(mixed.ranef(group))
    variance = mixed.varcorr[0]["variance"]
    rho = 1 - effects["sd"] ** 2 / variance
    with np.errstate(divide="ignore", invalid="ignore"):
        raw = np.where(rho > 1e-12, effects["estimate"] / rho, np.nan)
        information = np.sum(1 / effects["sd"] ** 2 - 1 / variance) / effects["n"].sum()
    ridge = columns_of(fits["ridge, lambda implied"].ranef(group))["estimate"]
    out = {"level": effects["level"], "n": effects["n"], "raw": raw, "shrunken": effects["estimate"]}
    return out | {"ridge": ridge, "rho": rho}, float(information)
