"""Maximise the likelihood of two nested factors with an intercept each, by Newton's method.

Steps use the exact Hessian. The unknowns are psi = (beta, tau of the finer factor, tau of the coarser one, log
dispersion). A large fit begins at that of a sample of its groups (`design.nesting.sample_parents`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxglmm.design.nesting import NestedDesign, sample_parents
from jaxglmm.errors import SeparationError
from jaxglmm.objectives.nested import AbstractNested
from jaxglmm.objectives.nested_laplace import NestedLaplace
from jaxglmm.objectives.nested_nodes import NestedNodes
from jaxglmm.optimise.boundary import HIGHER, MULTIPLES, LinePoint, profiled, promising, with_values
from jaxglmm.optimise.dispersion import dispersion_limit
from jaxglmm.optimise.effect_units import INFORMATION, first_sizes
from jaxglmm.optimise.estimate import Convergence
from jaxglmm.optimise.free_parameters import maximise_free
from jaxglmm.optimise.glm_fit import fit_glm
from jaxglmm.optimise.growth import check_growth
from jaxglmm.optimise.newton import NewtonResult
from jaxglmm.optimise.node_ladder import (
    LAPLACE,
    NODE_LADDER,
    Look,
    Rule,
    climb_ladder,
    look,
    nodes_above,
    nothing_to_see,
    padded_nodes,
)
from jaxglmm.optimise.separation import check_separation, may_diverge
from jaxglmm.optimise.several_fit import SeveralSolution


SOLVER = "separable: the finer factor is eliminated group by group, and then the coarser one, by native kernels"
# In units of the information in a row: a standard deviation below the first is tried at zero, below the second where
# the fit did not converge; no start is below the third.
_NOTHING, _LITTLE, _LEAST = 1e-2, 0.1, 0.1
_SAMPLE_TOLERANCE = 1e-3
# Log-likelihood that nodes may find less than Laplace's approximation where that is a good place to begin.
_FAR = 1.0


class NestedEffects(NamedTuple):
    """Modes of the effects b and their variances given the parameters, by level, in formula order."""

    modes: tuple[np.ndarray, ...]
    variances: tuple[np.ndarray, ...]


def fit_nested(
    family, design: NestedDesign, intercept, *, names, groups, factors=None, rule=LAPLACE, check=True, tol=1e-12,
    max_iterations=100, callback=None,
) -> tuple[SeveralSolution, Callable[[], NestedEffects]]:  # fmt: skip
    """Fit by Laplace's approximation, or with quadrature over the finer factor's effects.

    Parameters
    ----------
    intercept : int or None
        The column of ones.
    names : sequence of str
        Of the columns, for messages.
    groups : sequence of str
        Of the terms.
    factors : sequence of (1, 1), optional
        Hold each Lambda (for scaled z) here.
    rule : Rule
    check : bool
        Look at the optimum with more nodes.

    Returns
    -------
    SeveralSolution
    effects : callable
        Works out the effects, which takes some more passes over the rows.

    Raises
    ------
    SeparationError
        When a direction in the columns predicts the response perfectly.
    """
    taus = None if factors is None else np.array([factors[t][0, 0] for t in design.order])
    search = _Search(family, design, taus, tol, max_iterations, callback)
    result, seen, used, quadrature = None, None, 1, rule.first > 1
    if not quadrature or rule.doubts:
        psi = _sampled_start(search, intercept, names, 1)
        psi = search.start(intercept, names) if psi is None else psi
        result, free = search.settle(search.climb(search.inside(psi), search.free))
        seen = search.look(nodes_above(1, 1), result, free) if check or rule.doubts else None
        quadrature = rule.doubts and seen is not None and seen.doubtful
    if quadrature:
        psi = _sampled_start(search, intercept, names, rule.first)
        if psi is None and result is not None:
            psi = result.x
        elif psi is None:
            psi = search.climb(search.start(intercept, names), search.free, tol=_SAMPLE_TOLERANCE).x
        result, free, used, seen = _with_nodes(search, psi, rule, check, intercept, names)
    assert result is not None
    psi, hessian, free = result.x, result.hessian, free.copy()
    free[-1] &= not family.at_limit(psi[-1])
    gap = None if used == 1 else float(result.value - search.laplace.evaluate(psi).value)
    fine, coarse = design.order
    place = np.arange(len(psi))
    place[[search.p + fine, search.p + coarse]] = search.p, search.p + 1
    scores = {
        groups[t]: float(score * design.terms[t].z_scale[0] ** 2)
        for t, score, held in zip(design.order, result.extra[0], ~free[search.scales], strict=True)
        if held and taus is None
    }
    convergence = Convergence(
        converged=result.converged,
        reason=result.reason,
        decrement=float(max(result.decrement, 0.0)),
        iterations=search.evaluations,
        passes=search.passed,
        n_agq=used,
        gap=gap,
        singular=bool(scores),
        kernels="native",
        solver=SOLVER,
        scores_at_zero=scores,
    )
    effects = partial(search.effects, psi)
    psi, hessian, free = psi[place], hessian[np.ix_(place, place)], free[place]
    matrices = [psi[search.p + t].reshape(1, 1) for t in range(2)]
    if seen is not None and seen.which >= 0:
        seen = seen._replace(which=int(np.flatnonzero(place == seen.which)[0]))
    solution = SeveralSolution(psi, free, hessian, matrices, result.value, None, convergence, seen)
    tiles, p = design.tiles, search.p
    if not result.converged or may_diverge(-result.hessian[:p, :p], len(design.codes), tol):
        check_separation(family, tiles, psi[:p], names=names, intercept=intercept)
    if factors is None:  # of an intercept each, which is a column of ones
        ones = [[np.broadcast_to(1.0, len(tiles.y))]] * 2
        check_growth(family, matrices, ones, tiles, groups, convergence)
    return solution, effects


def _with_nodes(search, psi, rule: Rule, check, intercept, names):
    """Maximise with quadrature: the result, what is free of it, nodes, and the last look."""
    x, seen, used = search.begin(psi, rule.first, intercept, names), None, rule.first

    def climb(nodes):
        nonlocal x
        search.integrate(nodes)
        result = search.climb(x, search.free)
        x = result.x
        return result

    if rule.climbs:
        result, used, seen = climb_ladder(NODE_LADDER[1], 1, climb, search.look)
        search.integrate(used)
    else:
        result = climb(used)
    looked_at = result.x
    result, free = search.settle(result)
    above = nodes_above(used, 1)
    if check and above is not None and not (seen is not None and np.array_equal(looked_at, result.x)):
        seen = search.look(above, result, free)
    return result, free, used, seen


def _sampled_start(search, intercept, names, nodes):
    """The estimate from a sample with this number of nodes; None where there is no sample, or none good."""
    part = sample_parents(search.design)
    if part is None:
        return None
    sampled = _Search(search.family, part, search.taus, _SAMPLE_TOLERANCE, search.max_iterations, None)
    try:
        result = sampled.climb(sampled.start(intercept, names), sampled.free)
    except SeparationError:  # in the sample, which says nothing of all rows
        return None
    if nodes > 1:
        result = sampled.climb(sampled.begin(result.x, nodes, intercept, names), sampled.free)
    search.passes += sampled.passed * len(part.codes) / len(search.design.codes)
    search.unit = sampled.unit
    if part.n_parents == search.design.n_parents:
        search.laplace.shift = sampled.laplace.shift
    return result.x if result.converged else None


class _Search:
    """Evaluations, and the steps made of them."""

    def __init__(self, family, design, taus, tol, max_iterations, callback):
        self.family, self.design, self.taus = family, design, taus
        self.tol, self.max_iterations, self.callback = tol, max_iterations, callback
        self.objective: AbstractNested
        self.objective = self.laplace = NestedLaplace(family, design)
        self.by_nodes: dict[int, AbstractNested] = {1: self.laplace}
        self.p = design.tiles.X.shape[1]
        self.scales = slice(self.p, self.p + 2)
        self.even = np.zeros(self.p + 3, bool)
        self.even[self.scales] = True
        self.free = ~self.even if taus is not None else np.ones(self.p + 3, bool)
        self.free[-1] = family.dispersion_name is not None
        self.evaluations, self.passes, self.unit = 0, 0.0, 1.0
        self.limit = dispersion_limit(family, design.tiles.y, design.tiles.weights)

    def start(self, intercept, names):
        """Fixed effects without random ones, and deviations of the size that the scores at zero suggest."""
        glm, groups = fit_glm(self.family, self.design.tiles, intercept, names=names, callback=self.callback)
        self.passes += glm.iterations + 1
        (score,), (spread,), (information,) = groups
        scores, spreads = np.transpose([(score, spread), self.objective.at_zero(glm.x[:-1], glm.x[-1])])
        self.unit = 1 / np.sqrt(np.clip(np.nan_to_num(information / len(self.design.codes)), *INFORMATION))
        taus = np.clip(first_sizes(scores, spreads), _LEAST * self.unit, self.unit) if self.taus is None else self.taus
        return np.concatenate([glm.x[:-1], taus, glm.x[-1:]])

    @property
    def passed(self):
        """Passes over the rows with their columns."""
        return self.passes + sum(objective.passes for objective in self.by_nodes.values())

    def integrate(self, nodes: int):
        """Maximise with so many nodes from here on."""
        self.objective = self.with_nodes(nodes)

    def with_nodes(self, nodes: int) -> AbstractNested:
        """The approximation by so many nodes, warm from the one in use."""
        if nodes not in self.by_nodes:
            made = self.by_nodes[nodes] = NestedNodes(self.family, self.design, padded_nodes(nodes, 1))
            made.shift = self.objective.shift
        return self.by_nodes[nodes]

    def begin(self, psi, nodes: int, intercept, names):
        """Where to begin with so many nodes: at the optimum by Laplace's approximation, or, where that is far above
        what they find there, at what the scores at zero suggest, should that be better."""
        laplace = self.objective.evaluate(self.inside(psi)).value
        self.integrate(nodes)
        psi = self.inside(psi)
        value = self.objective.evaluate(psi).value
        self.evaluations += 1
        if value >= laplace - _FAR:
            return psi
        other = self.start(intercept, names)
        return psi if self.objective.evaluate(other).value < value else other

    def look(self, nodes: int, result, free=None) -> Look:
        """At the end of a climb, with more nodes."""
        kept = (self.free if free is None else free) & ~(self.even & (np.abs(result.x) < _NOTHING * self.unit))
        if result.x[self.p] == 0:  # nothing to integrate
            return nothing_to_see(nodes)
        e = self.with_nodes(nodes).evaluate(result.x)
        self.evaluations += 1
        shown = e.hessian if np.isfinite(e.value) else None
        return look(nodes, result, kept, e.value, e.gradient, shown)

    def inside(self, psi):
        """psi with deviations far enough from zero to be moved, where they are to be estimated."""
        psi = psi.copy()
        if self.taus is None:
            psi[self.scales] = np.maximum(np.abs(psi[self.scales]), _LEAST * self.unit)
        return psi

    def climb(self, psi, free, tol=None) -> NewtonResult:
        def at(psi):
            e = self.objective.evaluate(psi)
            self.evaluations += 1
            return e

        return maximise_free(
            at, psi, free, self.even, limit=self.limit,
            tol=tol or self.tol, max_iterations=self.max_iterations, callback=self.callback,
        )  # fmt: skip

    def settle(self, result):
        """Hold at zero the standard deviations that are as good there and further on; the others are made positive.

        Returns
        -------
        NewtonResult, free (m,)
        """
        result, free = self._settled(result)
        for j in np.flatnonzero(self.even & self.free & ~free):
            for size in promising(self._looks(result, free, j), result.value)[:2]:
                rival, held = self._settled(self.climb(with_values(result.x, {j: size}), self.free))
                if rival.value > result.value + HIGHER:
                    result, free = rival, held
        sign = np.where(self.even & (result.x < 0), -1.0, 1.0)
        return NewtonResult(
            result.x * sign, result.value, result.gradient * sign, result.hessian * sign[:, None] * sign,
            result.decrement, result.iterations, result.converged, result.reason, result.step, result.extra,
        ), free  # fmt: skip

    def _looks(self, result, free, j) -> list[LinePoint]:
        looks, others = [], np.flatnonzero(free)
        for size in self.unit * np.array(MULTIPLES):
            value, gradient, hessian, *_ = self.objective.evaluate(with_values(result.x, {j: size}))
            self.evaluations += 1
            if np.isfinite(value) and np.isfinite(gradient).all() and np.isfinite(hessian).all():
                value, slope = profiled(float(value), gradient, hessian, j, others)
                looks.append(LinePoint(size, value, size * slope))
        return looks

    def _settled(self, result):
        free = self.free
        for _ in range(2):
            limit = (_NOTHING if result.converged else _LITTLE) * self.unit
            small = np.flatnonzero(self.even & free & (np.abs(result.x) < limit))
            rivals = [self._without(result, free, j) for j in small]
            slack = 1e-10 * (1 + abs(result.value))
            good = [pair for pair in rivals if pair[0].converged and pair[0].value >= result.value - slack]
            if not good:
                break
            result, free = max(good, key=lambda pair: pair[0].value)
        return result, free

    def _without(self, result, free, j):
        held, psi = free.copy(), result.x.copy()
        held[j], psi[j] = False, 0.0
        return self.climb(psi, held), held

    def effects(self, psi) -> NestedEffects:
        """Modes and variances by level, by Laplace's approximation whatever was maximised."""
        by_term = dict(zip(self.design.order, self.laplace.posterior(psi), strict=True))
        return NestedEffects(*(tuple(by_term[t][k] for t in (0, 1)) for k in (0, 1)))
