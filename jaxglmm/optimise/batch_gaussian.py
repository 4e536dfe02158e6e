"""Exact fits of very many Gaussian models: Newton on the relative factors, beta and sigma profiled out.

As `optimise.gaussian_fit` does it for one. Lanes near a boundary with several effects a group, and lanes that do not
get to an end, are gone on with one by one by its search.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxglmm.errors import UNFINISHED
from jaxglmm.objectives.gaussian_lanes import LaneProducts, LaneProfile, profile
from jaxglmm.ops import gaussian_lanes, lanes
from jaxglmm.optimise.batch_newton import CONVERGED, REASONS, BatchResult, maximise_many
from jaxglmm.optimise.boundary import MULTIPLES, any_promising
from jaxglmm.optimise.gaussian_fit import FactorCriterion
from jaxglmm.optimise.gaussian_search import SLACK, SMALL, maximise_factor
from jaxglmm.optimise.newton import NewtonResult


@dataclass
class LaneGaussianFit:
    """Estimates in the columns given, B lanes first.

    Attributes
    ----------
    beta : (B, p)
    factor : (B, S, S)
        Absolute Lambda.
    sigma, loglik, decrement : (B,)
    covariance : (B, m, m)
        Of (beta, free entries of Lambda, log sigma); zero on the boundary.
    free : bool (B, m)
    evaluations : int (B,)
    singular : bool (B,)
    reasons : list of str or None
        Why a fit has failed.
    """

    beta: np.ndarray
    factor: np.ndarray
    sigma: np.ndarray
    loglik: np.ndarray
    decrement: np.ndarray
    covariance: np.ndarray
    free: np.ndarray
    evaluations: np.ndarray
    singular: np.ndarray
    reasons: list


def fit_gaussian_lanes(a: LaneProducts, *, reml: bool, tol: float, max_iterations: int) -> LaneGaussianFit:
    """Maximise the likelihood, or the restricted one, in every lane."""
    B, S = len(a.rr), a.ztr.shape[0]
    rows, diagonal = a.covariance.entries[0], a.covariance.diagonal
    q = len(rows)
    evaluations = np.zeros(B, int)
    x, held = np.zeros((B, q)), np.zeros((B, q), bool)
    decrement = np.zeros(B)
    reasons: list[str | None] = [None] * B
    scale = np.ones((B, q))
    if S:
        square = np.einsum("aag...->a...", a.ztz) / a.n
        scale = np.ascontiguousarray((1 / np.sqrt(np.where(square > 0, square, 1.0)))[rows].T)

        def evaluate(which, x):
            at = profile((x * scale[which]).T, a.part(which), reml=reml)
            evaluations[which] += 1
            s = scale[which]
            return at.value, at.gradient.T * s, np.moveaxis(at.hessian, -1, 0) * s[:, :, None] * s[:, None, :]

        begin = np.tile(diagonal.astype(float), (B, 1))
        rules = {"even": diagonal, "tol": tol}
        if gaussian_lanes.covers(a):
            ahead = gaussian_lanes.climb(
                a, begin, scale=scale, reml=reml, iterations=max_iterations, nothing=0.0 if S > 1 else SMALL, **rules
            )
            evaluations += ahead.pop("evaluations")
            found = BatchResult(step=ahead.pop("move"), converged=ahead["reason"] == CONVERGED, **ahead)
        else:
            found = maximise_many(
                evaluate, begin, free=np.ones(q, bool), max_iterations=max_iterations,
                stop=None if S > 1 else lambda _, x: np.abs(x[:, 0]) < SMALL, **rules,
            )  # fmt: skip
        x, decrement = found.x, np.where(np.isfinite(found.decrement), found.decrement, 0.0)
        # One more step, whose gain is below the tolerance, doubles the correct digits: the report evaluates there.
        good = found.converged & (found.decrement <= tol)
        x[good] -= np.linalg.solve(found.hessian[good], found.gradient[good][:, :, None])[:, :, 0]
        zero, undecided = _zeros(evaluate, a, x, found.value)
        elsewhere = _higher_elsewhere(evaluate, x, diagonal, np.flatnonzero(zero))
        zero[elsewhere], undecided[elsewhere] = False, True
        stopped = ~found.converged & (np.abs(x[:, diagonal]) < SMALL).any(1)
        open_ = undecided | (~found.converged & ~(zero & stopped)) | ((x[:, diagonal] < SMALL).any(1) & ~zero & (S > 1))
        x = np.abs(x) if S == 1 else x
        x[zero], held[zero], decrement[zero] = 0.0, True, 0.0
        plain = replace(a, covariance=_looked_up(a.covariance)) if open_.any() else a
        for i in np.flatnonzero(open_):
            one = maximise_factor(
                _LaneCriterion(plain.part(np.array([i])), scale[i], reml), np.nan_to_num(x[i]), tol=tol,
                max_iterations=max_iterations,
            )  # fmt: skip
            x[i], held[i] = one.x, one.held
            evaluations[i] += one.iterations
            decrement[i] = 0.0 if one.result is None else max(one.result.decrement, 0.0)
            if one.result is not None and not one.result.converged:
                said = f"{UNFINISHED} ({one.result.reason}) with a Newton decrement of {decrement[i]:.2g}"
                reasons[i] = said
    at = profile((x * scale).T, a, reml=reml)
    return _report(at, x * scale, held, a, reml, decrement, evaluations, reasons)


def _looked_up(covariance) -> Any:
    """What a covariance offers, looked up once: an equinox module makes new objects each time."""
    names = ("blocks", "n_effects", "entries", "diagonal", "raw", "canonical")
    return SimpleNamespace(**{name: getattr(covariance, name) for name in names})


class _LaneCriterion(FactorCriterion):
    """The criterion of one lane."""

    several = False

    def __init__(self, products: LaneProducts, scale, reml: bool):
        self.products, self.scale, self.reml = products, scale, reml
        self.covariance, self.diagonal = products.covariance, products.covariance.diagonal
        self.rows, self.columns = products.covariance.entries

    def __call__(self, x: np.ndarray):
        at = profile((x * self.scale)[:, None], self.products, reml=self.reml)
        return at.value[0], at.gradient[:, 0] * self.scale, at.hessian[:, :, 0] * np.outer(self.scale, self.scale)

    def climb(self, x: np.ndarray, free: np.ndarray, *, tol, max_iterations, callback=None) -> NewtonResult:
        if not gaussian_lanes.covers(self.products):
            return super().climb(x, free, tol=tol, max_iterations=max_iterations, callback=callback)
        # Entries that are held are zero.
        found = gaussian_lanes.climb(
            self.products, x[free][None], scale=self.scale[free][None], reml=self.reml, even=self.diagonal[free],
            tol=tol, iterations=max_iterations, free=free,
        )  # fmt: skip
        one = {name: value[0] for name, value in found.items()}
        reason = int(one["reason"])
        return NewtonResult(
            one["x"], float(one["value"]), one["gradient"], one["hessian"], float(one["decrement"]),
            int(one["evaluations"]) - 1, reason == CONVERGED, REASONS[reason] if reason < len(REASONS) else "limit",
            one["move"],
        )  # fmt: skip

    def reordered(self, order: np.ndarray) -> "_LaneCriterion":
        of_effect = self.scale[self.diagonal][np.argsort(self.rows[self.diagonal])]
        return _LaneCriterion(self.products.reordered(order), of_effect[order][self.rows], self.reml)


def _zeros(evaluate, a, x, best):
    """Lanes (B,) in which all variances are zero, and those that it takes more to decide."""
    every = np.arange(len(x))
    value, _, hessian = evaluate(every, np.zeros_like(x))
    hessian = np.where(np.isfinite(hessian), hessian, 1.0)
    rises = np.linalg.eigvalsh(hessian)[:, -1] > 0
    zero = ~rises & (value >= best - SLACK * (1 + np.abs(best)))
    undecided = np.zeros(len(x), bool)
    blocks = a.covariance.blocks
    for block in blocks if len(blocks) > 1 else ():
        gone = np.isin(a.covariance.entries[1], block)
        _, _, hessian = evaluate(every, np.where(gone, 0.0, x))
        part = hessian[:, gone][:, :, gone]
        undecided |= np.linalg.eigvalsh(np.where(np.isfinite(part), part, 1.0))[:, -1] <= 0
    return zero, undecided & ~zero


def _higher_elsewhere(evaluate, x, diagonal, zero) -> np.ndarray:
    """Those of the lanes `zero` that may have a higher maximum away from it (`optimise.boundary`)."""
    if not len(zero):
        return zero
    nothing = np.zeros((len(zero), x.shape[1]))
    best, some = evaluate(zero, nothing)[0], np.zeros(len(zero), bool)
    for j in np.flatnonzero(diagonal):
        looks = []
        for size in MULTIPLES:
            at = nothing.copy()
            at[:, j] = size
            value, gradient, _ = evaluate(zero, at)
            looks.append((value, size * gradient[:, j]))
        values, slopes = np.swapaxes(looks, 0, 1)
        some |= any_promising(MULTIPLES, values, slopes, best, np.zeros(len(zero)))
    return zero[some]


def _report(at: LaneProfile, raw, held, a, reml, decrement, evaluations, reasons) -> LaneGaussianFit:
    B, q = raw.shape
    p, S = len(at.beta), a.ztr.shape[0]
    rows, columns = a.covariance.entries
    m = p + q + 1
    sigma = np.exp(at.log_sigma)
    # d(beta, T, log sigma) / d(beta, Lambda, log sigma), T = Lambda / sigma.
    J = np.zeros((B, m, m))
    J[:, np.arange(p), np.arange(p)] = J[:, -1, -1] = 1.0
    inside = np.arange(p, p + q)
    J[:, inside, inside] = 1 / sigma[:, None]
    J[:, p : p + q, -1] = -raw
    information = np.swapaxes(J, 1, 2) @ np.moveaxis(at.information(q, reml=reml), -1, 0) @ J
    free = np.concatenate([np.ones((B, p), bool), ~held, np.ones((B, 1), bool)], 1)
    both = free[:, :, None] & free[:, None, :]
    information = np.where(both, information, np.eye(m))
    covariance = np.where(both, np.moveaxis(lanes.inverse(lanes.lanes_last(information)), -1, 0), 0.0)
    factor = np.zeros((B, S, S))
    factor[:, rows, columns] = sigma[:, None] * raw
    for i in np.flatnonzero(~np.isfinite(at.value) | ~np.isfinite(covariance).all((1, 2))):
        reasons[i] = reasons[i] or (
            "the information of the parameters is not positive definite where the optimiser stopped: look for columns "
            "that determine the response, or each other"
        )
    return LaneGaussianFit(
        np.ascontiguousarray(at.beta.T), factor, sigma, at.value, decrement, covariance, free, evaluations,
        held.any(1), reasons,
    )  # fmt: skip
