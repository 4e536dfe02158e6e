"""Whether a path's quadrature nodes are enough: some of its solutions are looked at with more."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxglmm.optimise.node_ladder import Look, nodes_above, nothing_to_see, rung_above
from jaxglmm.optimise.path_model import Solution


# Lambdas of a path that are looked at, its first and its last among them.
_LOOKS = 8


@dataclass(frozen=True)
class PathRun:
    """A path with one number of nodes.

    Attributes
    ----------
    n_agq : int or None
        Nodes per effect; None without random effects.
    grid : (L,)
        Lambdas.
    found : list of Solution
        With all rows.
    scores, sizes : lists
        Held-out log-likelihoods (L, F), and the folds' weights.
    seen : dict of int to Look
        By the number of the lambda.
    passes : float
    """

    n_agq: int | None
    grid: np.ndarray
    found: list[Solution]
    scores: list
    sizes: list
    seen: dict[int, Look]
    passes: float

    def wants(self, n_effects: int) -> int | None:
        """The next number of nodes, where some solution says that it makes a difference."""
        if all(seen.agrees for seen in self.seen.values()):
            return None
        return rung_above(self.n_agq or 1, n_effects)


def looks_along(solver: Any, found: list[Solution], grid, n_agq: int) -> dict[int, Look]:
    """Looks at some solutions of a path, by their numbers.

    Parameters
    ----------
    solver : PathSolver
        Not to be gone on with.
    """
    n_effects = solver.models[0].design.terms[0].covariance.n_effects
    above = rung_above(n_agq, n_effects) if n_agq > 1 else None
    above = above or nodes_above(n_agq, n_effects)
    if above is None:
        return {}
    some = np.unique(np.linspace(0, len(grid) - 1, min(_LOOKS, len(grid))).round().astype(int)).tolist()
    return {
        k: solver.look(above, found[k], grid[k]) if found[k].rest[:-1].any() else nothing_to_see(above) for k in some
    }
