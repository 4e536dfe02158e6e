"""Maximise a marginal likelihood of one grouping factor: start, boundary, number of nodes.

The unknowns are x = (beta, free entries of R, log dispersion) with Lambda = Lambda_0 R, both lower triangular.
Lambda_0 has the size and the shape that fit the columns: an intercept and a slope on an uncentred column have a
correlation near -1 for no other reason than the column's mean, and Lambda_0 takes that up. The map to the raw
psi = (beta, free entries of Lambda, log dispersion) of an evaluation is linear.
"""

import math
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import numpy as np

from jaxglmm.objectives.evaluate import evaluate, evaluate_glm
from jaxglmm.ops import fused
from jaxglmm.ops.memory import aligned_zeros
from jaxglmm.optimise.boundary import (
    HIGHER,
    SMALL,
    LinePoint,
    above,
    few_rule,
    profiled,
    promising,
    sizes_along,
    together,
    turned_round,
    with_values,
)
from jaxglmm.optimise.dispersion import dispersion_limit
from jaxglmm.optimise.effect_units import base_factor, centring, counting, first_sizes, predictor_units
from jaxglmm.optimise.estimate import Convergence
from jaxglmm.optimise.free_parameters import maximise_free
from jaxglmm.optimise.growth import check_growth
from jaxglmm.optimise.newton import NewtonResult, least_squares
from jaxglmm.optimise.node_ladder import (
    NODE_LADDER,
    Look,
    climb_ladder,
    look,
    nodes_above,
    nothing_to_see,
    padded_nodes,
)
from jaxglmm.optimise.separation import check_separation, may_diverge


# A diagonal entry of R below this is zero: Lambda_0 has the size of the information in a row.
NOTHING = 1e-4
# Below this, zero is tried where effects covary; with several effects, steps before it is tried come to this many.
LITTLE, _FIRST_STEPS = 0.02, 40
# Standard deviation of the predictor beyond which most means are at their bounds.
_LARGE = 5.0
# A start's diagonal of R is at least this: zero itself is stationary, and no start should lie on it.
_LEAST_FIRST = 0.05


@dataclass(frozen=True)
class Solution:
    """Optimum in the design's coordinates.

    Attributes
    ----------
    psi : (m,)
        (beta, free entries of Lambda, log dispersion).
    free : bool (m,)
        Which were estimated: neither held, nor absent, nor on the boundary.
    hessian : (m, m)
        Exact, of the value maximised, in psi.
    value : float
    modes : (S, n_slots) or None
    look : Look or None
        What more nodes say at the optimum.
    """

    psi: np.ndarray
    free: np.ndarray
    hessian: np.ndarray
    value: float
    modes: np.ndarray | None
    convergence: Convergence
    look: Look | None = None


def fit_marginal(
    family, design, glm: NewtonResult | None, groups, *, n_agq=1, auto=False, fixed_factor=None, determinant=True,
    near=None, part=None, base=None, passes=0.0, check=False, few=None, look_along=True, names=None, intercept=None,
    tol=1e-12, max_iterations=100, callback=None,
) -> Solution:  # fmt: skip
    """Maximise the marginal likelihood from a fit without random effects.

    Parameters
    ----------
    glm, groups
        From `fit_glm`; None where `near` and `base` make it unnecessary.
    n_agq : int
        Nodes per effect; 1 is Laplace.
    auto : bool
        Climb `NODE_LADDER` until more nodes make no difference.
    fixed_factor : (S, S), optional
        Hold Lambda here.
    determinant : bool
        False for the joint likelihood.
    near : (m,), optional
        Where to begin instead, near the optimum with as many nodes as `n_agq` or the ladder's first step says.
    part : Design, optional
        With `near`: a sample of the groups, which corrects Newton's steps (`optimise.surrogate`).
    base : (S, S), optional
        Lambda_0, by default from `groups`.
    passes : float
        Passes over the rows that led here, but for those of `glm`.
    check : bool
        Look at the optimum with more nodes.
    few : Design, optional
        A sample of the groups, for that look.
    look_along : bool
        Look for higher maxima from a boundary, or where few groups rule (`optimise.boundary`).
    names, intercept
        As for `fit_glm`, to refuse coefficients without a finite estimate; without names they pass.

    Raises
    ------
    SeparationError
    """
    covariance, S = design.terms[0].covariance, design.terms[0].covariance.n_effects
    p, q = design.X.shape[1], len(covariance.diagonal)
    even = np.concatenate([np.zeros(p, bool), covariance.diagonal, [False]])
    free = np.append(np.ones(p + q, bool), family.dispersion_name is not None)
    if base is None and fixed_factor is not None:
        base = np.eye(S)
    elif base is None:
        base = base_factor(covariance, counting(design), groups[2])
    extra = 0
    if fixed_factor is not None:
        factor, free[p : p + q] = fixed_factor, False
    elif near is None:
        factor, extra = _first_factor(family, design, glm, groups, base)
    sample = None
    if part is not None and determinant:  # a ridge is compared digit by digit
        sample = Search(family, part, determinant, None, free, even, base, tol, max_iterations)
    state = Search(family, design, determinant, callback, free, even, base, tol, max_iterations, sample)
    if near is None:
        assert glm is not None
        x = np.concatenate([glm.x[:p], covariance.raw(factor), glm.x[p:]])
    else:
        x = np.linalg.solve(state.jacobian, near)
        if fixed_factor is None:
            x[even] = np.maximum(x[even], _LEAST_FIRST)
    nodes, used = padded_nodes(1 if auto else n_agq, S), 1 if auto else n_agq

    steps, seen = min(_FIRST_STEPS, max_iterations) if S > 1 else None, None
    if not auto:
        result = state.climb(x, nodes, steps=steps)
    else:
        if near is None:
            x = state.climb(x, nodes, loose=True, steps=steps).x

        def climb(nodes):
            nonlocal x
            result = state.climb(x, padded_nodes(nodes, S), steps=steps)
            x = result.x
            return result

        result, used, seen = climb_ladder(NODE_LADDER[S], S, climb, state.look)
        nodes = padded_nodes(used, S)
    looked_at = result.x
    result, free = state.settle(result, nodes)
    if not determinant:
        # A ridge is compared digit by digit, not in standard errors: the step that is known already is taken.
        result = replace(result, x=result.x + newton_step(result, free))
    # With a zero variance the fit without random effects is a rival that an interior start may not reach.
    if fixed_factor is None and glm is not None and glm.value > result.value + 1e-9 * abs(glm.value):
        free = state.free.copy()
        free[p : p + q] = False
        result = state.climb(np.concatenate([glm.x[:p], np.zeros(q), glm.x[p:]]), nodes, free=free)
    convergence = Convergence(
        converged=result.converged,
        reason=result.reason,
        decrement=float(max(result.decrement, 0.0)),
        n_agq=used if determinant else None,
        singular=fixed_factor is None and not free[p : p + q].all(),
        score_at_zero=float(groups[0][0]) if S == 1 and groups is not None else None,
        kernels="native" if fused.covers(family, design) else "plain",
    )
    above = nodes_above(used, S)
    if check and above is not None and not (seen is not None and np.array_equal(looked_at, result.x)):
        if not result.x[state.part].any():  # without random effects there is nothing to integrate
            seen = nothing_to_see(above)
        elif few is None:
            seen = state.look(above, result, free)
        else:
            seen = state.look_at(few, used, above, result, free)
    if determinant and used > 1:
        convergence.gap = float(result.value - state.at(result.x, padded_nodes(1, S))[0])
    psi, back = state.psi(result.x), np.linalg.inv(state.jacobian)
    free[-1] &= not family.at_limit(psi[-1])
    if names is not None and (not result.converged or may_diverge(-result.hessian[:p, :p], len(design.y), tol)):
        check_separation(family, design, psi[:p], names=names, intercept=intercept)
    if fixed_factor is None:
        factor = np.zeros((S, S))
        factor[covariance.entries] = psi[p : p + q]
        check_growth(family, [factor], [np.asarray(design.terms[0].z)], design, [None], convergence)
    convergence.iterations = state.evaluations
    convergence.passes = float(state.passes() + (0 if glm is None else glm.iterations + 1 + extra) + passes)
    # What is held at zero in R is so in Lambda: a column of zeros stays one.
    hessian = back.T @ result.hessian @ back
    solution = Solution(psi, free, hessian, result.value, np.asarray(state.modes), convergence, seen)
    if not look_along or fixed_factor is not None or not determinant:
        return solution
    before = state.evaluations
    starts = state.starts_along(result, free, nodes, groups, glm)
    evaluations, passes = convergence.iterations, convergence.passes + state.evaluations - before
    evaluations += state.evaluations - before
    for start in starts:
        rival = fit_marginal(
            family, design, glm, groups, n_agq=n_agq, auto=auto, near=state.psi(start), base=base, check=check, few=few,
            look_along=False, names=names, intercept=intercept, tol=tol, max_iterations=max_iterations,
            callback=callback,
        )  # fmt: skip
        evaluations += rival.convergence.iterations
        passes += rival.convergence.passes - (0 if glm is None else glm.iterations + 1)
        if rival.value > solution.value + HIGHER:  # converged or not: the boundary is no maximum
            solution = rival
    solution.convergence.iterations, solution.convergence.passes = evaluations, passes
    return solution


def newton_step(result, free) -> np.ndarray:
    """From the end of a search that converged to the maximum of its quadratic model, over the coordinates `free`."""
    step, kept = np.zeros_like(result.x), np.flatnonzero(free)
    if result.converged and len(kept):
        step[kept] = least_squares(-result.hessian[np.ix_(kept, kept)], result.gradient[kept])
    return step


def _first_factor(family, design, glm, groups, base):
    """R (S, S) to begin with, and passes taken: independent effects on centred columns, of the size that the score of
    each variance at zero tells, at most Lambda_0's."""
    covariance, passes = design.terms[0].covariance, 0
    shift = np.eye(1) if covariance.n_effects == 1 else centring(covariance, counting(design))
    if (shift != np.eye(len(shift))).any():
        centred = eqx.tree_at(lambda d: d.terms[0].z, design, shift.T @ design.terms[0].z)
        groups, passes = evaluate_glm(family, centred, glm.x)[3], 1
    score, spread = (np.asarray(v) for v in groups[:2])
    back = np.linalg.solve(shift, base)
    size = np.sqrt(np.square(back).sum(1))
    first = np.clip(first_sizes(score, spread), 0.1 * size, size)
    return np.linalg.solve(base, covariance.canonical(shift * first)), passes


class Search:
    """Evaluations with warm-started modes, and the steps made of them."""

    def __init__(self, family, design, determinant, callback, free, even, base, tol, max_iterations, sample=None):
        self.family, self.design, self.determinant, self.callback = family, design, determinant, callback
        self.free, self.even, self.tol, self.max_iterations = free, even, tol, max_iterations
        self.covariance = design.terms[0].covariance
        self.part = slice(design.X.shape[1], -1)
        self.limit = dispersion_limit(family, design.y, design.weights)
        self.modes = self._no_modes()
        self.evaluations, self.sample = 0, sample
        # Entries of Lambda_0 R are linear in those of R.
        self.base = base
        rows, columns = self.covariance.entries
        self.jacobian = np.eye(len(free))
        self.jacobian[self.part, self.part] = base[np.ix_(rows, rows)] * (columns[:, None] == columns[None, :])

    def psi(self, x):
        return self.jacobian @ x

    def _no_modes(self):
        z = self.design.terms[0].z
        return jax.device_put(aligned_zeros(z.shape, z.dtype), may_alias=True)

    def at(self, x, nodes):
        """Value, gradient and Hessian in x."""
        J, at = (
            self.jacobian,
            lambda modes: evaluate(
                self.family, self.design, nodes, self.jacobian @ x, modes, determinant=self.determinant
            ),
        )
        e = at(self.modes)
        self.evaluations += 1
        value = float(e.value)
        if not math.isfinite(value):  # from modes of another Lambda the search for these may overflow
            e = at(self._no_modes())
            self.evaluations += 1
            value = float(e.value)
        if math.isfinite(value):
            self.modes = e.modes
        return value, J.T @ np.asarray(e.gradient), J.T @ np.asarray(e.hessian) @ J

    def climb(self, x, nodes, *, loose=False, free=None, steps=None):
        free, sample = self.free if free is None else free, self.sample
        return maximise_free(
            lambda x: self.at(x, nodes), x, free, self.even, limit=self.limit,
            tol=1e-4 if loose else self.tol, max_iterations=steps or self.max_iterations, callback=self.callback,
            part=None if sample is None else lambda x: sample.at(x, nodes),
        )  # fmt: skip

    def passes(self) -> float:
        """Passes over the rows, those over the sample by its share."""
        part = self.sample
        return self.evaluations + (0 if part is None else part.evaluations * len(part.design.y) / len(self.design.y))

    def look(self, nodes: int, result, free=None) -> Look:
        """At the end of a climb, with more nodes."""
        more = self.at(result.x, padded_nodes(nodes, self.covariance.n_effects))
        return look(nodes, result, self._movable(result, free), *more)

    def look_at(self, part, used: int, nodes: int, result, free) -> Look:
        """As `look`, by what more nodes change in a sample of the groups."""
        sample = Search(self.family, part, True, None, self.free, self.even, np.eye(self.covariance.n_effects), 1.0, 0)
        sample.jacobian = self.jacobian
        few, many = (sample.at(result.x, padded_nodes(n, self.covariance.n_effects)) for n in (used, nodes))
        times = len(self.design.y) / len(part.y)
        value, gradient = result.value + times * (many[0] - few[0]), times * (many[1] - few[1])
        return look(nodes, result, self._movable(result, free), value, gradient)

    def _movable(self, result, free):
        return (self.free if free is None else free) & ~(self.even & (np.abs(result.x) < NOTHING))

    def settle(self, result, nodes):
        """Make the diagonal of R non-negative, and hold at zero what is as good there.

        Near a zero on the diagonal its column is a rotation of later ones, along which the likelihood hardly
        changes and Newton's method creeps: the zero is tried as soon as the entry is small or the steps ran out.
        """
        free = self.free.copy()
        if not free[self.part].any():
            return result, free
        for _ in range(2 * self.covariance.n_effects):
            factor = self.covariance.canonical(self.factor(result.x))
            x = result.x.copy()
            x[self.part] = self.covariance.raw(factor)
            rival, held = self.best_zero(result, factor, nodes, free)
            if rival is not None:
                result, free = rival, held
            elif result.converged and (x == result.x).all():
                break
            else:
                result = self.climb(x, nodes, free=free)
        return result, free

    def starts_along(self, result, free, nodes, groups, glm) -> list[np.ndarray]:
        """Where higher maxima may be found from (`optimise.boundary`), x each.

        A fit that began at that of a sample began at the highest maximum which the sample's own look found: it takes no
        look over all rows again.
        """
        covariance, free_part = self.covariance, free[self.part]
        places = {
            (r, c): self.part.start + k for k, (r, c) in enumerate(zip(*map(list, covariance.entries), strict=True))
        }
        ruled = self._ruled_by_few(groups)
        inside = free_part.all() and result.converged and not self._large_effects(result)
        if not ruled and (self.sample is not None or (covariance.n_effects == 1 and inside)):
            return []
        units, starts = self._units(), []
        x = np.abs(result.x[self.part.start]) if covariance.n_effects == 1 else 0.0
        if covariance.n_effects > 1 and (ruled or not inside) and len(self.design.y) <= SMALL:
            begin = result.x if glm is None else np.concatenate([glm.x[:-1], np.zeros(len(free_part)), glm.x[-1:]])
            ends = [self.climb(with_values(begin, sizes), nodes, loose=True) for sizes in together(places, units)]
            starts += [end.x for end in above(ends, result.value)]
        for c in range(covariance.n_effects):
            j = places[c, c]
            if covariance.n_effects > 1 and free[j]:
                continue
            sizes = promising(self._looks(result, j, nodes, units[c]), result.value, float(x))
            starts += [with_values(result.x, {j: size}) for size in sizes[:2]]
            if covariance.n_effects > 1:
                starts += [with_values(result.x, turned) for turned in turned_round(result.x, places, c)]
        return starts

    def _large_effects(self, result) -> bool:
        """Whether, in a small problem, several effects are of a size beside which there may be many maxima."""
        if self.covariance.n_effects == 1 or len(self.design.y) > SMALL:
            return False
        size = np.sqrt(np.square(self.factor(result.x)).sum(1)) / self._units()
        return bool((size > _LARGE).any())  # of links without such a size none is

    def _units(self) -> np.ndarray:
        """Entries (S,) of R's diagonal by which the predictor has a standard deviation of one; NaN where that is none.

        Of links on which effects have a size of their own.
        """
        return predictor_units(self.family, self.base, self.design)

    def _looks(self, result, j, nodes, unit) -> list[LinePoint]:
        others = np.flatnonzero(self.free & (np.arange(len(self.free)) != j))
        looks = []
        for size in sizes_along(unit):
            value, gradient, hessian = self.at(with_values(result.x, {j: size}), nodes)
            if math.isfinite(value) and np.isfinite(gradient).all() and np.isfinite(hessian).all():
                value, slope = profiled(value, gradient, hessian, j, others)
                looks.append(LinePoint(size, value, size * slope))
        return looks

    def _ruled_by_few(self, groups) -> bool:
        if groups is None:
            return False
        _, spread, level = groups
        return bool(few_rule(level, spread, np.count_nonzero(np.asarray(self.design.index.head))).any())

    def factor(self, x):
        """R of x."""
        out = np.zeros((self.covariance.n_effects,) * 2)
        out[self.covariance.entries] = x[self.part]
        return out

    def best_zero(self, result, factor, nodes, free):
        """The best fit with one more zero on the diagonal, or None where each is worse than `result`."""
        _, columns = self.covariance.entries
        size = np.where(free[self.part][self.covariance.diagonal], np.diag(factor), np.inf)
        limit = NOTHING if len(size) == 1 else LITTLE if result.converged else 1.0
        best, best_free = None, free
        for column in np.flatnonzero(size < limit):
            held = free.copy()
            held[self.part] &= columns != column
            x = result.x.copy()
            x[self.part] = self.covariance.raw(self.covariance.without(factor, column))
            rival = self.climb(x, nodes, free=held)
            least = result.value - 1e-10 * (1 + abs(result.value)) if best is None else best.value
            if rival.converged and rival.value >= least:
                best, best_free = rival, held
        return best, best_free
