"""Posteriors of the effects of one grouping factor at given parameters, and how they move with these."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxglmm.fitted.history import Prior, history_of, is_normal, nodes_for, of_levels, posteriors
from jaxglmm.fitted.state import State
from jaxglmm.inference.coordinates import coordinates, raw_covariance
from jaxglmm.ops.computing import computing
from jaxglmm.ops.moments import covers, group_effects


class Conditional(NamedTuple):
    """Mean (G, S) and covariance (G, S, S) given the parameters, and d'V d (G, S, S)."""

    mean: np.ndarray
    covariance: np.ndarray
    added: np.ndarray


def conditional(state: State, problem, x: np.ndarray | None = None, V: np.ndarray | None = None) -> Conditional:
    """Posteriors of the effects of a fit with one grouping factor, and what the parameters' uncertainty adds.

    Parameters
    ----------
    x, V : (m,), (m, m), optional
        Parameters, see `inference.coordinates`, and their covariance; the estimate's by default.
    """
    V = raw_covariance(state) if V is None else V
    G, S = len(state.terms[0].levels), len(state.terms[0].names)
    found, levels = _native(state, problem, V, x), None
    if found is not None:
        # A search for the mode that begins far from it may leave the range of numbers: there the plain way begins anew.
        levels = np.flatnonzero(~np.isfinite(found.added[:, 0, 0]))
        if not len(levels):
            return found
    else:
        found = Conditional(np.zeros((G, S)), np.zeros((G, S, S)), np.zeros((G, S, S)))
    normal = is_normal(state.family)
    for groups, p in with_slopes(state, problem, x, levels=levels):
        at, m = groups if levels is None else levels[groups], p.slopes.shape[1]
        found.mean[at] = (p.mode if normal else p.mean).T
        found.covariance[at] = np.moveaxis(p.curvature if normal else p.covariance, -1, 0)
        found.added[at] = np.einsum("sag,ab,tbg->gst", p.slopes, V[:m, :m], p.slopes, optimize=True)
    return found


def _native(state: State, problem, V: np.ndarray, x: np.ndarray | None) -> Conditional | None:
    """`conditional` by native code, where there is such for the fit; else None."""
    family, design, at = state.family, problem.design, coordinates(state)
    estimated, x = x is None, at.x if x is None else x
    if design is None or not design.terms or x[at.p] == 0 or not covers(family, design):
        return None
    # The rows are laid out with scaled columns: b = effect / unit, psi = to_design x.
    term, layout, unit = problem.frame.terms[0], problem.layout, float(problem.scaling.z_scale[0])
    to_design = np.ones(len(x))
    to_design[at.p] = unit
    modes = np.zeros((1, layout.n_slots))
    if estimated:
        modes[0, layout.slot] = (state.posteriors[0].mode[:, 0] / x[at.p])[term.codes]
    with computing():
        found = group_effects(family, design, to_design * x, V * np.outer(to_design, to_design), modes, layout.first)
    mean, variance, added = found.T
    return Conditional(mean[:, None] / unit, variance[:, None, None] / unit**2, added[:, None, None] / unit**2)


def with_slopes(
    state: State, problem, x: np.ndarray | None = None, levels: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, Any]]:
    """Posteriors with the slopes of their means in the parameters, piece by piece; none where all effects are zero.

    Parameters
    ----------
    x : (m,), optional
        Parameters, as in `conditional`.
    levels : int (L,), optional
        Some levels, ascending; the groups that are yielded are then positions among these.
    """
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
    scaling = state.estimate.scaling
    prior, history = Prior(np.zeros(S), factor), history_of(problem.frame, 0, scaling.beta_to_columns(x[: at.p]))
    layout, X = problem.storage, problem.frame.X
    nodes = nodes_for(family, prior, history, n_agq=state.estimate.n_agq, coarse=coarse)
    if levels is not None and len(levels) < history.n_groups:
        history, rows = of_levels(history, levels)
        layout, X, start = None, X[rows], None if start is None else start[levels]
    yield from posteriors(family, float(x[-1]), history, prior, nodes, layout=layout, start=start, X=X, scaling=scaling,
                          entries=entries)  # fmt: skip


def with_fixed(state: State, problem, levels: np.ndarray, x: np.ndarray | None = None, V: np.ndarray | None = None):
    """Covariance (L, S, p) of some levels' effects with the coefficients, V d; parameters as in `conditional`."""
    V = raw_covariance(state) if V is None else V
    p, S = len(state.estimate.beta), len(state.terms[0].names)
    out = np.zeros((len(levels), S, p))
    if not len(levels):
        return out
    for at, found in with_slopes(state, problem, x, levels=levels):
        out[at] = np.einsum("bm,smg->gsb", V[:p, : found.slopes.shape[1]], found.slopes)
    return out
