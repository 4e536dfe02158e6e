"""Maximise Laplace's approximation to the likelihood of several grouping factors.

The unknowns are x = (beta, free entries of each term's R, log dispersion) with Lambda = Lambda_0 R as for one factor
(`optimise.marginal_fit`). Values and gradients are exact; the Hessian, whose exact form would cost many factorisations,
is put together from its closed form in the fixed effects and differences of the exact gradient in the few other
parameters, and serves until the gradient departs from what it predicts.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jaxglmm.design.rows import RowDesign
from jaxglmm.errors import SeparationError
from jaxglmm.modes.solver import AbstractSolver
from jaxglmm.objectives.nested_quadrature import NestedQuadrature
from jaxglmm.objectives.several import SeveralEvaluation, evaluate_several, fixed_hessian
from jaxglmm.ops.rows import FamilyRows
from jaxglmm.optimise.estimate import Convergence
from jaxglmm.optimise.marginal_fit import base_factor, check_separation, maximise_free
from jaxglmm.optimise.newton import NewtonResult
from jaxglmm.optimise.several_sample import sample_levels


# Differences of the gradient, relative to the size of the parameter: their error is of the square of this.
_STEP, _SMALLEST = 1e-3, 0.1
# Up to this many entries of X, differences replace the closed form of the fixed effects' block, whose trace is random.
_FEW_ENTRIES = 300_000
# A Hessian serves while the gradient is within this share of what it predicts. Below this decrement it is made exact,
# and with so many rows it is then still exact at the optimum, a thousandth of a standard error away; or a tenth where
# it is an estimate.
_TRUSTED, _NEAR, _NEAR_ESTIMATE, _MANY_ROWS = 0.1, 1e-6, 1e-2, 100_000
# Entries of R below the first are tried at zero, below the second where the fit creeps; see `optimise.marginal_fit`.
_NOTHING, _LITTLE, _FIRST_STEPS = 1e-2, 0.1, 40
# Decrement at which to stop where each evaluation is costly or estimated: a ten-thousandth of a standard error.
_COARSE = 1e-8
_SAMPLE_TOLERANCE = 1e-3
_BOUNDED_LINKS, _LARGEST_SD = ("logit", "probit", "cloglog", "log"), 100.0


@dataclass(frozen=True)
class SeveralSolution:
    """Optimum in the design's coordinates.

    Attributes
    ----------
    psi : (m,)
        (beta, free entries of each Lambda, log dispersion).
    free : bool (m,)
        Which were estimated: neither held, nor absent, nor on the boundary.
    hessian : (m, m)
        Of the value, in psi.
    factors : list of (S, S)
        Lambda of each term, for scaled z.
    value : float
    evaluation : SeveralEvaluation or None
        By Laplace's approximation, whatever was maximised; None from `optimise.nested_fit`.
    convergence : Convergence
    """

    psi: np.ndarray
    free: np.ndarray
    hessian: np.ndarray
    factors: list[np.ndarray]
    value: float
    evaluation: SeveralEvaluation | None
    convergence: Convergence


def fit_several(
    family, design: RowDesign, solver: AbstractSolver, intercept, *, names, groups, factors=None, determinant=True,
    quadrature: NestedQuadrature | None = None, tol=1e-12, max_iterations=100, callback=None,
) -> SeveralSolution:  # fmt: skip
    """Fit by Laplace's approximation.

    Parameters
    ----------
    intercept : int or None
        The column of ones.
    names : sequence of str
        Of the columns, for messages.
    groups : sequence of str
        Of the terms.
    factors : sequence of (S, S), optional
        Hold each Lambda (for scaled z) here.
    determinant : bool
        False for the joint likelihood.
    quadrature : NestedQuadrature, optional
        The likelihood to maximise in place of Laplace's, which then only says where to begin.

    Raises
    ------
    SeparationError
        When a direction in the columns predicts the response perfectly.
    """
    search = _Search(family, design, solver.cheap, determinant, tol, max_iterations, callback)
    free, scores = search.all_free(), {}
    x = _sampled_start(search, intercept, names) if factors is None and determinant else None
    if factors is not None:
        free[search.varied] = False
        x = search.with_factors(search.fit_glm(intercept, names).x, factors)
    elif x is None:
        x = search.start(search.fit_glm(intercept, names))
    steps = min(_FIRST_STEPS, max_iterations)
    result = search.climb(x, free, steps=steps)
    if quadrature is not None:
        result = search.climb(search.use_quadrature(quadrature, result.x, free), free, steps=steps)
    if factors is None:
        result, free, scores = search.settle(result, groups)
    hessian = search.final_hessian(result.x, free)
    if solver.cheap is not solver and quadrature is None:
        search.refine_with(solver.approximate)
        result = replace(result, x=search.newton_step(result.x, hessian, free))
        search.refine_with(solver)
    result = search.certify(result, hessian, free)
    value, e = search.at(result.x).value, search.laplace(result.x)
    convergence = Convergence(
        converged=result.converged,
        reason=result.reason,
        decrement=float(max(result.decrement, 0.0)),
        iterations=search.evaluations,
        passes=float(search.evaluations),
        n_agq=None if not determinant else 1 if quadrature is None else int(quadrature.nodes.count),
        gap=None if quadrature is None else value - e.value,
        singular=factors is None and not free[search.varied].all(),
        solver=f"{solver.name}: {solver.reason}",
        loglik_se=e.value_se,
        scores_at_zero=scores,
    )
    psi, back = search.psi(result.x), np.linalg.inv(search.jacobian)
    hessian = back.T @ hessian @ back
    solution = SeveralSolution(psi, free, hessian, search.factors(result.x), value, e, convergence)
    check_growth(family, design.terms, solution, groups)
    return solution


def _sampled_start(search, intercept, names):
    """The estimate from a sample, whose Hessian serves the first steps; None where there is no sample, or none good."""
    sample = sample_levels(search.design)
    if sample is None:
        return None
    part = _Search(search.family, sample, search.solver, True, _SAMPLE_TOLERANCE, search.max_iterations, None)
    try:
        glm = part.fit_glm(intercept, names)
    except SeparationError:  # in the sample, which says nothing of all rows
        return None
    free = part.all_free()
    result = part.climb(part.start(glm), free)
    if not result.converged or np.abs(result.x[search.even]).min() < _LITTLE:
        return None
    search.jacobian = part.jacobian
    return search.begin(result.x, part.hessian(result.x) * len(search.design.y) / len(sample.y))


def check_growth(family, terms, solution, groups):
    """Random effects of a size beyond any that the link can show have no finite variance."""
    for term, factor, group in zip(terms, solution.factors, groups, strict=True):
        size = np.sqrt(np.square(factor).sum())  # columns of z have mean square 1
        if family.link in _BOUNDED_LINKS and size > _LARGEST_SD * np.sqrt(term.n_effects):
            solution.convergence.converged = False
            solution.convergence.reason = (
                f"the variance of the effects of {group!r} grows without bound, their standard deviation is "
                f"{size:.3g} so far: within groups the responses are all alike"
            )


class _Model(NamedTuple):
    """A point, and gradient and Hessian there."""

    x: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    exact: bool


class _Search:
    """Evaluations with warm-started modes, and the steps made of them."""

    def __init__(self, family, design, solver, determinant, tol, max_iterations, callback):
        self.family, self.design, self.solver, self.determinant = family, design, solver, determinant
        self.tol, self.max_iterations, self.callback = tol, max_iterations, callback
        self.rows = FamilyRows(family, design.y, design.weights)
        self.p = design.X.shape[1]
        sizes = [len(t.covariance.diagonal) for t in design.terms]
        ends = self.p + np.cumsum(sizes)
        self.parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self.m = int(ends[-1]) + 1
        self.varied = slice(self.p, self.m - 1)
        self.even = np.zeros(self.m, bool)
        for part, term in zip(self.parts, design.terms, strict=True):
            self.even[part] = term.covariance.diagonal
        self.jacobian = np.eye(self.m)
        self.evaluations = 0
        self.u = np.zeros(design.starts[-1])
        self._last: tuple[bytes, SeveralEvaluation] | None = None
        self._model: _Model | None = None
        self.refining = False
        self.quadrature: NestedQuadrature | None = None

    # --- Coordinates -------------------------------------------------------------------------------------------

    def begin(self, x, hessian):
        """x, with a Hessian that is about right there."""
        self._model = _Model(x, self.gradient(self.at(x)), hessian, False)
        return x

    def all_free(self):
        return np.append(np.ones(self.m - 1, bool), self.family.dispersion_name is not None)

    def set_bases(self, bases):
        """Entries of Lambda_0 R are linear in those of R."""
        for part, term, base in zip(self.parts, self.design.terms, bases, strict=True):
            rows, columns = term.covariance.entries
            self.jacobian[part, part] = base[np.ix_(rows, rows)] * (columns[:, None] == columns[None, :])

    def psi(self, x):
        return self.jacobian @ x

    def factors(self, x) -> list[np.ndarray]:
        """Lambda of each term."""
        return self._matrices(self.psi(x))

    def _matrices(self, x):
        out = []
        for part, term in zip(self.parts, self.design.terms, strict=True):
            factor = np.zeros((term.n_effects,) * 2)
            factor[term.covariance.entries] = x[part]
            out.append(factor)
        return out

    def with_factors(self, x, matrices):
        """x with these as the terms' R."""
        x = x.copy()
        for part, term, R in zip(self.parts, self.design.terms, matrices, strict=True):
            x[part] = term.covariance.raw(R)
        return x

    # --- Evaluations -------------------------------------------------------------------------------------------

    def at(self, x) -> SeveralEvaluation:
        key = x.tobytes()
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        e = self._evaluate(x, self.u)
        if np.isfinite(e.value):
            self.u = e.u
        self._last = key, e
        return e

    def _evaluate(self, x, u, solver=None):
        if self.quadrature is not None:
            psi = self.psi(x)
            self.evaluations += 1
            return self.quadrature.evaluate(psi[: self.p], self._matrices(psi), psi[-1], u)
        return self._laplace(x, u, solver)

    def laplace(self, x) -> SeveralEvaluation:
        """By Laplace's approximation, whatever is maximised."""
        return self.at(x) if self.quadrature is None else self._laplace(x, self._all_modes)

    def _laplace(self, x, u, solver=None):
        psi = self.psi(x)
        self.evaluations += 1
        return evaluate_several(
            self.design, self.rows, solver or self.solver, psi[: self.p], self._matrices(psi), psi[-1], u,
            determinant=self.determinant,
        )  # fmt: skip

    def gradient(self, e):
        """In x."""
        entries = [change[t.covariance.entries] for t, change in zip(self.design.terms, e.factors, strict=True)]
        return self.jacobian.T @ np.concatenate([e.beta, *entries, [e.log_phi]])

    def hessian(self, x, *, exact=False):
        """In x: the fixed effects' block by its closed form, the rest by differences of the gradient.

        Where `exact` is False differences go one way, and the closed form leaves out a small term (`fixed_hessian`).
        They go one way, too, where the gradient is an estimate: its error is larger than that of the difference.
        """
        cheap = self.solver.cheap
        both = exact and cheap.exact
        e = self.at(x) if cheap is self.solver else self._evaluate(x, self.u, cheap)
        gradient = self.gradient(e)
        H = np.zeros((self.m, self.m))
        few = exact and (self.quadrature is not None or (cheap.exact and self.design.X.size <= _FEW_ENTRIES))
        if not few:
            base = e if self.quadrature is None else self.laplace(x)
            H[: self.p, : self.p] = fixed_hessian(self.design, base, self.factors(x), trace=exact and self.determinant)
        step, free = self._steps(x), self.all_free()
        for j in range(0 if few else self.p, self.m):
            if free[j]:
                move = np.zeros(self.m)
                move[j] = step[j]
                up = self.gradient(self._evaluate(x + move, e.u, cheap))
                down = self.gradient(self._evaluate(x - move, e.u, cheap)) if both else gradient
                H[:, j] = (up - down) / (step[j] * (1 + both))
        H[self.p :, : self.p] = H[: self.p, self.p :].T
        self._model = _Model(x.copy(), gradient, 0.5 * (H + H.T), exact)
        return self._model.hessian

    def _steps(self, x):
        step = _STEP * np.maximum(np.abs(x), _SMALLEST)
        step[-1] = _STEP
        if self._model is not None:
            # A column's standard error is its unit.
            step[: self.p] = 0.01 / np.sqrt(np.maximum(-np.diag(self._model.hessian)[: self.p], 1e-300))
        return step

    def model(self, x, e, free):
        """The Hessian last computed, or a new one where its prediction of the gradient fails, or near the optimum."""
        if self._model is None:
            return self.hessian(x)
        if self.refining:
            return self._model.hessian
        known, found = self._model, self.gradient(e)
        if np.array_equal(x, known.x):
            return known.hessian
        scale = 1 / np.sqrt(np.maximum(-np.diag(known.hessian), 1e-8))
        predicted = known.gradient + known.hessian @ (x - known.x)
        if np.linalg.norm(scale * (found - predicted)) > _TRUSTED * np.linalg.norm(scale * known.gradient):
            return self.hessian(x)
        if not known.exact and self._distance(known.hessian, found, free) < self._near:
            return self.hessian(x, exact=True)
        return known.hessian

    @property
    def _near(self):
        return _NEAR if self.solver.cheap.exact else _NEAR_ESTIMATE

    @staticmethod
    def _distance(hessian, gradient, free):
        """The decrement."""
        g = gradient[free]
        return g @ np.linalg.lstsq(-hessian[np.ix_(free, free)], g, rcond=None)[0]

    def final_hessian(self, x, free):
        known = self._model
        if known is not None and known.exact and len(self.design.y) >= _MANY_ROWS:
            move = (x - known.x)[free]
            if move @ -known.hessian[np.ix_(free, free)] @ move < self._near:
                return known.hessian
        return self.hessian(x, exact=True)

    def use_quadrature(self, quadrature, x, free):
        """Maximise another likelihood from here on; x with variances that are far enough from zero to be moved."""
        parts = self.design.split(self.u)
        self._all_modes, self.u = self.u, np.concatenate([parts[t].ravel() for t in quadrature.coarser])
        self.quadrature, self._last, self._model = quadrature, None, None
        return np.where(self.even & free, np.maximum(np.abs(x), _SMALLEST), x)

    def refine_with(self, solver):
        """Use another solver from here on, with the Hessian that is known."""
        self.solver, self.refining, self._last = solver, True, None

    def newton_step(self, x, hessian, free):
        """x after one step; as it was where there is no likelihood."""
        e = self.at(x)
        if not np.isfinite(e.value):
            return x
        moved = x.copy()
        moved[free] += np.linalg.lstsq(-hessian[np.ix_(free, free)], self.gradient(e)[free], rcond=None)[0]
        return moved

    def climb(self, x, free, steps=None) -> NewtonResult:
        best: tuple | None = None

        def at(x):
            nonlocal best
            e = self.at(x)
            if not np.isfinite(e.value):
                return e.value, np.zeros(self.m), np.zeros((self.m, self.m))
            value, gradient = e.value, self.gradient(e)
            if not self.solver.exact:
                # An estimated value and its estimated gradient agree up to their errors only: what a step gains is
                # the mean gradient along it.
                if best is not None:
                    value = best[1] + 0.5 * (gradient + best[2]) @ (x - best[0])
                if best is None or value > best[1]:
                    best = x.copy(), value, gradient
            return value, gradient, self.model(x, e, free)

        expensive = not self.solver.exact or self.solver.cheap is not self.solver
        result = maximise_free(
            at, x, free, self.even, tol=max(self.tol, _COARSE) if expensive else self.tol,
            max_iterations=steps or self.max_iterations, callback=self.callback,
        )  # fmt: skip
        return replace(result, value=self.at(result.x).value)

    def certify(self, result, hessian, free):
        """Go on with the exact Hessian where by it the decrement is above the tolerance."""
        g = self.gradient(self.at(result.x))
        decrement = self._distance(hessian, g, free)
        if result.converged and not self.refining and decrement <= self.tol:
            return replace(result, decrement=float(decrement))
        return self.climb(result.x, free, steps=10)

    # --- Where to begin ----------------------------------------------------------------------------------------

    def fit_glm(self, intercept, names) -> NewtonResult:
        """The fit without random effects: every Lambda at zero."""
        design = self.design
        eta0, log_phi0 = self.family.start(design.y, design.weights)
        x = np.zeros(self.m)
        if intercept is not None:
            x[intercept] = eta0 - np.average(design.offset, weights=design.weights)
        elif self.family.link in ("inverse", "sqrt") and self.p:
            x[: self.p] = np.linalg.lstsq(design.X, np.full(len(design.y), eta0), rcond=None)[0]
        x[-1] = log_phi0
        free = self.all_free()
        free[self.varied] = False

        def at(x):
            e = self.at(x)
            if not np.isfinite(e.value):
                return e.value, np.zeros(self.m), np.zeros((self.m, self.m))
            return e.value, self.gradient(e), self._glm_hessian(x, e)

        glm = maximise_free(at, x, free, np.zeros(self.m, bool), tol=self.tol, callback=self.callback)
        check_separation(design, glm, names, intercept)
        return glm

    def _glm_hessian(self, x, e):
        H = np.zeros((self.m, self.m))
        H[: self.p, : self.p] = fixed_hessian(self.design, e, self.factors(x), trace=False)
        if e.rows.phi is not None:
            move = np.zeros(self.m)
            move[-1] = _STEP
            H[:, -1] = sum(sign * self.gradient(self._evaluate(x + sign * move, e.u)) for sign in (1, -1)) / (2 * _STEP)
            H[-1] = H[:, -1]
        return H

    def start(self, glm):
        """Independent effects, each factor's of the size that its own score at zero suggests."""
        d = self.at(glm.x).rows
        assert d is not None
        bases, matrices = [], []
        used = self.design.weights > 0
        for term in self.design.terms:
            scores = term.sums(d.s)
            ones = np.ones(len(used))
            z = np.stack([ones if v is None else v for v in term.z])
            squares = np.stack([np.bincount(term.codes, d.w * v * v, term.n_levels) for v in z], axis=1)
            base = base_factor(term.covariance, z[:, used], squares.sum(0))
            score = 0.5 * (np.square(scores).sum(0) - squares.sum(0))
            first = np.sqrt(np.maximum(2 * score / np.maximum(np.square(squares).sum(0), 1e-300), 0))
            bases.append(base)
            matrices.append(np.diag(np.clip(first / np.sqrt(np.square(base).sum(1)), 0.1, 1.0)))
        self.set_bases(bases)
        self._model = None
        return self.with_factors(glm.x, matrices)

    # --- The boundary ------------------------------------------------------------------------------------------

    def settle(self, result, groups):
        """Make the diagonals non-negative, and hold at zero what is as good there.

        Returns
        -------
        NewtonResult, free (m,), scores
            `scores`: derivative in the variance at zero of each scalar effect that is held there, by group.
        """
        free, scores = self.all_free(), {}
        for _ in range(2 * int(self.even.sum())):
            matrices = [
                t.covariance.canonical(R) for t, R in zip(self.design.terms, self._matrices(result.x), strict=True)
            ]
            x = self.with_factors(result.x, matrices)
            rival, held = self.best_zero(result, matrices, free)
            if rival is not None:
                result, free = rival, held
            elif result.converged and (x == result.x).all():
                break
            else:
                result = self.climb(x, free)
        for part, term, group in zip(self.parts, self.design.terms, groups, strict=True):
            if term.n_effects == 1 and not free[part].any():
                scores[group] = self.score_at_zero(result.x, part, term)
        return result, free, scores

    def best_zero(self, result, matrices, free):
        """The best fit with one more zero on a diagonal, or None where each is worse than `result`."""
        best, best_free = None, free
        limit = _NOTHING if result.converged else _LITTLE
        for i, (part, term) in enumerate(zip(self.parts, self.design.terms, strict=True)):
            _, columns = term.covariance.entries
            size = np.where(free[part][term.covariance.diagonal], np.diag(matrices[i]), np.inf)
            for column in np.flatnonzero(size < (limit if term.n_effects == 1 else 10 * limit)):
                held = free.copy()
                held[part] &= columns != column
                without = term.covariance.without(matrices[i], column)
                x = self.with_factors(result.x, [*matrices[:i], without, *matrices[i + 1 :]])
                rival = self.climb(x, held)
                slack = 1e-10 * (1 + abs(result.value)) if self.solver.exact else 1e-3
                least = result.value - slack if best is None else best.value
                if rival.converged and rival.value >= least:
                    best, best_free = rival, held
        return best, best_free

    def score_at_zero(self, x, part, term):
        """dL/d(tau^2) at tau = 0, from the gradient in tau close by: L is even in tau."""
        x = x.copy()
        x[part] = _STEP
        tau = self.psi(x)[part][0]
        slope = self.gradient(self._evaluate(x, self.u))[part][0] / self.jacobian[part, part][0, 0]
        return float(slope / (2 * tau) * np.square(term.z_scale[0]))
