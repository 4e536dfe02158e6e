"""How many quadrature nodes are enough, and what is said where they are not.

Whatever was maximised is looked at once with more nodes, at the same parameters: how far their log-likelihood is from
it, and how far a Newton step with their gradient would move the parameters, in standard errors. A gap that is the same
at all parameters is harmless; its gradient is what biases them, in either direction.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxglmm.objectives.marginal import MOST_NODES
from jaxglmm.optimise.estimate import Convergence
from jaxglmm.optimise.newton import NewtonResult


# Nodes per effect that are tried in turn, by number of effects; without being asked for up to two.
NODE_LADDER = {1: (9, 19, 39, 79, 159, 319), 2: (9, 19, 25, 39), 3: (5, 9, 13)}
# Nodes per effect of the look at a fit by Laplace's approximation; for more effects it takes too many of them.
_LOOK = {1: 9, 2: 5, 3: 3, 4: 3, 5: 3, 6: 3}
# More nodes make no difference: to the log-likelihood, and to a parameter, in standard errors.
_SAME, _SAME_PARAMETER = 1e-3, 0.01
# Standard errors of a move that is worth quadrature in place of Laplace's approximation, and one that is worth a
# warning: intervals of 95 % cover 94.9 and 94.5 % where estimates are so far off.
_DOUBTFUL, _MATTERS = 0.1, 0.2


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
    """What other nodes say at the parameters of a fit.

    Attributes
    ----------
    nodes : int
        Per effect.
    gap : float
        Their log-likelihood minus that of the fit.
    move : float
        Standard errors by which a Newton step with their gradient moves the parameter that it moves most, with sign.
    which : int or None
        That parameter; None where it moves none.
    """

    nodes: int
    gap: float
    move: float
    which: int | None

    @property
    def agrees(self) -> bool:
        return abs(self.gap) < _SAME and abs(self.move) < _SAME_PARAMETER

    @property
    def doubtful(self) -> bool:
        return not abs(self.move) < _DOUBTFUL

    @property
    def matters(self) -> bool:
        return not abs(self.move) < _MATTERS


def look(nodes: int, result, kept, value, gradient, hessian=None) -> Look:
    """Compare a fit with what other nodes say at the same parameters.

    Parameters
    ----------
    nodes : int
    result : NewtonResult
        Its value, and its Hessian where theirs is not given or shows no maximum.
    kept : bool (m,)
        Parameters that can move.
    value, gradient, hessian
        Of more nodes, in all parameters.
    """
    at = np.flatnonzero(kept)
    if not (np.isfinite(value) and np.isfinite(gradient).all()):
        return Look(nodes, float(value - result.value), np.inf, None)
    if not len(at):
        return Look(nodes, float(value - result.value), 0.0, None)
    inverse = None if hessian is None else _inverse(-np.asarray(hessian)[np.ix_(at, at)])
    if inverse is None:
        inverse = np.linalg.pinv(-np.asarray(result.hessian)[np.ix_(at, at)], hermitian=True)
    moves = inverse @ gradient[at] / np.sqrt(np.maximum(np.diag(inverse), 1e-300))
    most = int(np.argmax(np.abs(moves)))
    return Look(nodes, float(value - result.value), float(moves[most]), int(at[most]))


def _inverse(information):
    """None where it is not that of a maximum."""
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(information)), 1e-300))
    scaled = information * scale[:, None] * scale
    if not np.isfinite(scaled).all() or np.linalg.eigvalsh(scaled)[0] <= 0:
        return None
    return np.linalg.pinv(information, hermitian=True)


def nodes_above(n_agq: int, n_effects: int) -> int | None:
    """With how many nodes a fit on `n_agq` is looked at; None where there are no more."""
    if n_agq == 1:
        return _LOOK.get(n_effects)
    more = 2 * n_agq + 1 if n_effects == 1 else n_agq + n_agq // 2 + 1
    more = min(more, MOST_NODES)
    return more if more > n_agq else None


def climb_ladder(ladder, n_effects: int, climb: Callable, look_with: Callable) -> tuple[NewtonResult, int, Look | None]:
    """Maximise with more and more nodes until still more make no difference.

    Parameters
    ----------
    climb : callable
        nodes -> NewtonResult, from where the last has ended.
    look_with : callable
        nodes, NewtonResult -> Look.

    Returns
    -------
    NewtonResult, nodes, Look
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
    """Keep what a look has shown with the fit, and warn where it matters.

    Parameters
    ----------
    convergence : Convergence
    seen : Look or None
    names : sequence of str
        Of all parameters.
    effects : str
        Of which group, for the message.
    climbed : bool
        Whether more nodes were tried until they made no difference.
    remedy : str
        What to do about Laplace's approximation.
    """
    if seen is None:
        return
    convergence.checked_nodes, convergence.checked_gap, convergence.checked_move = seen[:3]
    if convergence.n_agq == 1:
        convergence.gap = seen.gap
    if seen.agrees if climbed and convergence.n_agq != 1 else not seen.matters:
        return
    moved = ""
    if seen.which is not None:
        way = "up" if seen.move > 0 else "down"
        moved = (
            f", and a Newton step from there moves {names[seen.which]} {way} by {abs(seen.move):.2g} standard errors"
        )
    found = (
        f"with {seen.nodes} nodes for each effect of {effects} the log-likelihood at the same parameters is "
        f"{abs(seen.gap):.3g} {'higher' if seen.gap > 0 else 'lower'}{moved}"
    )
    if convergence.n_agq == 1:
        text = f"Laplace's approximation is not close enough here: {found}; {remedy}"
    elif climbed:
        text = f"{convergence.n_agq} nodes, the most that are tried, are not enough: {found}"
    else:
        text = f"{convergence.n_agq} nodes are not enough: {found}; leave n_agq out, or raise it"
    convergence.warnings.append(text)
