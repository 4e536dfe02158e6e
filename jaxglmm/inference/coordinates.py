"""The parameters of a fit as one vector x = (coefficients, entries of Lambda, log dispersion).

Coefficients are those of the columns in use, (X - center) / scale, in which nothing cancels whatever the columns'
means; Lambda is of the effects' columns as a frame has them.
"""

from dataclasses import dataclass

import numpy as np

from jaxglmm.model.centring import is_identity


# A diagonal entry of Lambda below this share of its row is a zero that rounding has left.
_ZERO = 1e-9


@dataclass(frozen=True)
class Coordinates:
    """Where a fit's parameters lie in x.

    Attributes
    ----------
    x : (m,)
        At the estimate, coefficients of the columns in use; without a dispersion it ends with an idle 0.
    p : int
        Fixed effects.
    entries : (rows (q,), columns (q,))
        Of Lambda.
    free : bool (m,)
        Those that may move: not held by the caller, and not redundant beside a variance of zero.
    even : bool (m,)
        Diagonal entries of Lambda, in which the likelihood is even.
    order : (S,)
        Effects of all terms, in the order in which Lambda takes them.
    loads : (S, S)
        Lambda is that of the effects loads b, b those of the centred columns of the fit in their own order.
    """

    x: np.ndarray
    p: int
    entries: tuple[np.ndarray, np.ndarray]
    free: np.ndarray
    even: np.ndarray
    order: np.ndarray
    loads: np.ndarray


def coordinates(state, first: int | None = None) -> Coordinates:
    """Coordinates of a fit's estimate.

    Parameters
    ----------
    first : int, optional
        An effect that is to be the first of its block, so that its standard deviation is an entry of Lambda; where a
        centre falls to it, its block is of the columns as they were written.
    """
    estimate = state.estimate
    beta = estimate.scaling.beta_from_columns(estimate.beta)
    p = len(beta)
    phi = np.array([estimate.dispersion is not None and not state.family.at_limit(state.log_dispersion)])
    if not state.terms:
        return Coordinates(
            np.append(beta, state.log_dispersion), p, (np.zeros(0, int),) * 2,
            np.concatenate([np.ones(p, bool), phi]), np.zeros(p + 1, bool), np.zeros(0, int), np.eye(0),
        )  # fmt: skip
    covariance, factor = state.structure, state.factor
    order, loads = np.arange(covariance.n_effects), np.eye(covariance.n_effects)
    if first is not None:
        block = next(list(block) for block in covariance.blocks if first in block)
        order[block] = [first, *(a for a in block if a != first)]
        loads[first] = state.basis[first]
        loads = loads[order]
        if block[0] != first or not is_identity(loads):
            factor = covariance.canonical(loads @ factor)
    size = np.sqrt(np.square(factor).sum(1))
    factor = np.where(np.eye(len(factor), dtype=bool) & (np.abs(factor) <= _ZERO * size[:, None]), 0.0, factor)
    rows, columns = covariance.entries
    raw = factor[rows, columns]
    # Below a zero on the diagonal a column of Lambda is a rotation of later ones.
    last = {block[-1] for block in covariance.blocks}
    stuck = np.array([factor[c, c] == 0 and int(c) not in last for c in columns])
    held = not (estimate.convergence.singular or (np.diag(estimate.covariance)[p : p + len(raw)] > 0).any())
    return Coordinates(
        np.concatenate([beta, raw, [state.log_dispersion]]), p, (rows, columns),
        np.concatenate([np.ones(p, bool), ~(stuck | held), phi]),
        np.concatenate([np.zeros(p, bool), rows == columns, [False]]), order, loads,
    )  # fmt: skip


def raw_covariance(state) -> np.ndarray:
    """Covariance of x (m, m) from that of (coefficients, log-Cholesky theta, log dispersion)."""
    c, covariance = coordinates(state), state.estimate.covariance
    scale = np.where(c.even & (c.x != 0), c.x, 1.0)[: len(covariance)]
    out = np.zeros((len(c.x),) * 2)
    out[: len(covariance), : len(covariance)] = covariance * np.outer(scale, scale)
    return out


def to_scaled(z_scale: np.ndarray, at: Coordinates) -> np.ndarray:
    """a (m,) with psi = a x, of the scaled columns of the effects."""
    rows, _ = at.entries
    return np.concatenate([np.ones(at.p), z_scale[at.order[rows]], [1.0]])
