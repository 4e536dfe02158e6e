"""The relative factor of a Gaussian model: Newton's method in a good order of the effects, then the boundary.

A Cholesky factor T of C = T T' depends on the order of the effects. Where the variance of the first effect nearly
vanishes beside a later one's, the first column is a rotation of later columns: the likelihood hardly changes along it,
and a diagonal entry that may not become negative stands in the way of a covariance that wants to change sign. With
the effects in the order of a pivoted Cholesky factorisation, the one with the largest variance left first (Higham
2002, Accuracy and Stability of Numerical Algorithms, section 10.3), neither happens: zeros arise in last columns only,
in whose entries the likelihood is even and has an ordinary stationary point.
"""

from dataclasses import dataclass, replace

import numpy as np

from jaxglmm.optimise.boundary import HIGHER, MULTIPLES, LinePoint, profiled, promising, turned_round, with_values
from jaxglmm.optimise.newton import NewtonResult


# Diagonal entries below this, with z scaled to unit mean square and sigma 1, are tried at zero.
SMALL = 1e-4
# A zero stands when the likelihood loses no more than this by it, relative to its size.
SLACK = 1e-12
# Standard errors from zero beyond which a zero is not tried.
_FAR = 12.0
# Newton steps after which the order of the effects is looked at, a size of diagonal entries, relative to sigma, below
# which it is looked at anyway, and the share of a later effect's standard deviation that makes it change.
_STEPS, _LITTLE, _SHARE = 20, 0.02, 0.3
# Diagonal entries below this are tried at zero while Newton's method has not come to an end.
_CREEPING = 0.1
# Distances from a zero at which to begin anew where the likelihood rises from it.
_BESIDE = (0.5, 0.15, 0.05, 0.015, 0.005, 0.0015)


@dataclass(frozen=True)
class FactorFit:
    """Where the search ended.

    Attributes
    ----------
    x : (q,)
        Free entries of T, for effects of unit mean square.
    value : float
        Of the criterion.
    held : bool (q,)
        Those on the boundary: a zero on the diagonal, and the column below it.
    result : NewtonResult or None
        The maximiser's; None where all entries are on the boundary.
    iterations : int
    """

    x: np.ndarray
    value: float
    held: np.ndarray
    result: NewtonResult | None
    iterations: int


def maximise_factor(criterion, start: np.ndarray, *, tol: float, max_iterations: int, callback=None) -> FactorFit:
    """Maximise over the relative factor: Newton from inside; then zeros are decided by curvature and by likelihood.

    Along every zero there is a look for a higher maximum further on (`optimise.boundary`), and a search from there.

    Parameters
    ----------
    criterion : callable
        x (q,) -> value, gradient, Hessian; see `gaussian_fit`.
    start : (q,)
    """
    options = {"tol": tol, "callback": callback}
    best = _maximum(criterion, start, max_iterations, options)
    looked = np.zeros(len(best.x), bool)
    while (new := best.held & criterion.diagonal & ~looked).any():
        looked |= new
        starts, spent = _starts_along(criterion, best, np.flatnonzero(new))
        iterations = best.iterations + spent
        for x in starts:
            other = _maximum(criterion, x, max_iterations, options)
            iterations += other.iterations
            if _converged(other) and other.value > best.value + HIGHER:
                best = other
        best = replace(best, iterations=iterations)
    return best


def _maximum(criterion, start, max_iterations, options) -> FactorFit:
    search = _Search(criterion, start, max_iterations, options)
    search.climb()
    search.try_blocks()
    x, held = search.x, search.held
    if search.criterion is not criterion:
        x, held = _in_own_order(search.criterion, x, held, search.order)
    return FactorFit(x, search.value, held, search.result, search.iterations)


def _converged(found: FactorFit) -> bool:
    return found.result is None or found.result.converged


def _starts_along(criterion, best: FactorFit, zeros) -> tuple[list[np.ndarray], int]:
    """Points x (q,) to begin other searches from, and evaluations; `zeros` are entries on the diagonal at zero."""
    places = {pair: k for k, pair in enumerate(zip(criterion.rows.tolist(), criterion.columns.tolist(), strict=True))}
    others, starts = np.flatnonzero(~best.held), []
    for j in zeros:
        looks = []
        for size in MULTIPLES:
            value, gradient, hessian = criterion(with_values(best.x, {j: size}))
            if np.isfinite(value):
                value, slope = profiled(value, gradient, hessian, j, others)
                looks.append(LinePoint(size, value, size * slope))
        starts += [with_values(best.x, {j: size}) for size in promising(looks, best.value)[:2]]
        starts += [with_values(best.x, turned) for turned in turned_round(best.x, places, int(criterion.columns[j]))]
    return starts, len(zeros) * len(MULTIPLES)


class _Search:
    """The best point so far: `x` (q,), its `value`, `held` (q,) entries at zero, and the maximiser's `result`."""

    def __init__(self, criterion, start, max_iterations, options):
        self.criterion, self.order, self.x = criterion, np.arange(criterion.covariance.n_effects), start
        self.value, self.held, self.result = -np.inf, np.zeros(start.shape, bool), None
        self.most, self.options, self.iterations = max_iterations, options, 0

    def climb(self) -> None:
        """Newton steps in turn with looks at the order of the effects and at what has become small."""
        while True:
            left = self.most - self.iterations
            steps = left if len(self.order) == 1 else min(_STEPS, left)
            x, result = self._maximise(self.x, self.held, steps)
            self.x, self.value, self.result = x, result.value, result
            size = np.where(self.held[self.criterion.diagonal], np.inf, np.abs(x[self.criterion.diagonal]))
            if self.iterations >= self.most:
                break
            if (not result.converged or (size < _LITTLE).any()) and self._reorder():
                continue
            sets = [np.flatnonzero(size < limit) for limit in ((SMALL,) if result.converged else (SMALL, _CREEPING))]
            if any(self._try_zero(small) for small in sets if len(small)):
                if self.result is None:  # all are at zero
                    break
                continue
            if result.converged or result.reason != "limit":
                break

    def _maximise(self, x, held, steps):
        x, result = self.criterion.maximise(x, ~held, max_iterations=steps, **self.options)
        self.iterations += result.iterations
        return x, result

    def _reorder(self) -> bool:
        """Bring the effects into the order of their variances, if they are far from it."""
        factor, covariance = self.criterion.matrix(self.x), self.criterion.covariance
        better = _pivoted(factor, covariance.blocks)
        if (better == np.arange(len(better))).all():
            return False
        self.order, self.criterion = self.order[better], self.criterion.reordered(better)
        self.x = covariance.raw(covariance.canonical(factor[better]))
        self.held = np.zeros(len(self.x), bool)
        return True

    def _try_zero(self, small: np.ndarray) -> bool:
        """Put columns at zero, or where the likelihood rises from zero begin anew beside it; whether x has moved."""
        zero = self.held | np.isin(self.criterion.columns, self.criterion.columns[self.criterion.diagonal][small])
        trial, value, end, hessian = self._at_zero(zero, min(self.most - self.iterations, _STEPS))
        if not value >= self.value - SLACK * (1 + abs(self.value)):
            return False
        slopes, directions = np.linalg.eigh(hessian[np.ix_(zero, zero)])
        if slopes[-1] > 0:
            beside = np.zeros((len(_BESIDE), len(trial)))
            beside[:, zero] = np.outer(_BESIDE, directions[:, -1])
            found = [self.criterion(trial + step)[0] for step in beside]
            self.iterations += len(found)
            if max(found) > value + SLACK * (1 + abs(value)):
                factor = self.criterion.matrix(trial + beside[int(np.argmax(found))])
                covariance = self.criterion.covariance
                self.x, self.held = covariance.raw(covariance.canonical(factor)), np.zeros(len(zero), bool)
                return True
        self.x, self.held, self.value, self.result = trial, zero, value, end
        return True

    def _at_zero(self, zero, steps):
        """The best point with some entries at zero, its value, the maximiser's result and the Hessian."""
        trial, end = np.where(zero, 0.0, self.x), None
        if not zero.all():
            trial, end = self._maximise(trial, zero, steps)
        value, _, hessian = self.criterion(trial)
        self.iterations += 1
        return trial, value, end, hessian

    def try_blocks(self) -> None:
        """Variances of whole blocks of effects, and of all, at zero."""
        for columns in _zero_candidates(self.criterion, self.x, self.held, self.result):
            zero = self.held | np.isin(self.criterion.columns, columns)
            if (zero == self.held).all():
                continue
            _, _, hessian = self.criterion(np.where(zero, 0.0, self.x))
            self.iterations += 1
            if np.linalg.eigvalsh(hessian[np.ix_(zero, zero)])[-1] > 0:
                continue  # the likelihood rises from this zero
            trial, value, end, _ = self._at_zero(zero, self.most)
            if value >= self.value - SLACK * (1 + abs(self.value)):
                self.x, self.held, self.value, self.result = trial, zero, value, end


def inverse_information(information: np.ndarray) -> np.ndarray:
    """Inverse of a symmetric matrix of mixed units."""
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(information)), np.finfo(float).tiny))
    return np.linalg.pinv(information * np.outer(scale, scale), hermitian=True) * np.outer(scale, scale)


def _pivoted(factor: np.ndarray, blocks) -> np.ndarray:
    """Order (S,) of the effects, within blocks, in which no later one has much more variance left than its turn's."""
    order = np.arange(len(factor))
    for block in blocks:
        rest, left = factor @ factor.T, list(block)
        for place in block:
            variance = np.diag(rest)[left]
            largest = left[int(np.argmax(variance))]
            # What is next to nothing has no order but that of rounding.
            stays = variance[0] >= _SHARE**2 * variance.max() or variance.max() < SMALL**2
            chosen = left[0] if stays else largest
            order[place] = chosen
            left.remove(chosen)
            if rest[chosen, chosen] > 0:
                rest = rest - np.outer(rest[chosen], rest[chosen]) / rest[chosen, chosen]
    return order


def _in_own_order(criterion, x, held, order):
    """x and held for the effects as they came: as many columns of a block are zero, the last ones."""
    covariance = criterion.covariance
    factor = np.zeros((len(order),) * 2)
    factor[order] = criterion.matrix(x)
    factor = covariance.canonical(factor)
    gone = np.zeros(len(order), bool)
    for block in covariance.blocks:
        zeros = np.count_nonzero(held & criterion.diagonal & np.isin(criterion.columns, block))
        gone[list(block)[len(block) - zeros :]] = True
    factor[:, gone] = 0.0  # from rounding
    return covariance.raw(factor), gone[criterion.columns]


def _zero_candidates(criterion, x, held, result) -> list[tuple[int, ...]]:
    """Sets of columns of the factor that may be zero: each block, all of them.

    Blocks that lie many standard errors away from zero are left out.
    """
    if result is None or result.reason == "not finite":
        return []
    covariance = np.zeros((len(x),) * 2)
    covariance[np.ix_(~held, ~held)] = inverse_information(-result.hessian)
    blocks = []
    for block in criterion.covariance.blocks:
        inside = np.isin(criterion.columns, block)
        wald = x[inside] @ np.linalg.lstsq(covariance[np.ix_(inside, inside)], x[inside], rcond=None)[0]
        if not wald > _FAR**2:
            blocks.append(block)
    every = tuple(range(criterion.covariance.n_effects)) if len(blocks) == len(criterion.covariance.blocks) else ()
    return list(dict.fromkeys([c for c in (*blocks, every) if c]))
