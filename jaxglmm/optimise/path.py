"""Penalised fits along a path of lambda, of one data set or of several that share their columns (folds).

    minimise  F(beta, theta, phi) = -L/N + sum_j lambda f_j [ alpha |beta_j| + (1 - alpha)/2 beta_j^2 ]

The unknowns are beta, the free entries of Lambda and the log dispersion, all moved at once by proximal Newton steps.
Only a working set of columns is read by these: the active ones and those nearest to entering (the strong rule's among
them). After each solution the gradient in all columns, one product X'(dL/deta), checks the conditions that the rule
cannot promise, and screens for the next lambda.

Folds are solved together: their steps are evaluated as one batch, and they begin with the Hessian of all rows.

References
----------
Friedman, Hastie & Tibshirani (2010), J. Stat. Softw. 33(1). Tibshirani et al. (2012), JRSS B 74, 245 (strong rules).
"""

from dataclasses import replace
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from jaxglmm.model.family import AT_LIMIT
from jaxglmm.optimise.boundary import HIGHER, LinePoint, profiled, promising
from jaxglmm.optimise.dispersion import dispersion_limit
from jaxglmm.optimise.node_ladder import Look, Place, look, padded_nodes
from jaxglmm.optimise.path_evaluations import Evaluations
from jaxglmm.optimise.path_model import Point, Solution, Weights
from jaxglmm.optimise.proximal import (
    Curvature,
    Penalised,
    ProximalResult,
    lockstep,
    minimise_model,
    proximal_newton,
)
from jaxglmm.optimise.separation import check_separation
from jaxglmm.optimise.working_set import WorkingSet


# An effect's standard deviation below this share of its first estimate is tried at zero, and taken up again from here.
_NOTHING, _AGAIN = 1e-4, 0.3
# A fold's first step with the Hessian of all rows is expected to leave this share of the residual.
_BORROWED = 0.05
# Columns are read along whose gradient is this near to lambda, where the strong rule would read still more.
_NEAR = 0.75


class PathSolver:
    """Solves at one lambda after another, each from the last solution.

    Parameters
    ----------
    columns : WideColumns
        All columns; shared by the models.
    weights : Weights
    models : sequence of Model
        Data sets on the same slots: all rows, then folds, which have the same nodes and free parameters.
    points : sequence of Point
        Where they begin.
    tol : float
        KKT residual, relative to the gradient's own scale: the root of a row's information, which is about the size of
        its score, and so of the gradient of the mean loss in a scaled column that says something.
    max_iterations : int
        Evaluations a lambda and model.
    """

    def __init__(self, columns, weights: Weights, models, points, *, tol=1e-9, max_iterations=200):
        self.columns, self.weights, self.models, self.points = columns, weights, list(models), list(points)
        self.tol, self.max_iterations = tol, max_iterations
        self.blas = ThreadpoolController()
        self.spread = [np.abs(point.rest) for point in points]
        self.evaluations = Evaluations(self.models, self.points)
        self.set = WorkingSet(columns, weights.usable)
        self.last = None
        for i in range(len(self.models)):
            self.restart(i)
        self.scale = self._gradient_scale()

    def _gradient_scale(self) -> float:
        curvature: Any = self.points[0].curvature.matrix
        information = np.max(np.diag(curvature)[: len(self.set.at)], initial=0.0)
        scale = float(np.sqrt(information)) * self.models[0].excess
        return scale if np.isfinite(scale) and scale > 0 else 1.0

    def restart(self, i) -> None:
        """Value and derivatives of a model where it stands."""
        point = self.points[i]
        self._cover((point.beta != 0) | (self.weights.factors == 0), self.weights.l1(1.0))
        x = self._x(i)
        point.loss, gradient, point.curvature.matrix = self._at({i: x}, True)[i]
        self._keep_gradients({i: (x, gradient)})

    def use_nodes(self, nodes) -> None:
        """Maximise another approximation to the same likelihoods from here on."""
        for i, model in enumerate(self.models):
            model.nodes = nodes
            self.restart(i)

    def look(self, nodes: int, found: Solution, lam: float) -> Look:
        """At a solution of the first model, which is to be restarted then, with other nodes.

        The penalty is the same: what moves the parameters is the change of the likelihood's gradient.
        """
        model, point = self.models[0], self.points[0]
        point.beta, point.rest = found.beta.copy(), found.rest.copy()
        self.restart(0)
        (penalised, x, before), own = self._local(0, lam), self._information(0, lam)
        used, model.nodes = model.nodes, padded_nodes(nodes, model.design.terms[0].covariance.n_effects)
        self.restart(0)
        value, after, information = self.loglik(0), self._local(0, lam)[2], self._information(0, lam)
        model.nodes = used
        kept, width = (x != 0) | (penalised.l1 == 0), len(self.set.at)
        kept[width:] = ~(np.abs(x[width:]) < _NOTHING * self.spread[0][model.free]) | ~self._deviations(model)
        seen = look(nodes, Place(x, found.loglik, -own), kept, value, model.total * (before - after), -information)
        place = np.append(self.set.at, len(self.weights.factors) + np.flatnonzero(model.free))
        return seen._replace(which=int(place[seen.which]) if seen.which >= 0 else -1)

    def _information(self, i, lam: float) -> np.ndarray:
        """Minus the Hessian of the log-likelihood less N times the penalty, in what moves."""
        return self.models[i].total * (self.points[i].curvature.matrix + np.diag(self._local(i, lam)[0].l2))

    def loglik(self, i) -> float:
        """Log-likelihood of a model where it stands; a prior's logarithm is not in it."""
        model, point = self.models[i], self.points[i]
        prior = 0.0
        if model.prior is not None:
            prior = model.prior(point.beta, point.rest, np.arange(len(point.beta)))[0]
        return -model.total * point.loss - prior

    def decrement(self, i, lam: float) -> float:
        """N d'Ad of one more step d on the model of the Hessian A: its squared length in standard errors."""
        penalised, x, gradient = self._local(i, lam)
        step = minimise_model(self.points[i].curvature.matrix, gradient, x, penalised) - x
        return float(self.models[i].total * step @ (self.points[i].curvature.matrix @ step + penalised.l2 * step))

    def penalised_hessian(self, i, lam: float) -> np.ndarray:
        """Of the log-likelihood less N times the penalty in (beta, rest), at the last point evaluated."""
        p, model = len(self.weights.factors), self.models[i]
        at = np.append(self.set.at, p + np.flatnonzero(model.free))
        out = np.zeros((p + len(model.free),) * 2)
        out[np.ix_(at, at)] = -self._information(i, lam)
        return out

    def held_out(self) -> list[float]:
        """Of each fold: the log-likelihood of all rows less that of its own, where it stands."""
        asked = {i: self._psi(i, self._x(i)) for i in range(1, len(self.models))}
        whole = self.evaluations.whole_values(self.set.X, asked)
        return [whole[i] - self.loglik(i) for i in asked]

    def check_separation(self, i, names, intercept) -> None:
        """Refuse a model's solution at lambda 0 where it is on its way to infinity.

        Parameters
        ----------
        names : sequence of str
            Of all columns.
        intercept : int or None

        Raises
        ------
        SeparationError
        """
        self.restart(i)
        W, model = self.set.at, self.models[i]
        first = int(np.searchsorted(W, intercept)) if intercept in W else None
        design = replace(model.design, X=self.set.X)
        check_separation(model.family, design, self._x(i)[: len(W)], names=[names[j] for j in W], intercept=first)

    def solve(self, lam: float) -> list[Solution]:
        """Solutions of all models at lambda: that of all rows, then those of all folds together."""
        # On a busy machine threads wait for each other at each of many small products.
        with self.blas.limit(limits=1, user_api="blas"):
            found = self._solve([0], lam)
            if len(self.models) > 1:
                found |= self._solve(list(range(1, len(self.models))), lam)
        self.last = lam
        return [found[i] for i in range(len(self.models))]

    # --- Some models at one lambda ---------------------------------------------------------------------------

    def _solve(self, which: list[int], lam) -> dict[int, Solution]:
        l1, out, best, starts = self.weights.l1(lam), {}, {}, {}
        for i in which:
            if self._near_zero(i) and self.points[i].rest[0] != 0:
                self.points[i].rest[0] = 0.0
                self.restart(i)
        needed = np.any([self._promising(i, lam) for i in which], axis=0)
        iterations = dict.fromkeys(which, 0)
        while which:
            self._cover(needed & np.isfinite(l1), l1)
            results, again = self._minimise(which, lam), []
            for i in which:
                found, outside = results[i], self._violations(i, l1)
                iterations[i] += found.iterations
                violated = outside > max(self.tol, 0.5 * outside.max(initial=0.0))
                needed |= violated
                if found.converged and violated.any():
                    again.append(i)
                    continue
                kkt, stands = max(found.kkt, float(outside.max(initial=0.0))), True
                if i not in starts:
                    stands, starts[i] = self._from_zero(i, lam) if found.converged else (True, [])
                here = self._criterion(i, lam)
                if stands and (i not in best or here > best[i][0] + HIGHER):
                    best[i] = here, self._place(i), kkt, found.converged
                if starts[i]:
                    self.points[i].rest[0] = starts[i].pop(0)
                    self.restart(i)
                    again.append(i)
                    continue
                here, place, kkt, converged = best[i]
                if here != self._criterion(i, lam):
                    self._go_back(i, place)
                point = self.points[i]
                rest = point.rest.copy()
                if converged and self._at_limit(i):
                    rest[-1] = AT_LIMIT
                x = self._x(i)
                out[i] = Solution(
                    point.beta.copy(), rest, self.loglik(i), self._df(i, x, lam), kkt, iterations[i], converged
                )
            which = again
        return out

    def _promising(self, i, lam) -> np.ndarray:
        """Columns (p,) that have a coefficient, are unpenalised, or may enter by the strong rule."""
        point, l1 = self.points[i], self.weights.l1(lam)
        out, some = (point.beta != 0) | (self.weights.factors == 0), np.isfinite(l1)
        previous = l1 if self.last is None else self.weights.l1(self.last)
        bound = np.maximum(2 * l1[some] - previous[some], _NEAR * l1[some])
        out[some] |= np.abs(point.gradient[: len(l1)][some]) >= bound
        return out

    def _minimise(self, which, lam) -> dict[int, ProximalResult]:
        """Minimise on the working set, from where the models stand."""
        steps = {}
        for i in which:
            self._borrow_curvature(i)
            point, (penalised, x0, gradient) = self.points[i], self._local(i, lam)
            steps[i] = proximal_newton(
                x0, penalised, point.curvature, tol=self.tol, max_iterations=self.max_iterations,
                known=(point.loss, gradient),
            )  # fmt: skip
        results = lockstep(steps, self._at)
        width = len(self.set.at)
        for i, found in results.items():
            self.points[i].beta[self.set.at] = found.x[:width]
            self.points[i].rest[self.models[i].free] = found.x[width:]
            self.points[i].loss = found.loss
        self._keep_gradients({i: (found.x, found.gradient) for i, found in results.items()})
        return results

    def _borrow_curvature(self, i) -> None:
        """Let a fold begin with the Hessian of all rows."""
        own, whole = self.points[i].curvature, self.points[0].curvature
        if i and own.matrix is None:
            if whole.matrix is None:
                whole.matrix = self._at({0: self._x(0)}, True)[0][2]
            own.matrix, own.rate = whole.matrix, _BORROWED

    def _x(self, i) -> np.ndarray:
        """Where a model stands in the coordinates that move."""
        return np.append(self.points[i].beta[self.set.at], self.points[i].rest[self.models[i].free])

    def _psi(self, i, x) -> np.ndarray:
        """Coefficients of the working set and all of `rest` at x."""
        rest = self.points[i].rest.copy()
        rest[self.models[i].free] = x[len(self.set.at) :]
        return np.append(x[: len(self.set.at)], rest)

    def _local(self, i, lam):
        """The penalty, the coordinates that move and the gradient in them."""
        W, point, model = self.set.at, self.points[i], self.models[i]
        gradient = np.append(point.gradient[W], point.gradient[len(self.weights.factors) :])
        extra, spread = int(model.free.sum()), self.spread[i][model.free]

        def longest(x):
            out = np.full(len(x), np.inf)
            if extra:
                out[len(W) :] = np.maximum(np.abs(x[len(W) :]), spread)
                if model.free[-1]:
                    out[-1] = 2.0
            return np.maximum(out, 1e-3)

        pad = lambda v, fill: np.append(v[W], np.full(extra, fill))
        scale = np.full(len(gradient), self.scale)
        if model.free[-1]:
            scale[-1] = 1.0  # a logarithm has no unit
        weights = pad(self.weights.l1(lam), 0.0), pad(self.weights.l2(lam), 0.0), scale
        return Penalised(*weights, len(W), longest), self._x(i), gradient

    # --- Evaluations -----------------------------------------------------------------------------------------

    def _at(self, asked: dict[int, np.ndarray], second, last=False) -> dict[int, tuple]:
        """{model: mean loss, gradient and Hessian in (coefficients of the working set, free rest)} at {model: x}.

        Where x is the `last` of its lambda, columns outside of the working set are read with the others, for their
        conditions.
        """
        W, p = self.set.at, len(self.weights.factors)
        X: Any = self.set.X
        inside = np.ones(len(W), bool)
        psi = {i: self._psi(i, x) for i, x in asked.items()}
        wide = last and not second and self.columns.dense is not None and not self.set.whole
        if wide:
            X, inside = self.columns.dense, np.zeros(p, bool)
            inside[W] = True
            psi = {i: np.append(np.zeros(p), at[len(W) :]) for i, at in psi.items()}
            for i, x in asked.items():
                psi[i][W] = x[: len(W)]
        out = {}
        for i, (value, gradient, hessian) in self.evaluations(X, psi, second).items():
            model, point = self.models[i], self.points[i]
            point.passes += X.shape[1] / max(p, 1)
            point.outside = (asked[i], -gradient[:p] / model.total) if wide else None
            gradient = gradient[np.append(inside, np.ones(len(model.free), bool))]
            if model.prior is not None:
                extra = model.prior(asked[i][: len(W)], psi[i][-len(model.free) :], W)
                value, gradient, hessian = value + extra[0], gradient + extra[1], hessian + extra[2]
            kept = np.append(np.ones(len(W), bool), model.free)
            loss = -value / model.total if np.isfinite(gradient).all() else np.inf
            curvature = -hessian[np.ix_(kept, kept)] / model.total if second else None
            out[i] = (loss, -gradient[kept] / model.total, curvature)
        return out

    def _keep_gradients(self, found: dict[int, tuple]) -> None:
        """The gradients at {model: (x, gradient)} in all columns, of which `gradient` has the working set's."""
        W, p = self.set.at, len(self.weights.factors)
        full = {} if self.set.whole else self._full_gradients({i: x for i, (x, _) in found.items()})
        for i, (_, gradient) in found.items():
            kept = np.append(full.get(i, np.zeros(p)), gradient[len(W) :])
            kept[W] = gradient[: len(W)]
            self.points[i].gradient = kept

    def _full_gradients(self, asked: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Gradients (p,) of the mean losses at {model: x} in all columns."""
        if self.columns.dense is not None:
            known = lambda i, x: self.points[i].outside is not None and np.array_equal(self.points[i].outside[0], x)
            if left := {i: x for i, x in asked.items() if not known(i, x)}:
                self._at(left, False, True)
            return {i: self.points[i].outside[1] for i in asked}
        scores = []
        for i, x in asked.items():
            psi, width = self._psi(i, x), len(self.set.at)
            scores.append(self.evaluations.scores(i, self.set.X, psi[:width], psi[width:]))
            self.points[i].passes += 1
        each = self.columns.against(np.stack(scores, axis=1))
        return {i: -each[:, k] / self.models[i].total for k, i in enumerate(asked)}

    def _cover(self, needed: np.ndarray, l1) -> None:
        """Make the working set hold the columns needed (p,), and those that have a coefficient in any model."""
        needed = np.any([needed, *(point.beta != 0 for point in self.points)], axis=0)
        gradients = [point.gradient[: len(l1)] for point in self.points if point.gradient is not None]
        nearness = np.max(np.abs(gradients), axis=0, initial=0.0) if gradients else np.zeros(len(l1))
        nearness = np.divide(nearness, l1, out=np.full(len(l1), np.inf), where=l1 > 0)
        if self.set.cover(np.flatnonzero(needed), nearness):
            for point in self.points:
                point.curvature = Curvature()

    def _violations(self, i, l1) -> np.ndarray:
        """Of the conditions of columns outside of the working set, (p,)."""
        outside = np.isfinite(l1)
        outside[self.set.at] = False
        excess = np.abs(self.points[i].gradient[: len(l1)]) - np.where(outside, l1, 0.0)
        return np.where(outside, np.maximum(excess, 0.0), 0.0) / self.scale

    @staticmethod
    def _deviations(model) -> np.ndarray:
        """Which of the free entries of `rest` are on the diagonal of Lambda."""
        diagonal = model.design.terms[0].covariance.diagonal
        return np.append(diagonal, False)[model.free]

    # --- Variances at zero, degrees of freedom -------------------------------------------------------------

    def _near_zero(self, i) -> bool:
        """Whether a single effect's variance is estimated and at zero, where the gradient in its sd vanishes."""
        model, point = self.models[i], self.points[i]
        estimated = model.nodes is not None and model.prior is None and len(model.free) == 2 and model.free[0]
        return bool(estimated and abs(point.rest[0]) <= _NOTHING * self.spread[i][0])

    def _from_zero(self, i, lam) -> tuple[bool, list[float]]:
        """Whether a solution stands, and standard deviations to begin other searches from, where its variance is zero.

        It does not stand where the likelihood rises from there; further on may be a higher maximum
        (`optimise.boundary`).
        """
        if not self._near_zero(i):
            return True, []
        self.points[i].rest[0] = 0.0
        self.restart(i)
        curvature: Any = self.points[i].curvature.matrix
        if curvature[len(self.set.at), len(self.set.at)] < 0:
            return False, [_AGAIN * self.spread[i][0]]
        return True, promising(self._looks(i, lam), self._criterion(i, lam))[:2]

    def _looks(self, i, lam) -> list[LinePoint]:
        """Along a standard deviation of zero, the parameters that move profiled."""
        penalised, x, _ = self._local(i, lam)
        model, modes, j, looks = self.models[i], self.points[i].modes, len(self.set.at), []
        others = np.flatnonzero(((x != 0) | (penalised.l1 == 0)) & (np.arange(len(x)) != j))
        for size in model.sizes:
            x[j] = size
            loss, gradient, curvature = self._at({i: x}, True)[i]
            if np.isfinite(loss) and np.isfinite(curvature).all():
                gradient = gradient + penalised.l2 * x + penalised.l1 * np.sign(x)
                curvature = curvature + np.diag(penalised.l2)
                loss, N = loss + penalised.value(x), -model.total
                value, slope = profiled(N * loss, N * gradient, N * curvature, j, others)
                looks.append(LinePoint(size, value, size * slope))
        self.points[i].modes = modes
        return looks

    def _criterion(self, i, lam) -> float:
        """Log-likelihood less N times the penalty of a model where it stands."""
        return -self.models[i].total * (self.points[i].loss + self._local(i, lam)[0].value(self._x(i)))

    def _place(self, i) -> Point:
        return replace(self.points[i], beta=self.points[i].beta.copy(), rest=self.points[i].rest.copy())

    def _go_back(self, i, place: Point) -> None:
        self.points[i] = replace(place, passes=self.points[i].passes, outside=None, curvature=Curvature())
        self.restart(i)

    def _at_limit(self, i) -> bool:
        """Whether the limit of the dispersion is as good as where it stands (`optimise.dispersion`)."""
        model, point = self.models[i], self.points[i]
        limit = dispersion_limit(model.family, model.design.y, model.design.weights) if model.free[-1] else None
        if limit is None or not limit.beyond(point.rest):
            return False
        x = self._x(i)
        x[-1] = AT_LIMIT
        loss = self._at({i: x}, False)[i][0]
        return bool(loss <= point.loss + 1e-10 * (1 + abs(point.loss)))

    def _df(self, i, x, lam) -> float:
        penalised, _, _ = self._local(i, lam)
        active = (x != 0) | (penalised.l1 == 0)
        active[len(self.set.at) :] = True
        matrix = self.points[i].curvature.matrix
        if not penalised.l2[active].any() or matrix is None:
            return float(active.sum())
        A, l2 = matrix[np.ix_(active, active)], np.diag(penalised.l2[active])
        return float(np.trace(np.linalg.solve(A + l2, A)))
