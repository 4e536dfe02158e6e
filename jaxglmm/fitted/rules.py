"""Posteriors of groups as sums: what predictions average over, and quantiles are read off, in memory and loaded alike.

    E h(b) = sum_k weights_k h(origin + root points_k)

For one effect a group the points are a lattice, and the sum is the trapezoid rule of the exact posterior, whose error
falls geometrically (`jaxglmm.objectives.posterior`); for several they are Gauss-Hermite nodes about the mode. Weights
are kept in float32, in which the sum is good to about 1e-8 of h's range.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from jaxglmm.fitted.history import History, Prior, is_normal, nodes_for, posteriors
from jaxglmm.fitted.lattice import quantiles
from jaxglmm.fitted.rowwise import average
from jaxglmm.fitted.state import State


_WIDE = 8.0  # reach of a lattice; beyond it are 1e-15 of a posterior, of which a mean of exp(b) may take more
_NOTHING = 1e-17  # weight below which points at both ends are left out


@dataclass(frozen=True)
class Rule:
    """Rules of all groups.

    Attributes
    ----------
    origin : (G, S)
    root : (G, S, S)
        For one effect the spacing of the lattice.
    points : (S, K)
    weights : float32 (G, K)
    """

    origin: np.ndarray
    root: np.ndarray
    points: np.ndarray
    weights: np.ndarray

    def means(self, family, eta, z, codes) -> np.ndarray:
        """E mu(eta_i + z_i'b) of each row.

        Parameters
        ----------
        eta : (m,)
        z : (S, m)
        codes : int (m,)
            Group of each row.
        """
        base = eta + np.einsum("sm,ms->m", z, self.origin[codes])
        slopes = np.einsum("mas,am->sm", self.root[codes], z)
        total = average(family, base, slopes, self.points, self.weights, codes)
        return total / self.weights.sum(1, dtype=float)[codes]

    def standard_quantiles(self, groups: np.ndarray, mean: np.ndarray, sd: np.ndarray, probabilities) -> np.ndarray:
        """(quantile - mean) / sd (g, Q) of some groups' only effect, with their means and standard deviations (g,)."""
        step = self.root[groups, 0, 0]
        weights = self.weights[groups].T.astype(float)
        first = np.round(self.origin[groups, 0] / step).astype(np.int64)
        found = quantiles(first, step, weights / weights.sum(0), probabilities)
        return (found - mean[:, None]) / sd[:, None]

    def replaced(self, levels: np.ndarray, other: "Rule", size: int) -> "Rule":
        """With the rules of some levels from `other`, and levels up to `size`, which must be among them."""
        K = max(self.points.shape[1], other.points.shape[1])
        points = max(self.points, other.points, key=lambda v: v.shape[1])
        grown = []
        for name in ("origin", "root", "weights"):
            old, new = getattr(self, name), getattr(other, name)
            shape = (size, K) if name == "weights" else (size, *old.shape[1:])
            out = np.zeros(shape, old.dtype)
            out[: len(old), ..., : old.shape[-1]] = old
            out[levels] = 0
            out[levels, ..., : new.shape[-1]] = new
            grown.append(out)
        return Rule(grown[0], grown[1], points, grown[2])

    def arrays(self) -> dict[str, np.ndarray]:
        """What is saved, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def rule_of(state: State, history: History, prior: Prior, layout=None) -> Rule | None:
    """Rules of the groups of a history; None where posteriors are normal or points.

    Parameters
    ----------
    state : State
        For the family, its dispersion and the number of nodes.
    history, prior, layout
        As in `jaxglmm.fitted.history.posteriors`.
    """
    if is_normal(state.family) or not prior.factor.any():
        return None
    S, G = history.z.shape[0], history.n_groups
    nodes = nodes_for(state.family, prior, history, n_agq=state.estimate.n_agq, wide=_WIDE)
    found = posteriors(state.family, state.log_dispersion, history, prior, nodes, layout=layout, keep=True)
    origin, root = np.zeros((G, S)), np.zeros((G, S, S))
    pieces = []
    for groups, p in found:
        if S == 1:
            origin[groups, 0], root[groups, 0, 0] = p.first * p.step, p.step
        else:
            origin[groups], root[groups] = p.mode.T, np.sqrt(2.0) * np.moveaxis(p.root, -1, 0)
        pieces.append((groups, np.asarray(p.weights, np.float32)))
    if S > 1:
        return Rule(origin, root, np.asarray(nodes.points, float), _joined(pieces, G, 0, pieces[0][1].shape[0]))
    begin, end = _used(weights for _, weights in pieces)
    origin += begin * root[:, 0]
    return Rule(origin, root, np.arange(float(end - begin))[None], _joined(pieces, G, begin, end))


def _used(weights: Iterable[np.ndarray]) -> tuple[int, int]:
    """Points that some group gives weight to, those behind the first and before the last."""
    ends = [np.flatnonzero((w > _NOTHING).any(1)) for w in weights]
    return min(int(v[0]) for v in ends), max(int(v[-1]) for v in ends) + 1


def _joined(pieces, G: int, begin: int, end: int) -> np.ndarray:
    out = np.zeros((G, end - begin), np.float32)
    for groups, weights in pieces:
        part = weights[begin:end]
        out[groups, : len(part)] = part.T
    return out
