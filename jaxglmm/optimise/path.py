"""Penalised fits along a path of lambda, of one data set or of several that share their columns (folds).

    minimise  F(beta, theta, phi) = -L/N + sum_j lambda f_j [ alpha |beta_j| + (1 - alpha)/2 beta_j^2 ]

The unknowns are beta, the free entries of Lambda and the log dispersion, all moved at once by proximal Newton steps.
Only a working set of columns is read by these: the active ones and those nearest to entering (the strong rule's among
them). After each solution the gradient in all columns, one product X'(dL/deta), checks the conditions that the rule
cannot promise, and screens for the next lambda.

References
----------
Friedman, Hastie & Tibshirani (2010), J. Stat. Softw. 33(1). Tibshirani et al. (2012), JRSS B 74, 245 (strong rules).
"""

import functools
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from threadpoolctl import ThreadpoolController

from jaxglmm.objectives.evaluate import evaluate, evaluate_glm
from jaxglmm.objectives.scores import glm_scores, linear_predictor, marginal_scores
from jaxglmm.optimise.marginal_fit import check_separation
from jaxglmm.optimise.proximal import Curvature, Penalised, drive, minimise_model, proximal_newton


# Sizes of the working set, so that few programs are compiled; beyond, multiples of the last.
_SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# With X no larger than this, all columns are read at once: one program instead of several.
_LITTLE_X = 5_000_000
# An effect's standard deviation below this share of its first estimate is tried at zero, and taken up again from here.
_NOTHING, _AGAIN = 1e-4, 0.3


@dataclass(frozen=True)
class Weights:
    """What the penalty is at lambda = 1, in the coordinates of scaled columns.

    Attributes
    ----------
    alpha : float
    factors : (p,)
        0: unpenalised; infinity: left out.
    unit : (p,)
        A scaled coefficient divided by this is the one that is penalised.
    """

    alpha: float
    factors: np.ndarray
    unit: np.ndarray

    @property
    def unpenalised(self) -> np.ndarray:
        return np.flatnonzero(self.factors == 0)

    @property
    def usable(self) -> np.ndarray:
        return np.flatnonzero(np.isfinite(self.factors))

    def l1(self, lam: float) -> np.ndarray:
        """(p,), infinite for columns left out."""
        return _times(lam * self.alpha, self.factors) / self.unit

    def l2(self, lam: float) -> np.ndarray:
        return _times(lam * (1 - self.alpha), np.where(np.isfinite(self.factors), self.factors, 0.0)) / self.unit**2

    def largest_lambda(self, gradient: np.ndarray) -> float:
        """The smallest lambda at which every penalised coefficient is 0, from the gradient (p,) there."""
        some = np.isfinite(self.factors) & (self.factors > 0)
        # glmnet's convention for ridge, whose path has no beginning.
        alpha = max(self.alpha, 1e-3)
        return float(np.max(np.abs(gradient[some]) * self.unit[some] / self.factors[some], initial=0.0) / alpha)


def _times(number, factors):
    out = np.where(np.isinf(factors), np.inf, 0.0)
    some = np.isfinite(factors)
    out[some] = number * factors[some]
    return out


@dataclass
class Model:
    """The likelihood of one data set: family, rows, nodes, and what of (theta, phi) is estimated.

    Attributes
    ----------
    family
    design : Design
        Its X is not read.
    nodes : Nodes or None
        None without random effects.
    determinant : bool
        False for the joint likelihood.
    free : bool (q + 1,)
        Which entries of (theta, log dispersion) are estimated.
    total : float
        N, the sum of the weights.
    prior : callable or None
        psi of given columns -> (value, gradient, Hessian), added to the log-likelihood.
    """

    family: object
    design: eqx.Module
    nodes: object
    determinant: bool
    free: np.ndarray
    total: float
    prior: object = None


@dataclass
class Point:
    """Where a data set's fit is: coefficients of scaled columns (p,), (theta, log dispersion), modes, what is known."""

    beta: np.ndarray
    rest: np.ndarray
    modes: np.ndarray | None
    loss: float = np.nan
    gradient: np.ndarray | None = None  # in all columns, then in the free entries of `rest`
    curvature: Curvature = field(default_factory=Curvature)
    outside: tuple | None = None  # of the last evaluation, where it read all columns: x, and the gradient in them
    passes: float = 0.0


@dataclass(frozen=True)
class Solution:
    """One lambda's solution, in the coordinates of scaled columns.

    Attributes
    ----------
    beta : (p,)
    rest : (q + 1,)
    loglik : float
        With a prior: its logarithm is not in it.
    df : float
        Effective number of parameters: tr (A + l2)^-1 A over the active ones, their number for the lasso.
    kkt : float
        Largest violation of the optimality conditions, over all columns.
    iterations : int
    converged : bool
    """

    beta: np.ndarray
    rest: np.ndarray
    loglik: float
    df: float
    kkt: float
    iterations: int
    converged: bool


class PathSolver:
    """Solves at one lambda after another, each from the last solution.

    Parameters
    ----------
    columns : WideColumns
        All columns; shared by the models.
    weights : Weights
    models : sequence of Model
        Data sets on the same slots: all rows, then folds.
    points : sequence of Point
        Where they begin.
    tol : float
        KKT residual.
    max_iterations : int
        Evaluations a lambda and model.
    """

    def __init__(self, columns, weights: Weights, models, points, *, tol=1e-9, max_iterations=200):
        self.columns, self.weights, self.models, self.points = columns, weights, list(models), list(points)
        self.tol, self.max_iterations = tol, max_iterations
        self.blas = ThreadpoolController()
        self.spread = [np.abs(point.rest) for point in points]
        self.working = np.zeros(0, int)
        self.X = None
        self.last = None
        for i in range(len(self.models)):
            self.restart(i)

    def restart(self, i) -> None:
        """Value and derivatives of a model where it stands."""
        model, point, l1 = self.models[i], self.points[i], self.weights.l1(1.0)
        self._cover(np.flatnonzero((point.beta != 0) | (self.weights.factors == 0)), point, l1)
        x = np.append(point.beta[self.working], point.rest[model.free])
        point.loss, gradient, point.curvature.matrix = self._at(model, point, self.working, x, True)
        self._keep_gradient(model, point, self.working, gradient, x)

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
        penalised, _, _ = self._local(i, lam)
        p, model = len(self.weights.factors), self.models[i]
        at = np.append(self.working, p + np.flatnonzero(model.free))
        out = np.zeros((p + len(model.free),) * 2)
        out[np.ix_(at, at)] = -model.total * (self.points[i].curvature.matrix + np.diag(penalised.l2))
        return out

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
        W, model, point = self.working, self.models[i], self.points[i]
        _, x, gradient = self._local(i, 0.0)
        step = np.linalg.lstsq(point.curvature.matrix, -gradient)[0]
        first = int(np.searchsorted(W, intercept)) if intercept in W else None
        check_separation(replace(model.design, X=self.X), SimpleNamespace(x=x, step=step), [names[j] for j in W], first)

    def _local(self, i, lam):
        """The penalty, the coordinates that move and the gradient in them."""
        W, point, free = self.working, self.points[i], self.models[i].free
        p = len(self.weights.factors)
        gradient = point.gradient[np.append(W, np.arange(p, len(point.gradient)))]
        penalised = self._penalised(i, W, self.weights.l1(lam), self.weights.l2(lam))
        return penalised, np.append(point.beta[W], point.rest[free]), gradient

    def solve(self, lam: float) -> list[Solution]:
        """Solutions of all models at lambda."""
        # On a busy machine threads wait for each other at each of many small products.
        with self.blas.limit(limits=1, user_api="blas"):
            return [self._solve(i, lam) for i in range(len(self.models))]

    # --- One model -----------------------------------------------------------------------------------------

    def _solve(self, i, lam) -> Solution:
        model, point, l1 = self.models[i], self.points[i], self.weights.l1(lam)
        if self._near_zero(i) and point.rest[0] != 0:
            point.rest[0] = 0.0
            self.restart(i)
        needed = (point.beta != 0) | (self.weights.factors == 0)
        some = np.isfinite(l1)
        previous = l1 if self.last is None else self.weights.l1(self.last)
        needed[some] |= np.abs(point.gradient[: len(l1)][some]) >= 2 * l1[some] - previous[some]
        iterations, revived = 0, False
        while True:
            self._cover(np.flatnonzero(needed & some), point, l1)
            W = self.working
            penalised, x0, gradient = self._local(i, lam)
            steps = proximal_newton(
                x0, penalised, point.curvature, tol=self.tol, max_iterations=self.max_iterations,
                known=(point.loss, gradient),
            )  # fmt: skip
            found = drive(steps, functools.partial(self._at, model, point, W))
            iterations += found.iterations
            point.beta[W], point.loss = found.x[: len(W)], found.loss
            point.rest[model.free] = found.x[len(W) :]
            self._keep_gradient(model, point, W, found.gradient, found.x)
            outside = self._violations(point, W, l1)
            violated = outside > max(self.tol, 0.5 * outside.max(initial=0.0))
            if not found.converged:
                break
            if not violated.any():
                if revived or not self._revive(i):
                    break
                revived = True
            needed |= violated
        if i == len(self.models) - 1:
            self.last = lam
        kkt = max(found.kkt, float(outside.max(initial=0.0)))
        return Solution(
            point.beta.copy(), point.rest.copy(), self.loglik(i),
            self._df(i, W, found.x, penalised), kkt, iterations, found.converged,
        )  # fmt: skip

    def _penalised(self, i, W, l1, l2) -> Penalised:
        extra = int(self.models[i].free.sum())
        spread = self.spread[i][self.models[i].free]
        pad = lambda v, fill: np.append(v[W], np.full(extra, fill))
        has_phi = self.models[i].free[-1]

        def longest(x):
            out = np.full(len(x), np.inf)
            if extra:
                out[len(W) :] = np.maximum(np.abs(x[len(W) :]), spread)
                if has_phi:
                    out[-1] = 2.0
            return np.maximum(out, 1e-3)

        return Penalised(pad(l1, 0.0), pad(l2, 0.0), pad(self.weights.unit, 1.0), len(W), longest)

    def _at(self, model, point, W, x, second, last=False):
        """Mean loss, gradient and Hessian in (coefficients of W, free rest).

        Where x is the `last` of its lambda, columns outside of W are read with the others, for their conditions.
        """
        rest = point.rest.copy()
        rest[model.free] = x[len(W) :]
        X, inside, beta = self.X, np.ones(len(W), bool), x[: len(W)]
        p = len(self.weights.factors)
        if last and not second and self.columns.dense is not None:
            X, inside, beta = self.columns.dense, np.zeros(p, bool), np.zeros(p)
            inside[W], beta[W] = True, x[: len(W)]
        value, gradient, hessian = self._evaluate(model, point, X, np.append(beta, rest), second)
        point.outside = None if len(beta) == len(W) else (x, -gradient[:p] / model.total)
        if model.prior is not None:
            extra = model.prior(x[: len(W)], rest, W)
            gradient = gradient[np.append(inside, np.ones(len(rest), bool))]
            value, gradient, hessian = value + extra[0], gradient + extra[1], hessian + extra[2] if second else None
            inside = np.ones(len(W), bool)
        kept = np.append(inside, model.free)
        loss = -value / model.total if np.isfinite(gradient).all() else np.inf
        return (
            loss,
            -gradient[kept] / model.total,
            None if hessian is None or not second else -hessian[np.ix_(kept, kept)] / model.total,
        )

    def _evaluate(self, model, point, X, psi, second):
        design = replace(model.design, X=X)
        point.passes += X.shape[1] / max(len(self.weights.factors), 1)
        if model.nodes is None:
            value, gradient, hessian, _ = evaluate_glm(model.family, design, jnp.asarray(psi), second=second)
        else:
            e = evaluate(
                model.family, design, model.nodes, psi, point.modes, determinant=model.determinant, second=second
            )
            value, gradient, hessian = e.value, e.gradient, e.hessian
            if np.isfinite(float(value)):
                point.modes = e.modes
        return float(value), np.asarray(gradient), np.asarray(hessian)

    # --- Columns -------------------------------------------------------------------------------------------

    def _cover(self, needed, point, l1) -> None:
        """Make the working set hold `needed`, filled up with the columns nearest to entering."""
        if self.X is not None and np.isin(needed, self.working).all():
            return
        usable = self.weights.usable
        wanted = np.union1d(needed, self.working) if len(needed) + len(self.working) <= len(usable) else usable
        wanted = wanted[np.isfinite(l1[wanted])]
        size = next((s for s in _SIZES if s >= len(wanted)), -(-len(wanted) // _SIZES[-1]) * _SIZES[-1])
        if size >= len(usable) or self.columns.n_slots * len(usable) <= _LITTLE_X:
            chosen = usable
        else:
            near = np.zeros(len(l1)) if point.gradient is None else np.abs(point.gradient[: len(l1)])
            near = near / np.maximum(l1, 1e-300)
            near[wanted] = np.inf
            near[~np.isfinite(l1)] = -1.0
            chosen = np.sort(np.argsort(-near, kind="stable")[:size])
        self.X = jnp.asarray(self.columns.gather(chosen))
        self.working = chosen
        for other in self.points:
            other.curvature = Curvature()

    def _keep_gradient(self, model, point, W, gradient, x) -> None:
        """The gradient at x in all columns, of which `gradient` has those of W and the free rest."""
        p = len(self.weights.factors)
        point.gradient = np.zeros(p + len(gradient) - len(W))
        if len(W) < len(self.weights.usable):
            point.gradient[:p] = self._full_gradient(model, point, W, x)
        point.gradient[W], point.gradient[p:] = gradient[: len(W)], gradient[len(W) :]

    def _violations(self, point, W, l1) -> np.ndarray:
        """Of the conditions of columns outside of W, (p,)."""
        outside = np.isfinite(l1)
        outside[W] = False
        excess = np.abs(point.gradient[: len(l1)]) - np.where(outside, l1, 0.0)
        return np.where(outside, np.maximum(excess, 0.0) * self.weights.unit, 0.0)

    def _full_gradient(self, model, point, W, x) -> np.ndarray:
        """Gradient (p,) of the mean loss at x in all columns, where only those of W have coefficients."""
        if self.columns.dense is not None:
            if point.outside is None or not np.array_equal(point.outside[0], x):
                self._at(model, point, W, x, False, True)
            assert point.outside is not None  # kept by the evaluation
            return point.outside[1]
        design, rest = model.design, jnp.asarray(point.rest)
        eta = linear_predictor(self.X, jnp.asarray(point.beta[W]), design.offset)
        rows = (design.y, design.weights)
        if model.nodes is None:
            scores = glm_scores(model.family, rows, eta, rest[-1])
        else:
            scores = marginal_scores(
                model.family, rows, design.terms[0], model.nodes, eta, rest[:-1], rest[-1], point.modes,
                determinant=model.determinant,
            )  # fmt: skip
        point.passes += 1
        return -self.columns.against(np.asarray(scores)) / model.total

    # --- Variances at zero, degrees of freedom -------------------------------------------------------------

    def _near_zero(self, i) -> bool:
        """Whether a single effect's variance is estimated and at zero, where the gradient in its sd vanishes."""
        model, point = self.models[i], self.points[i]
        estimated = model.nodes is not None and model.prior is None and len(model.free) == 2 and model.free[0]
        return bool(estimated and abs(point.rest[0]) <= _NOTHING * self.spread[i][0])

    def _revive(self, i) -> bool:
        """Start anew inside where the likelihood rises from a variance of zero."""
        if not self._near_zero(i):
            return False
        self.points[i].rest[0] = 0.0
        self.restart(i)
        curvature: Any = self.points[i].curvature.matrix
        if curvature[len(self.working), len(self.working)] >= 0:
            return False
        self.points[i].rest[0] = _AGAIN * self.spread[i][0]
        self.restart(i)
        return True

    def _df(self, i, W, x, penalised) -> float:
        active = (x != 0) | (penalised.l1 == 0)
        active[len(W) :] = True
        if not penalised.l2[active].any() or self.points[i].curvature.matrix is None:
            return float(active.sum())
        A, l2 = self.points[i].curvature.matrix[np.ix_(active, active)], np.diag(penalised.l2[active])
        return float(np.trace(np.linalg.solve(A + l2, A)))
