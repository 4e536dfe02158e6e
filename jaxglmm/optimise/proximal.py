"""Proximal Newton: minimise a smooth loss plus sum_j (l1_j |x_j| + l2_j x_j^2 / 2).

Each step minimises the penalised quadratic model of the loss exactly, by an active-set method on the m x m Hessian,
and searches along the way there on the true objective. A Hessian is kept while steps with it shrink the residual of
the optimality (KKT) conditions fast, so that neighbouring problems of a path share one; each step teaches it.

References
----------
Lee, Sun & Saunders (2014), SIAM J. Optim. 24, 1420 (proximal Newton). Osborne, Presnell & Turlach (2000), IMA J.
Numer. Anal. 20, 389; Lee, Battle, Raina & Ng (2007), NIPS 19 (active sets for the lasso).
"""

import functools
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np


# A Hessian whose step leaves more than this share of the residual is computed anew at the next point.
_SLOW = 0.1
# Shifts tried, relative to the diagonal, until the model is convex.
_LEAST_SHIFT = 1e-11
_SHIFTS = (_LEAST_SHIFT, 1e-8, 1e-5, 1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3)
_SMALLEST_STEP = 1e-7
# Where no step can be seen to improve any more, a residual this small is the answer.
_ROUNDING = 1e-8
# So is one this small that so many steps have not halved: the gradient in a dispersion is a sum of terms of the size of
# the responses, of which it keeps that much.
_SETTLED, _IDLE = 1e-6, 8
# A step that is expected to gain less is judged by the slopes at its ends: losses' difference may be rounding, whose
# size is that of the terms that a loss is summed of, not its own.
_FLAT = 1e-6


@dataclass(frozen=True)
class Penalised:
    """Weights of the penalty and the scale of the coordinates.

    Attributes
    ----------
    l1, l2 : (m,)
        At least 0, finite; 0 for coordinates without a penalty.
    scale : (m,)
        Size of the gradient in each coordinate, relative to which the residual is reported.
    width : int
        The first coordinates, that are coefficients.
    longest : callable
        x (m,) -> (m,), the longest step in each coordinate that is tried from x.
    """

    l1: np.ndarray
    l2: np.ndarray
    scale: np.ndarray
    width: int
    longest: Callable

    def value(self, x: np.ndarray) -> float:
        return float(self.l1 @ np.abs(x) + 0.5 * self.l2 @ np.square(x))

    def violations(self, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Distance (m,) of -gradient from the subdifferential of the penalty, relative to `scale`."""
        slope = gradient + self.l2 * x
        at_zero = np.maximum(np.abs(slope) - self.l1, 0.0)
        return np.where(x != 0, np.abs(slope + self.l1 * np.sign(x)), at_zero) / self.scale


@dataclass
class Curvature:
    """The Hessian that steps are made with: `matrix` (m, m) or None, and how fast they converge with it."""

    matrix: np.ndarray | None = None
    rate: float = 1.0

    def learn(self, step: np.ndarray, change: np.ndarray) -> None:
        """Make the matrix agree with the gradient's change (m,) along a step (m,), by the BFGS formula."""
        assert self.matrix is not None  # a step has been made with it
        along, product = step @ change, self.matrix @ step
        size = step @ product
        if along > 1e-3 * size > 0:
            self.matrix = (
                self.matrix + np.outer(change, change) / along - np.outer(product, product) / size
            )  # not in place: it may be another's


@dataclass(frozen=True)
class ProximalResult:
    """Where the minimiser stopped: x (m,), loss, gradient (m,) of the loss, kkt residual, iterations, converged."""

    x: np.ndarray
    loss: float
    gradient: np.ndarray
    kkt: float
    iterations: int
    converged: bool


Evaluations = Generator[tuple[np.ndarray, bool, bool], tuple[float, np.ndarray, np.ndarray | None], ProximalResult]


def proximal_newton(
    x0, penalised: Penalised, curvature: Curvature, *, tol: float, max_iterations: int = 100, known=None
) -> Evaluations:
    """Minimise, asking for evaluations: a generator, so that many problems can be evaluated together.

    Yields (x, second, last) and is sent (loss, gradient, Hessian where `second`); `last` where x looks like the answer.

    Parameters
    ----------
    x0 : (m,)
    penalised : Penalised
    curvature : Curvature
        Updated; may come from a neighbouring problem.
    tol : float
        KKT residual at which to stop.
    max_iterations : int
        Evaluations after the first.
    known : (loss, gradient), optional
        At x0, when they are known already.
    """
    x = np.array(x0, float)
    if known is None or curvature.matrix is None:
        loss, gradient, curvature.matrix = yield x, True, False
    else:
        loss, gradient = known
    kkt = float(np.max(penalised.violations(x, gradient), initial=0.0))
    fresh, iterations, best, idle = known is None, 0, kkt, 0
    while kkt > tol and iterations < max_iterations and np.isfinite(loss):
        if idle >= _IDLE and kkt <= min(_SETTLED, 2 * best):
            break
        target = minimise_model(curvature.matrix, gradient, x, penalised)
        step = target - x
        longest = np.max(np.abs(step) / penalised.longest(x), initial=0.0)
        share = 1.0 if longest <= 1 else 1 / longest
        before, accepted = loss + penalised.value(x), False
        slack = 2e-14 * (1 + abs(before))
        while share > _SMALLEST_STEP and iterations < max_iterations:
            trial = target if share == 1 else x + share * step
            added = penalised.value(trial) - penalised.value(x)
            gain = gradient @ (trial - x) + added
            second = curvature.rate > _SLOW
            new = yield trial, second, curvature.rate * kkt <= tol
            iterations += 1
            change = new[0] - loss if abs(gain) > _FLAT else 0.5 * (gradient + new[1]) @ (trial - x)
            if np.isfinite(new[0]) and change + added <= 1e-4 * min(gain, 0.0) + slack:
                accepted = True
                break
            share *= 0.3
        if not accepted:
            if fresh or iterations >= max_iterations:
                break
            loss, gradient, curvature.matrix = yield x, True, False
            fresh, iterations = True, iterations + 1
            continue
        if second:
            curvature.matrix = new[2]
        else:
            curvature.learn(trial - x, new[1] - gradient)
        x, loss, gradient = trial, new[0], new[1]
        previous, kkt = kkt, float(np.max(penalised.violations(x, gradient), initial=0.0))
        curvature.rate = kkt / previous if share == 1 else 1.0
        fresh = second
        best, idle = (kkt, 0) if kkt < 0.5 * best else (best, idle + 1)
    limit = tol if iterations >= max_iterations else max(tol, _ROUNDING if idle < _IDLE else _SETTLED)
    return ProximalResult(x, loss, gradient, kkt, iterations, kkt <= limit)


def lockstep(steps: dict[Any, Evaluations], evaluate: Callable) -> dict[Any, ProximalResult]:
    """Run some minimisers, evaluating together what they ask for: {key: x} -> {key: what it is sent}.

    Parameters
    ----------
    steps : dict of generators of `proximal_newton`
    evaluate : callable
        ({key: x}, second, last) -> {key: (loss, gradient, Hessian)}.
    """
    asked, results = {}, {}

    def advance(key, answer):
        try:
            asked[key] = steps[key].send(answer)
        except StopIteration as end:
            results[key] = end.value

    for key in steps:
        advance(key, None)
    while asked:
        now, asked = asked, {}
        for second, last in sorted({question[1:] for question in now.values()}):
            together = {key: question[0] for key, question in now.items() if question[1:] == (second, last)}
            for key, answer in evaluate(together, second, last).items():
                advance(key, answer)
    return results


def minimise_model(hessian, gradient, x, penalised: Penalised) -> np.ndarray:
    """Minimiser of the loss's quadratic model at x plus the penalty, the Hessian made definite where it is not.

    First without the coordinates that would stay at zero: the loss is convex in all coefficients but not together
    with a dispersion, and directions in which columns say nothing show it. Then with covariance and dispersion
    parameters taken apart from the coefficients, their curvature made positive (away from a saddle, as from a variance
    at zero that should not be); at last shifted by multiples of the diagonal.
    """
    diagonal = np.abs(np.diag(hessian))
    diagonal = np.maximum(diagonal, 1e-12 * max(diagonal.max(initial=0.0), 1e-300))
    scale = 1 / np.sqrt(diagonal + penalised.l2)
    A = (hessian + np.diag(penalised.l2)) * np.outer(scale, scale)
    slope = gradient + penalised.l2 * x
    every, near = np.ones(len(x), bool), (x != 0) | (np.abs(slope) >= penalised.l1)
    for matrix, kept, shift in _convex_forms(A, penalised.width, every, near):
        shifted = matrix[np.ix_(kept, kept)] + shift * np.eye(int(kept.sum()))
        try:
            definite = np.min(np.diag(np.linalg.cholesky(shifted)), initial=1.0) ** 2 > 0.1 * _LEAST_SHIFT
        except np.linalg.LinAlgError:
            continue
        if definite:
            start, out = x[kept] / scale[kept], x.copy()
            b = shifted @ start - (scale * slope)[kept]
            out[kept] = scale[kept] * minimise_quadratic(shifted, b, (scale * penalised.l1)[kept], start)
            return out
    return x - 0.01 * gradient / diagonal


def _convex_forms(A, width, every, near):
    yield from ((A, every, 0.0), (A, every, _LEAST_SHIFT), (A, near, _LEAST_SHIFT))
    apart = A.copy()
    apart[:width, width:] = apart[width:, :width] = 0.0
    values, vectors = np.linalg.eigh(apart[width:, width:])
    apart[width:, width:] = vectors * np.maximum(np.abs(values), 1e-3) @ vectors.T
    yield from ((apart, every, shift) for shift in _SHIFTS)


def minimise_quadratic(A, b, l1, x) -> np.ndarray:
    """Minimise x'Ax/2 - b'x + sum_j l1_j |x_j|, A positive definite, by an active-set method from x.

    With the signs of the active coordinates held, the minimiser is the solution of a linear system. Coordinates that
    would change sign leave: all at once where that is better than ending the way there at the first of them. At the
    solution the coordinates that violate their condition most enter. The objective falls at every move, so no active
    set returns.

    Parameters
    ----------
    A : (m, m)
    b, l1, x : (m,)
    """
    x = np.array(x, float)
    bound = l1 > 0
    sign = np.where(bound, np.sign(x), 0.0)
    active = ~bound | (x != 0)
    rounding = 1e-13 * (np.max(np.abs(b), initial=0.0) + np.max(l1, initial=0.0))
    for _ in range(100 + 10 * len(x)):
        at = np.flatnonzero(active)
        target = np.linalg.solve(A[np.ix_(at, at)], b[at] - l1[at] * sign[at])
        crosses = bound[at] & (sign[at] * target <= 0)
        if crosses.any():
            here = x[at]
            with np.errstate(invalid="ignore", divide="ignore"):
                reach = np.where(crosses & (here != 0), here / (here - target), np.where(crosses, 0.0, np.inf))
            share = reach.min()
            first = np.where(crosses & (reach <= share), 0.0, here + share * (target - here))
            every = np.where(crosses, 0.0, target)
            value = functools.partial(_quadratic, A[np.ix_(at, at)], b[at], l1[at])
            x[at] = every if value(every) < value(first) else first
            gone = at[crosses & (x[at] == 0)]
            sign[gone], active[gone] = 0.0, False
            continue
        x[at] = target
        slope = A[:, at] @ target - b
        excess = np.where(active, 0.0, np.abs(slope) - l1)
        worst = np.max(excess, initial=0.0)
        if worst <= rounding:
            break
        enter = excess >= 0.5 * worst
        active |= enter
        sign[enter] = -np.sign(slope[enter])
    return x


def _quadratic(A, b, l1, x):
    return 0.5 * x @ A @ x - b @ x + l1 @ np.abs(x)
