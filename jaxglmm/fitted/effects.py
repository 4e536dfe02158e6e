"""Effects of the groups of a fit: posterior means and variances, and what the parameters' uncertainty adds to them."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np

from jaxglmm.fitted.history import History, Prior, history_of, is_normal, nodes_for, posteriors
from jaxglmm.fitted.lattice import quantiles
from jaxglmm.fitted.state import State
from jaxglmm.ops.moments import covers, group_effects


# What `sd_eb` is, by the way it was reached.
HOW = {
    "delta": "delta method: posterior variance + d'V d, V the covariance of the parameters",
    "integrated": "integrated over the posterior of the parameters, half-t(3, scale 2.5) on the sd between groups",
    "updated": "not available: after update() posteriors are given the parameters",
    "approximated": "not available: after update() posteriors are given the parameters and N(mode, curvature)",
    "given": "not available: with several grouping factors posteriors are normal and given the parameters",
}


@dataclass(frozen=True)
class Effects:
    """Posterior of every level's effects, level order.

    Attributes
    ----------
    mean : (G, S)
        Given the parameters.
    variance : (G, S)
        Given the parameters.
    mean_eb, variance_eb : (G, S)
        With the parameters' uncertainty.
    how : str
        "delta": variance_eb = variance + d'V d. "integrated": over the posterior of the parameters. "given": several
        grouping factors, normal posteriors given the parameters, no variance_eb (NaN); nor is there one after an update
        of an exact posterior ("updated") or of a normal one ("approximated").
    """

    mean: np.ndarray
    variance: np.ndarray
    mean_eb: np.ndarray
    variance_eb: np.ndarray
    how: str

    def arrays(self) -> dict[str, np.ndarray]:
        """What is saved, by name."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}


@dataclass
class Kept:
    """What a fit has worked out of its groups, or was loaded with: effects by term, and its rows if they were saved."""

    effects: dict[int, Effects]
    history: History | None


def effects_of(state: State, problem, term: int) -> Effects:
    """Effects of one grouping factor of a fit that has its rows."""
    if len(state.terms) > 1 or problem is None:
        posterior = state.posteriors[term]
        variance = np.diagonal(posterior.covariance_mean, axis1=1, axis2=2)
        return Effects(posterior.mean, variance, posterior.mean, np.full_like(variance, np.nan), "given")
    from jaxglmm.inference.theta_posterior import integrate, needs_integration

    mean, variance, added = conditional(state, problem)
    if needs_integration(state, problem):
        return Effects(mean, variance, *integrate(state, problem), "integrated")
    return Effects(mean, variance, mean, variance + added, "delta")


def intervals(state: State, effects: Effects, history, level: float, uncertain: bool) -> np.ndarray:
    """Ends (G, S, 2) of equal-tailed posterior intervals.

    With the parameters' uncertainty the posterior given the parameters is moved and stretched to `mean_eb` and
    `variance_eb`.

    Parameters
    ----------
    history : callable
        As in `standard_quantiles`.
    uncertain : bool
        With the parameters' uncertainty.
    """
    z = standard_quantiles(state, effects, history, level)
    if uncertain and not np.isnan(effects.variance_eb).any():
        return effects.mean_eb[..., None] + np.sqrt(effects.variance_eb)[..., None] * z
    return effects.mean[..., None] + np.sqrt(np.maximum(effects.variance, 0))[..., None] * z


def standard_quantiles(state: State, effects: Effects, history, level: float) -> np.ndarray:
    """Quantiles (G, S, 2) at both ends of an interval, as (quantile - mean) / sd of each posterior.

    Of the exact posterior for one effect, other than with Gaussian responses; normal otherwise.

    Parameters
    ----------
    history : callable
        Gives (History, layout or None) of the rows; not called where posteriors are normal.
    level : float
        Of the interval.
    """
    from scipy.special import ndtri

    tail = 0.5 * (1 - level)
    sd = np.sqrt(np.maximum(effects.variance, 0))
    z = np.broadcast_to(ndtri([tail, 1 - tail]), (*sd.shape, 2)).copy()
    if sd.shape[1] == 1 and len(state.terms) == 1 and not is_normal(state.family) and state.factor.any():
        prior = Prior(np.zeros(1), np.asarray(state.estimate.factors[0], float))
        rows, layout = history()
        nodes = nodes_for(state.family, prior, rows)
        for groups, p in posteriors(state.family, state.log_dispersion, rows, prior, nodes, layout=layout, keep=True):
            q = quantiles(p.first, p.step, p.weights, (tail, 1 - tail))
            z[groups, 0] = (q - effects.mean[groups]) / sd[groups]
    return z


def conditional(state: State, problem, x: np.ndarray | None = None, V: np.ndarray | None = None):
    """Mean, variance and d'V d (G, S) of the effects of a fit with one grouping factor.

    Parameters
    ----------
    x, V : (m,), (m, m), optional
        Parameters (beta, entries of Lambda, log dispersion) and their covariance; the estimate's by default.
    """
    from jaxglmm.inference.likelihood import raw_covariance

    V = raw_covariance(state) if V is None else V
    if (found := _native(state, problem, V, x)) is not None:
        return found
    normal, G, S = is_normal(state.family), len(state.terms[0].levels), len(state.terms[0].names)
    out = tuple(np.zeros((G, S)) for _ in range(3))
    for groups, p in with_slopes(state, problem, x):
        spread = p.curvature if normal else p.covariance
        out[0][groups] = (p.mode if normal else p.mean).T
        out[1][groups] = np.diagonal(spread, axis1=0, axis2=1)
        m = p.slopes.shape[1]
        out[2][groups] = np.einsum("sag,ab,sbg->gs", p.slopes, V[:m, :m], p.slopes, optimize=True)
    return out


def _native(state: State, problem, V: np.ndarray, x: np.ndarray | None):
    """`conditional` by native code, where there is such for the fit; else None."""
    from jaxglmm.inference.likelihood import coordinates

    family, design, at = state.family, problem.design, coordinates(state)
    estimated, x = x is None, at.x if x is None else x
    if design is None or not design.terms or x[at.p] == 0 or not covers(family, design):
        return None
    # The rows are laid out with scaled columns: b = effect / unit, psi = to_design x.
    term, scaling, layout = problem.frame.terms[0], problem.scaling, problem.layout
    unit = float(scaling.z_scale[0])
    to_design = np.eye(len(x))
    to_design[: at.p, : at.p], to_design[at.p, at.p] = np.linalg.inv(scaling.to_columns()), unit
    modes = np.zeros((1, layout.n_slots))
    if estimated:
        modes[0, layout.slot] = (state.posteriors[0].mode[:, 0] / x[at.p])[term.codes]
    with jax.enable_x64(True):
        found = group_effects(family, design, to_design @ x, to_design @ V @ to_design.T, modes, layout.first)
    return tuple(found[:, k : k + 1] / unit ** (1 if k == 0 else 2) for k in range(3))


def with_slopes(state: State, problem, x: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, Any]]:
    """Posteriors with the slopes of their means in the parameters, piece by piece; none where all effects are zero.

    Parameters
    ----------
    x : (m,), optional
        Parameters, as in `conditional`.
    """
    from jaxglmm.inference.likelihood import coordinates

    family, at, start = state.family, coordinates(state), None
    entries = tuple(zip(*(v.tolist() for v in at.entries), strict=True))
    S = len(state.terms[0].names)
    if x is None and S == 1 and at.x[at.p] > 0:
        start = state.posteriors[0].mode / at.x[at.p]
    # An average over parameters needs no digits: one program serves all of them.
    coarse, x = x is not None, at.x if x is None else x
    factor = np.zeros((S, S))
    factor[at.entries] = x[at.p : at.p + len(entries)]
    if not factor.any():
        return
    prior, history = Prior(np.zeros(S), factor), history_of(problem.frame, 0, x[: at.p])
    nodes = nodes_for(family, prior, history, n_agq=state.estimate.n_agq, coarse=coarse)
    yield from posteriors(
        family, float(x[-1]), history, prior, nodes, layout=problem.storage, start=start, X=problem.frame.X,
        entries=entries,
    )  # fmt: skip
