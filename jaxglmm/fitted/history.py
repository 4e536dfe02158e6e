"""Rows of groups with the parameters frozen, and the posteriors that follow from them, piece by piece."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np

from jaxglmm.design.design import Scaling
from jaxglmm.design.groups import GroupIndex, Layout, build_index
from jaxglmm.fitted.threads import in_order
from jaxglmm.objectives.posterior import WIDE, Lattice, Posteriors, Rows, group_posteriors, lattice, node_rule
from jaxglmm.ops import lattices
from jaxglmm.ops.computing import computing


# Blocks of a piece: its lattice densities, 61,440 slots x 161 points, take 80 MB. Of more points, fewer blocks.
_PIECE, _POINTS = 64, 161
_COARSE = 6.0
_HERMITE = {2: 15, 3: 9}  # nodes a dimension for several effects, at least
_NATIVE_PIECE = 1 << 15  # rows and groups of a native piece, together


@dataclass(frozen=True)
class History:
    """What a group's posterior needs of its rows once the parameters are known.

    Attributes
    ----------
    codes : int (n,)
        Group of each row.
    y, weights, eta : (n,)
        Response in the family's form, prior weights, offset + X beta.
    z : (S, n)
        Columns of the effects.
    n_groups : int
    """

    codes: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    eta: np.ndarray
    z: np.ndarray
    n_groups: int


@dataclass(frozen=True)
class Prior:
    """b ~ N(mean, factor factor'): one for all groups, (S,) and (S, S), or one for each, (G, S) and (G, S, S)."""

    mean: np.ndarray
    factor: np.ndarray


def history_of(frame, term: int, beta: np.ndarray) -> History:
    """The rows of a model frame with one of its grouping factors."""
    t = frame.terms[term]
    return History(t.codes, frame.y, frame.weights, frame.offset + frame.X @ beta, t.z, len(t.levels))


def of_levels(history: History, levels: np.ndarray) -> tuple[History, np.ndarray]:
    """The rows of some levels, which become 0, 1, ..., and where in all rows they are."""
    code = np.full(history.n_groups, -1)
    code[levels] = np.arange(len(levels))
    rows = np.flatnonzero(code[history.codes] >= 0)
    return History(
        code[history.codes[rows]], history.y[rows], history.weights[rows], history.eta[rows], history.z[:, rows],
        len(levels),
    ), rows  # fmt: skip


def is_normal(family) -> bool:
    """Whether posteriors of effects are normal given the parameters."""
    return (family.name, family.link) == ("gaussian", "identity")


def nodes_for(
    family, prior: Prior, history: History, *, n_agq: int | None = None, wide: float = WIDE, coarse: bool = False
):
    """Nodes for the posteriors of groups: a lattice for one effect, unless they are normal.

    Of `wide` prior standard deviations to each side; `coarse` for averages over parameters, which need no digits: 6,
    and no more points for effects that are large on the scale of eta.
    """
    S = history.z.shape[0]
    if is_normal(family):
        return node_rule(S, 3)  # exact: scores are quadratic in b
    if S > 1:
        return node_rule(S, max(_HERMITE.get(S, 1), n_agq or 1))
    scale = float(np.max(prior.factor, initial=0.0) * np.max(np.abs(history.z), initial=0.0))
    return lattice(0.0, _COARSE) if coarse else lattice(scale, wide, family.log_concave)


def posteriors(
    family, log_phi: float, history: History, prior: Prior, nodes, *, layout: tuple[GroupIndex, Layout] | None = None,
    start: np.ndarray | None = None, X: np.ndarray | None = None, scaling: Scaling | None = None, entries=(),
    keep=False,
) -> Iterator[tuple[np.ndarray, Posteriors]]:  # fmt: skip
    """Posteriors of all groups, a piece at a time, in an order that the data alone decide.

    Parameters
    ----------
    layout : tuple, optional
        Index and layout of the codes, where they are there already.
    start : (G, S), optional
        Modes u to begin at.
    X : (n, p), optional
        With `entries`, as in `group_posteriors`; in use scaled, where there is a `scaling`.
    keep : bool
        Return the weights of the nodes.

    Yields
    ------
    groups : int (g,)
    Posteriors
        Arrays (..., g) of these groups.
    """
    if X is None and isinstance(nodes, Lattice) and lattices.covers(family):
        yield from _native(family, log_phi, history, prior, nodes.wide, start, keep)
        return
    index, place = layout or build_index(history.codes, history.n_groups)
    row = np.full(place.n_slots, -1, np.int64)
    row[place.slot] = np.arange(len(history.codes))
    by_slot = np.argsort(place.first, kind="stable")
    heads = place.first[by_slot]

    def piece(part):
        sub, begin, end = part
        at = row[begin:end]
        low, high = np.searchsorted(heads, (begin, end))
        groups = by_slot[low:high]
        rows, extra = _gather(history, prior, start, at, sub.n_slots)
        with computing():
            columns = None
            if X is not None:
                columns = X[np.maximum(at, 0)]
                columns = np.pad(columns if scaling is None else scaling.rows(columns), ((0, extra), (0, 0)))
            found = group_posteriors(family, sub, nodes, rows, log_phi, columns, entries=entries, keep=keep)
            here = heads[low:high] - begin
            return groups, jax.tree.map(lambda v: np.asarray(v)[..., here], found)

    yield from in_order(piece, _pieces(index, max(_PIECE * _POINTS // max(nodes.points.shape[1], _POINTS), 1)))


def moments(
    family, log_phi: float, history: History, prior: Prior, *, n_agq: int | None = None,
    layout: tuple[GroupIndex, Layout] | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Posterior mean (G, S) and covariance (G, S, S) of the effects of all groups; arguments as in `posteriors`."""
    normal, (G, S) = is_normal(family), (history.n_groups, history.z.shape[0])
    mean, covariance = np.zeros((G, S)), np.zeros((G, S, S))
    if prior.factor.any():
        nodes = nodes_for(family, prior, history, n_agq=n_agq)
        for groups, p in posteriors(family, log_phi, history, prior, nodes, layout=layout):
            mean[groups] = (p.mode if normal else p.mean).T
            covariance[groups] = np.moveaxis(p.curvature if normal else p.covariance, -1, 0)
    return mean, covariance


def third_moments(family, log_phi: float, history: History, prior: Prior, *, layout=None) -> np.ndarray:
    """Third central moments (G,) of scalar effects; arguments as in `posteriors`."""
    out = np.zeros(history.n_groups)
    if is_normal(family) or not prior.factor.any():
        return out
    nodes = nodes_for(family, prior, history, coarse=True)
    for groups, p in posteriors(family, log_phi, history, prior, nodes, layout=layout, keep=True):
        # In units of the spacing, about the middle point, in which nothing cancels.
        weights = np.asarray(p.weights)
        at = np.arange(len(weights)) - 0.5 * len(weights)
        mean = at @ weights
        out[groups] = np.einsum("kg,kg->g", weights, (at[:, None] - mean) ** 3) * p.step**3
    return out


def _native(family, log_phi, history, prior, wide, start, keep):
    """Posteriors of scalar effects by `ops.lattices`, groups of like size together."""
    rows = lattices.sort_rows(history.codes, history.y, history.weights, history.eta, history.z[0], history.n_groups)
    counts = np.diff(rows.begin)
    by_size = np.argsort(np.minimum(counts, 65535).astype(np.uint16), kind="stable")  # of so few bits by radix
    until = np.cumsum(counts[by_size] + 1)
    ends = np.unique(np.searchsorted(until, np.arange(_NATIVE_PIECE, until[-1] + _NATIVE_PIECE, _NATIVE_PIECE)) + 1)
    mean, sd = prior.mean[..., 0], prior.factor[..., 0, 0]
    start = None if start is None else start[:, 0]

    def piece(groups):
        found = lattices.posteriors(family, log_phi, rows, groups, mean, sd, start, wide)
        return groups, Posteriors(
            mode=found.mode[None], mean=found.mean[None], curvature=np.square(found.curvature_sd)[None, None],
            covariance=found.variance[None, None], root=found.curvature_sd[None, None], first=found.first,
            step=found.step, weights=found.weights.T if keep else None, slopes=None,
        )  # fmt: skip

    yield from in_order(piece, [groups for groups in np.split(by_size, ends) if len(groups)])


def _gather(history, prior, start, at, n_slots):
    """Rows of a piece in slots; empty slots have weight 0 and z = 0."""
    extra, S = n_slots - len(at), history.z.shape[0]
    kept, at = np.pad(at >= 0, (0, extra)), np.pad(np.maximum(at, 0), (0, extra))
    codes = history.codes[at]
    shaped = lambda v, own: np.moveaxis(v[codes], 0, -1) if v.ndim > own else np.broadcast_to(
        v[..., None], (*v.shape, n_slots)
    )  # fmt: skip
    zero = np.zeros((S, n_slots))
    return Rows(
        y=history.y[at],
        weights=np.where(kept, history.weights[at], 0.0),
        eta=history.eta[at],
        z=np.where(kept, history.z[:, at], 0.0),
        start=zero if start is None else np.where(kept, start[codes].T, 0.0),
        mean=shaped(prior.mean, 1),
        factor=shaped(prior.factor, 2),
    ), extra


def _pieces(index: GroupIndex, blocks: int):
    """Parts of an index that are evaluated on their own: (index, first slot, slot behind the last)."""
    R = index.block
    most = min(blocks, index.n_short)
    kind, head = np.asarray(index.kind), np.asarray(index.head)
    for first in range(0, index.n_short, max(most, 1)):
        last = min(first + most, index.n_short)
        extra = first + most - last
        yield GroupIndex(
            kind=np.pad(kind[first:last], (0, extra)), piece=None,
            head=np.pad(head[first * R : last * R], (0, extra * R)),
            block=R, n_short=most, n_long=0, n_long_groups=0, bounds=None,
        ), first * R, last * R  # fmt: skip
    if index.n_long:
        begin = index.n_short * R
        yield GroupIndex(
            kind=kind[:0], piece=np.asarray(index.piece), head=head[begin:], block=R, n_short=0, n_long=index.n_long,
            n_long_groups=index.n_long_groups, bounds=None,
        ), begin, index.n_slots  # fmt: skip
