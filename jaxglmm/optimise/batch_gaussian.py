"""Exact fits of very many Gaussian models: Newton on the relative factors, beta and sigma profiled out.

As `optimise.gaussian_fit` does it for one. Lanes near a boundary with several effects a group, and lanes that do not
get to an end, are left to it.
"""

from dataclasses import dataclass

import numpy as np

from jaxglmm.objectives.gaussian_lanes import LaneProducts, LaneProfile, profile
from jaxglmm.ops import lanes
from jaxglmm.optimise.batch_newton import maximise_many
from jaxglmm.optimise.gaussian_search import SLACK, SMALL


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
    singular, open : bool (B,)
        `open`: not decided here.
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
    open: np.ndarray


def fit_gaussian_lanes(a: LaneProducts, *, reml: bool, tol: float, max_iterations: int) -> LaneGaussianFit:
    """Maximise the likelihood, or the restricted one, in every lane."""
    B, S = len(a.rr), a.ztr.shape[0]
    rows, diagonal = a.covariance.entries[0], a.covariance.diagonal
    q = len(rows)
    evaluations = np.zeros(B, int)
    x, held = np.zeros((B, q)), np.zeros((B, q), bool)
    decrement, open_ = np.zeros(B), np.zeros(B, bool)
    scale = np.ones((B, q))
    if S:
        square = np.einsum("aag...->a...", a.ztz) / a.n
        scale = np.ascontiguousarray((1 / np.sqrt(np.where(square > 0, square, 1.0)))[rows].T)

        def evaluate(which, x):
            at = profile((x * scale[which]).T, a.part(which), reml=reml)
            evaluations[which] += 1
            s = scale[which]
            return at.value, at.gradient.T * s, np.moveaxis(at.hessian, -1, 0) * s[:, :, None] * s[:, None, :]

        found = maximise_many(
            evaluate, np.tile(diagonal.astype(float), (B, 1)), free=np.ones(q, bool), even=diagonal, tol=tol,
            max_iterations=max_iterations, stop=None if S > 1 else lambda _, x: np.abs(x[:, 0]) < SMALL,
        )  # fmt: skip
        x, decrement = found.x, np.where(np.isfinite(found.decrement), found.decrement, 0.0)
        # One more step, whose gain is below the tolerance, doubles the correct digits: the report evaluates there.
        good = found.converged & (found.decrement <= tol)
        x[good] -= np.linalg.solve(found.hessian[good], found.gradient[good][:, :, None])[:, :, 0]
        zero, undecided = _zeros(evaluate, a, x, found.value)
        stopped = ~found.converged & (np.abs(x[:, diagonal]) < SMALL).any(1)
        open_ = undecided | (~found.converged & ~(zero & stopped)) | ((x[:, diagonal] < SMALL).any(1) & ~zero & (S > 1))
        x = np.abs(x) if S == 1 else x
        x[zero], held[zero], decrement[zero] = 0.0, True, 0.0
    at = profile((x * scale).T, a, reml=reml)
    return _report(at, x * scale, held, a, reml, decrement, evaluations, open_)


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


def _report(at: LaneProfile, raw, held, a, reml, decrement, evaluations, open_) -> LaneGaussianFit:
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
    open_ = open_ | ~np.isfinite(at.value) | ~np.isfinite(covariance).all((1, 2))
    return LaneGaussianFit(
        np.ascontiguousarray(at.beta.T), factor, sigma, at.value, decrement, covariance, free, evaluations,
        held.any(1), open_,
    )  # fmt: skip
