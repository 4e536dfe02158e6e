"""Effects of the groups of a fit: posterior means and variances, and what the parameters' uncertainty adds to them."""

from dataclasses import dataclass, fields

import numpy as np

from jaxglmm.fitted.history import Prior, history_of, is_normal, nodes_for, posteriors
from jaxglmm.fitted.state import State


DELTA, INTEGRATED, GIVEN = "delta", "integrated", "given"


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
        grouping factors, normal posteriors given the parameters, no variance_eb (NaN).
    """

    mean: np.ndarray
    variance: np.ndarray
    mean_eb: np.ndarray
    variance_eb: np.ndarray
    how: str

    def arrays(self) -> dict[str, np.ndarray]:
        """What is saved, by name."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}


def effects_of(state: State, problem, term: int) -> Effects:
    """Effects of one grouping factor of a fit that has its rows."""
    posterior = state.posteriors[term]
    if len(state.terms) > 1:
        variance = np.diagonal(posterior.covariance, axis1=1, axis2=2)
        return Effects(posterior.mode, variance, posterior.mode, np.full_like(variance, np.nan), GIVEN)
    from jaxglmm.inference.theta_posterior import integrate, needs_integration

    mean, variance, added = conditional(state, problem)
    if needs_integration(state, problem):
        return Effects(mean, variance, *integrate(state, problem), INTEGRATED)
    return Effects(mean, variance, mean, variance + added, DELTA)


def conditional(state: State, problem, x: np.ndarray | None = None, V: np.ndarray | None = None):
    """Mean, variance and d'V d (G, S) of the effects of a fit with one grouping factor.

    Parameters
    ----------
    x, V : (m,), (m, m), optional
        Parameters (beta, entries of Lambda, log dispersion) and their covariance; the estimate's by default.
    """
    from jaxglmm.inference.likelihood import coordinates, raw_covariance

    family, at, start = state.family, coordinates(state), None
    entries = tuple(zip(*(v.tolist() for v in at.entries), strict=True))
    m = at.p + len(entries) + (family.dispersion_name is not None)
    S = len(state.terms[0].names)
    if x is None or V is None:
        x, V = at.x, raw_covariance(state)
        if S == 1 and x[at.p] > 0:
            start = state.posteriors[0].mode / x[at.p]
    factor = np.zeros((S, S))
    factor[at.entries] = x[at.p : at.p + len(entries)]
    history = history_of(problem.frame, 0, x[: at.p])
    out = tuple(np.zeros((history.n_groups, S)) for _ in range(3))
    if not factor.any():
        return out
    prior = Prior(np.zeros(S), factor)
    layout = None if problem.design is None else (problem.design.index, problem.layout)
    nodes = nodes_for(family, prior, history, n_agq=state.estimate.n_agq)
    found = posteriors(
        family, float(x[-1]), history, prior, nodes, layout=layout, start=start, X=problem.frame.X, V=V[:m, :m],
        entries=entries,
    )  # fmt: skip
    normal = is_normal(family)
    for groups, p in found:
        spread = p.curvature if normal else p.covariance
        out[0][groups] = (p.mode if normal else p.mean).T
        out[1][groups] = np.diagonal(spread, axis1=0, axis2=1)
        out[2][groups] = p.slopes.T
    return out
