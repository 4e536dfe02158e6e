"""The search for the optimum with several grouping factors: evaluations, Hessians, and the steps made of them.

Values and gradients are exact; the Hessian, whose exact form would cost many factorisations, is put together from its
closed form in the fixed effects and differences of the exact gradient in the few other parameters, and serves until the
gradient departs from what it predicts.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxglmm.objectives.factor_quadrature import FactorQuadrature
from jaxglmm.objectives.level_gap import level_gap
from jaxglmm.objectives.several import SeveralEvaluation, evaluate_several, fixed_hessian
from jaxglmm.ops.rows import FamilyRows
from jaxglmm.optimise.dispersion import dispersion_limit
from jaxglmm.optimise.free_parameters import maximise_free
from jaxglmm.optimise.newton import NewtonResult, least_squares
from jaxglmm.optimise.node_ladder import Look, look


# Differences of the gradient, relative to the size of the parameter: their error is of the square of this.
STEP, _SMALLEST = 1e-3, 0.1
# Up to this many entries of X, differences replace the closed form of the fixed effects' block, whose trace is random.
_FEW_ENTRIES = 300_000
# A Hessian serves while the gradient is within this share of what it predicts. Below this decrement it is made exact,
# and with so many rows it is then still exact at the optimum, a thousandth of a standard error away; or a tenth where
# it is an estimate.
_TRUSTED, _NEAR, _NEAR_ESTIMATE, _MANY_ROWS = 0.1, 1e-6, 1e-2, 100_000
# Decrement at which to stop where each evaluation is costly or estimated: a ten-thousandth of a standard error.
_COARSE = 1e-8
# Log-likelihood that nodes may find less than Laplace's approximation where that is a good place to begin.
_FAR = 1.0
# Entries of R below this are on the boundary (`optimise.several_boundary`).
_NOTHING = 1e-2


class _Model(NamedTuple):
    """A point, and gradient and Hessian there."""

    x: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    exact: bool


class Search:
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
        self.limit = dispersion_limit(family, design.y, design.weights)
        self.evaluations = 0
        self.u = np.zeros(design.starts[-1])
        self._last: tuple[bytes, SeveralEvaluation] | None = None
        self._model: _Model | None = None
        self.refining = False
        self.quadrature: FactorQuadrature | None = None
        self.gap: SeveralEvaluation | None = None  # of the last look

    # --- Coordinates -------------------------------------------------------------------------------------------

    def begin(self, x, hessian):
        """x, with a Hessian that is about right there."""
        self._model = _Model(x, self.gradient(self.at(x)), hessian, False)
        return x

    def forget(self):
        """The Hessian, which is of other coordinates."""
        self._model = None

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
        return self.matrices(self.psi(x))

    def matrices(self, x):
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
        e = self.evaluate(x, self.u)
        if np.isfinite(e.value):
            self.u = e.u
        self._last = key, e
        return e

    def evaluate(self, x, u, solver=None):
        if self.quadrature is not None:
            psi = self.psi(x)
            self.evaluations += 1
            return self.quadrature.evaluate(psi[: self.p], self.matrices(psi), psi[-1], u)
        return self._laplace(x, u, solver)

    def laplace(self, x) -> SeveralEvaluation:
        """By Laplace's approximation, whatever is maximised."""
        return self.at(x) if self.quadrature is None else self._laplace(x, self._all_modes)

    def _laplace(self, x, u, solver=None):
        psi = self.psi(x)
        self.evaluations += 1
        return evaluate_several(
            self.design, self.rows, solver or self.solver, psi[: self.p], self.matrices(psi), psi[-1], u,
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
        cheap = self._cheap
        both = exact and cheap.exact
        e = self.at(x) if cheap is self.solver else self.evaluate(x, self.u, cheap)
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
                up = self.gradient(self.evaluate(x + move, e.u, cheap))
                down = self.gradient(self.evaluate(x - move, e.u, cheap)) if both else gradient
                H[:, j] = (up - down) / (step[j] * (1 + both))
        H[self.p :, : self.p] = H[: self.p, self.p :].T
        self._model = _Model(x.copy(), gradient, 0.5 * (H + H.T), exact)
        return self._model.hessian

    def _steps(self, x):
        step = STEP * np.maximum(np.abs(x), _SMALLEST)
        step[-1] = STEP
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
        return _NEAR if self._cheap.exact else _NEAR_ESTIMATE

    @property
    def _cheap(self):
        """What differences of the gradient are made with."""
        return self.solver if self.quadrature is not None else self.solver.cheap

    @staticmethod
    def _distance(hessian, gradient, free):
        """The decrement."""
        g = gradient[free]
        return g @ least_squares(-hessian[np.ix_(free, free)], g)

    def final_hessian(self, x, free):
        known = self._model
        if known is not None and known.exact and len(self.design.y) >= _MANY_ROWS:
            move = (x - known.x)[free]
            if move @ -known.hessian[np.ix_(free, free)] @ move < self._near:
                return known.hessian
        return self.hessian(x, exact=True)

    def use_quadrature(self, quadrature, solver, x, free, other):
        """Maximise another likelihood from here on; where to begin, with variances that are far enough from zero.

        That is x, or, where Laplace's approximation is far above what nodes find there, the result of `other`, should
        it be better. `solver` is for Laplace's approximation beside the nodes.
        """
        inside = lambda x: np.where(self.even & free, np.maximum(np.abs(x), _SMALLEST), x)
        laplace = self.at(x).value
        parts = self.design.split(self.u)
        self._all_modes, self.u = self.u, np.concatenate([parts[t].ravel() for t in quadrature.others])
        self.solver, self._last, self._model = solver, None, None
        self.quadrature = quadrature
        value = self.at(inside(x)).value
        if value >= laplace - _FAR:
            return inside(x)
        self.quadrature, self._last = None, None
        modes, self.u = self.u, self._all_modes
        rival = inside(other())
        self.quadrature, self._last, self._model = quadrature, None, None
        self.u = np.zeros_like(modes)
        return inside(x) if self.at(rival).value < value else rival

    def more_nodes(self, quadrature):
        """Go on with another number of nodes; the Hessian serves for as long as it does."""
        self.quadrature, self._last = quadrature, None

    def look(self, used: int, nodes: int, result, free) -> Look:
        """At the end of a climb on `used` nodes, with more, the other factors' effects at their modes."""
        psi, u = self.psi(result.x), self.at(result.x).u
        u = u if self.quadrature is None else self.quadrature.all_effects(u)
        gap = level_gap(self.family, self.design, psi[: self.p], self.matrices(psi), psi[-1], u, used, nodes)
        self.evaluations += 1
        self.gap = gap
        return look(nodes, result, self._movable(result, free), result.value + gap.value, self.gradient(gap))

    def _movable(self, result, free):
        return free & ~(self.even & (np.abs(result.x) < _NOTHING))

    def refine_with(self, solver):
        """Use another solver from here on, with the Hessian that is known."""
        self.solver, self.refining, self._last = solver, True, None

    def newton_step(self, x, hessian, free):
        """x after one step; as it was where there is no likelihood."""
        e = self.at(x)
        if not np.isfinite(e.value):
            return x
        moved = x.copy()
        moved[free] += least_squares(-hessian[np.ix_(free, free)], self.gradient(e)[free])
        return moved if np.isfinite(moved).all() else x

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
            at, x, free, self.even, limit=self.limit, tol=max(self.tol, _COARSE) if expensive else self.tol,
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
