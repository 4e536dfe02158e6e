"""How many quadrature nodes are enough, and what is said where they are not.

Whatever was maximised is looked at once with more nodes, at the same parameters: how far their log-likelihood is from
it, and how far a Newton step with their gradient would move the parameters, in standard errors. A gap that is the same
at all parameters is harmless; its gradient is what biases them, in either direction.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.objectives.marginal import MOST_NODES, Nodes, gauss_hermite
from jaxglmm.optimise.estimate import Convergence


# Nodes per effect that are tried in turn, by number of effects; without being asked for up to two.
NODE_LADDER = {1: (9, 19, 39, 79, 159, 319), 2: (9, 19, 25, 39), 3: (5, 9, 13)}
# Nodes per effect of the look at a fit by Laplace's approximation; for more effects it takes too many of them.
_LOOK = {1: 9, 2: 5, 3: 3, 4: 3, 5: 3, 6: 3}
# More nodes make no difference: to the log-likelihood, and to a parameter, in standard errors.
_SAME, _SAME_PARAMETER = 1e-3, 0.01
# Standard errors of a move that is worth quadrature in place of Laplace's approximation, and one that is worth a
# warning: intervals of 95 % cover 94.9 and 94.5 % where estimates are so far off.
_DOUBTFUL, _MATTERS = 0.1, 0.2
# One program serves every rule up to this many points.
_CAPACITIES = (128, 1024, 8192, 65536, 262144)


def padded_nodes(n_agq: int, n_effects: int) -> Nodes:
    """Nodes whose number is a traced integer, so that all rules of a capacity share one program."""
    capacity = next((c for c in _CAPACITIES if c >= n_agq**n_effects), None)
    if capacity is None:
        raise DataError(
            f"n_agq={n_agq} for {n_effects} effects takes {n_agq**n_effects} nodes a group; at most {_CAPACITIES[-1]} "
            f"are possible: lower n_agq to {int(_CAPACITIES[-1] ** (1 / n_effects))} or less"
        )
    nodes = gauss_hermite(n_agq, n_effects, capacity=capacity)
    return Nodes(nodes.points, nodes.log_weights, np.int32(nodes.count))


class Rule(NamedTuple):
    """Which approximation several factors take for the effects of the largest.

    Attributes
    ----------
    nodes : int
        Per effect; 1 is Laplace's.
    climbs : bool
        More nodes than one until still more make no difference (`NODE_LADDER`).
    doubts : bool
        Laplace's, and more nodes only where a look shows that it is not close enough.
    """

    nodes: int = 1
    climbs: bool = False
    doubts: bool = False

    @property
    def first(self) -> int:
        """Nodes to begin with, where there is quadrature."""
        return NODE_LADDER[1][0] if self.climbs else self.nodes


LAPLACE = Rule()


class Look(NamedTuple):
    """What other nodes say at the parameters of a fit, or of B fits: then gap, move and which are (B,).

    Attributes
    ----------
    nodes : int
        Per effect.
    gap : float
        Their log-likelihood minus that of the fit.
    move : float
        Standard errors by which a Newton step with their gradient moves the parameter that it moves most, with sign.
    which : int
        That parameter; -1 where it moves none.
    """

    nodes: int
    gap: Any
    move: Any
    which: Any

    @property
    def agrees(self):
        return (np.abs(self.gap) < _SAME) & (np.abs(self.move) < _SAME_PARAMETER)

    @property
    def doubtful(self):
        return ~(np.abs(self.move) < _DOUBTFUL)

    @property
    def matters(self):
        return ~(np.abs(self.move) < _MATTERS)


def nothing_to_see(nodes: int) -> Look:
    """The look at a fit without random effects, which has nothing to integrate."""
    return Look(nodes, 0.0, 0.0, -1)


class Place(NamedTuple):
    """What is compared with other nodes: as much of a `NewtonResult` as that takes."""

    x: np.ndarray
    value: float
    hessian: np.ndarray


def look(nodes: int, result, kept, value, gradient, hessian=None) -> Look:
    """Compare a fit with what other nodes say at the same parameters.

    Parameters
    ----------
    nodes : int
    result : NewtonResult or Place
        Its value, and its Hessian where theirs is not given or shows no maximum.
    kept : bool (m,)
        Parameters that can move.
    value, gradient, hessian
        Of more nodes, in all parameters.
    """
    one = lambda v: np.asarray(v, float)[None]
    theirs = None if hessian is None else one(hessian)
    seen = look_many(
        nodes, one(result.value), one(result.hessian), np.asarray(kept)[None], one(value), one(gradient), theirs
    )
    return Look(nodes, float(seen.gap[0]), float(seen.move[0]), int(seen.which[0]))


def look_many(nodes: int, own_value, own_hessian, kept, value, gradient, hessian=None) -> Look:
    """As `look`, of B fits: arrays with the fits first."""
    told = np.isfinite(value) & np.isfinite(gradient).all(1)
    inverse, maximum = _inverses(own_hessian if hessian is None else hessian, kept)
    if hessian is not None and not maximum.all():
        inverse = np.where(maximum[:, None, None], inverse, _inverses(own_hessian, kept)[0])
    moves = np.einsum("bij,bj->bi", inverse, np.where(kept & told[:, None], gradient, 0.0))
    moves = np.where(kept, moves / np.sqrt(np.maximum(np.einsum("bii->bi", inverse), 1e-300)), 0.0)
    which = np.argmax(np.abs(moves), axis=1)
    move = np.where(told, moves[np.arange(len(moves)), which], np.inf)
    return Look(nodes, value - own_value, move, np.where(told & kept.any(1), which, -1))


def _inverses(hessian, kept):
    """Pseudo-inverses (B, m, m) of what -H tells of the parameters kept, and whether that is of a maximum."""
    both = kept[:, :, None] & kept[:, None, :]
    finite = np.asarray(np.isfinite(np.where(both, hessian, 0.0)).all((1, 2)))
    information = np.where(both & finite[:, None, None], -hessian, np.eye(kept.shape[1]))
    scale = 1 / np.sqrt(np.maximum(np.abs(np.einsum("bii->bi", information)), 1e-300))
    scaled = information * scale[:, :, None] * scale[:, None, :]
    maximum = finite & (np.linalg.eigvalsh(scaled)[:, 0] > 0)
    return np.linalg.pinv(scaled, hermitian=True) * scale[:, :, None] * scale[:, None, :], maximum


def nodes_above(n_agq: int, n_effects: int) -> int | None:
    """With how many nodes a fit on `n_agq` is looked at; None where there are no more."""
    if n_agq == 1:
        return _LOOK.get(n_effects)
    more = 2 * n_agq + 1 if n_effects == 1 else n_agq + n_agq // 2 + 1
    more = min(more, MOST_NODES)
    return more if more > n_agq else None


def rung_above(n_agq: int, n_effects: int) -> int | None:
    """The next number of nodes that is tried without being asked for; None where there is none."""
    return next((nodes for nodes in NODE_LADDER.get(n_effects, ()) if nodes > n_agq), None)


def climb_ladder(ladder, n_effects: int, climb: Callable, look_with: Callable) -> tuple[Any, int, Look | None]:
    """Maximise with more and more nodes until still more make no difference.

    Parameters
    ----------
    climb : callable
        nodes -> result, from where the last has ended.
    look_with : callable
        nodes, result -> Look.

    Returns
    -------
    result, nodes, Look
        The last look is with the next number of nodes.
    """
    for here, above in zip(ladder, (*ladder[1:], nodes_above(ladder[-1], n_effects)), strict=True):
        result, seen = climb(here), None
        if above is not None:
            seen = look_with(above, result)
            if seen.agrees:
                break
    return result, here, seen


def tell(convergence: Convergence, seen: Look | None, names, effects: str, *, climbed: bool, remedy: str):
    """Keep what a look has shown with the fit, and warn where it matters; parameters as of `warning`."""
    if seen is None:
        return
    convergence.checked_nodes, convergence.checked_gap, convergence.checked_move = seen[:3]
    if convergence.n_agq == 1:
        convergence.gap = seen.gap
    text = warning(convergence.n_agq, seen, names, effects, climbed=climbed, remedy=remedy)
    if text is not None:
        convergence.warnings.append(text)


def warning(n_agq: int | None, seen: Look, names, effects: str, *, climbed: bool, remedy: str) -> str | None:
    """What to say of a fit's nodes; None where they are enough.

    Parameters
    ----------
    n_agq : int or None
        Of the fit.
    seen : Look
    names : sequence of str
        Of all parameters.
    effects : str
        Of which group, for the message.
    climbed : bool
        Whether more nodes were tried until they made no difference.
    remedy : str
        What to do about Laplace's approximation.
    """
    if seen.agrees if climbed and n_agq != 1 else not seen.matters:
        return None
    moved = ""
    if seen.which >= 0:
        way = "up" if seen.move > 0 else "down"
        moved = (
            f", and a Newton step from there moves {names[seen.which]} {way} by {abs(seen.move):.2g} standard errors"
        )
    found = (
        f"with {seen.nodes} nodes for each effect of {effects} the log-likelihood at the same parameters is "
        f"{abs(seen.gap):.3g} {'higher' if seen.gap > 0 else 'lower'}{moved}"
    )
    if n_agq == 1:
        return f"Laplace's approximation is not close enough here: {found}; {remedy}"
    if climbed:
        return f"{n_agq} nodes, the most that are tried, are not enough: {found}"
    return f"{n_agq} nodes are not enough: {found}; leave n_agq out, or raise it"
