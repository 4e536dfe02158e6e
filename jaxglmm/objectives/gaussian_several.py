"""The moments of a Gaussian model with several grouping factors, and their derivatives in the relative factors.

In the notation of `objectives.elimination`, with U = Z'V*^-1 V and dC the derivative of C = T T' in an entry of T,

    d log det = tr B dC        dQ = -U'dC U

exactly. Second derivatives are central differences of these, good to about nine digits, which standard errors and
intervals need. During a fit the average of observed and expected information stands in for them, for which a product
with V*^-1 is enough (Gilmour, Thompson & Cullis 1995, Biometrics 51, 1440).
"""

from __future__ import annotations

import numpy as np

from jaxglmm.design.factor_products import FactorProducts
from jaxglmm.objectives.elimination import Elimination
from jaxglmm.objectives.gaussian import Moments
from jaxglmm.objectives.gaussian_expansion import Expansion
from jaxglmm.objectives.gaussian_profile import GaussianProfile
from jaxglmm.objectives.range_elimination import RangeElimination


# Relative step of the differences, and the least size, for effects of unit mean square, that it is taken of.
_STEP, _LEAST = 3e-5, 1e-2


class Slopes:
    """Moments at a point with their first derivatives, and what average information needs.

    `expansion` is an `Expansion` whose second derivatives are left at zero.

    Parameters
    ----------
    raw : (q,)
        Free entries of T, those of all factors one after the other.
    products : FactorProducts
    """

    def __init__(self, raw: np.ndarray, products: FactorProducts):
        self.products, self.raw = products, np.asarray(raw, float)
        self.factors = split(raw, products)
        self.elimination = (Elimination if products.within is None else RangeElimination)(self.factors, products)
        U, left = self.elimination.moments(products)
        self.U = U
        value = Moments(np.asarray(self.elimination.log_det), left)
        log_det, gram = [], []
        self.traces = self.elimination.traces()
        for t, T in enumerate(self.factors):
            place = products.order.index(t)
            part = self.levels(U, t)
            for dC in factor_slopes(T, products.structures[t]):
                log_det.append(np.sum(self.traces[place] * dC))
                turned = np.einsum("gai,ab->gbi", part, dC)
                gram.append(-np.tensordot(turned, part, axes=([0, 1], [0, 1])))
        q = len(log_det)
        first = Moments(np.array(log_det), np.stack(gram, axis=-1))
        self.expansion = Expansion(value, first, Moments(np.zeros((q, q)), np.zeros((*value.gram.shape, q, q))))

    def levels(self, U: np.ndarray, t: int) -> np.ndarray:
        """Rows of factor t, (q, c) -> (G, S, c)."""
        place = self.products.order.index(t)
        begin, end = self.products.bounds[place : place + 2]
        return U[begin:end].reshape(self.products.levels[t], len(self.factors[t]), U.shape[1])


def average_hessian(slopes: Slopes, at: GaussianProfile) -> np.ndarray:
    """Hessian of the profiled criterion with the average of observed and expected information, (q, q).

    With V_k = Z dC_k Z', P the projected inverse of V* and d = n / rss (n - p for n under REML) it is

        -d/2 (y'P V_k P V_l P y - rss_k rss_l / rss) + <S, ddC_kl>,

    S being the score in C. At T = 0, where dC = 0, it is exact.
    """
    products, p = slopes.products, slopes.products.p
    U, u = slopes.U, slopes.U @ at.v
    X = np.zeros((len(u), len(slopes.raw)))
    score = np.zeros((len(slopes.raw),) * 2)
    k = 0
    for t, T in enumerate(slopes.factors):
        place = products.order.index(t)
        own, fixed = slopes.levels(u[:, None], t)[:, :, 0], slopes.levels(U[:, :p], t)
        S = (at.n / at.rss) * own.T @ own - slopes.traces[place]
        if at.reml:
            S = S + np.tensordot(fixed @ at.inverse, fixed, axes=([0, 2], [0, 2]))
        rows, columns = products.structures[t].entries
        score[k : k + len(rows), k : k + len(rows)] = S[np.ix_(rows, rows)] * (columns[:, None] == columns)
        for dC in factor_slopes(T, products.structures[t]):
            X[products.bounds[place] : products.bounds[place + 1], k] = (own @ dC).ravel()
            k += 1
    response = slopes.elimination.solve(products.ztz @ X)[0]
    load = U[:, :p].T @ X
    information = X.T @ response - load.T @ at.inverse @ load - np.outer(at.rss1, at.rss1) / at.rss
    return score - 0.5 * (at.n / at.rss) * information


def conditional_effects(slopes: Slopes, beta, sigma) -> list[tuple[np.ndarray, np.ndarray]]:
    """Conditional modes (G, S) and covariances (G, S, S) of each factor's effects, in the formula's order.

    Parameters
    ----------
    slopes : Slopes
        At the relative factors.
    beta : (p,)
    sigma : float
        Residual standard deviation.
    """
    products = slopes.products
    u = slopes.U @ np.append(products.origin - beta, 1.0)
    covariances = slopes.elimination.covariances()
    out = []
    for t, T in enumerate(slopes.factors):
        mode = slopes.levels(u[:, None], t)[:, :, 0] @ (T @ T.T)
        out.append((mode, sigma**2 * covariances[products.order.index(t)]))
    return out


def expand_factors(at: Slopes) -> Expansion:
    """Expansion of the moments to second order."""
    raw, products = at.raw, at.products
    value, first, _ = at.expansion
    square = products.mean_squares()
    least = _LEAST / np.sqrt(np.where(square > 0, square, 1.0))[products.covariance.entries[0]]
    log_det, gram = [], []
    for k in range(len(raw)):
        step = _STEP * max(abs(raw[k]), least[k])
        low, high = (_moved(at, k, change) for change in (-step, step))
        log_det.append((high.log_det - low.log_det) / (2 * step))
        gram.append((high.gram - low.gram) / (2 * step))
    log_det, gram = np.stack(log_det), np.stack(gram, axis=-1)
    second = Moments(0.5 * (log_det + log_det.T), 0.5 * (gram + gram.swapaxes(-1, -2)))
    return Expansion(value, first, second)


def _moved(at: Slopes, k: int, change: float) -> Moments:
    """First derivatives with entry k changed."""
    raw = at.raw.copy()
    raw[k] += change
    return Slopes(raw, at.products).expansion.first


def moment_start(products: FactorProducts) -> np.ndarray:
    """Free entries of T to begin at: diagonal, from the sizes of Z'W r, r the residuals of least squares.

    With the fixed effects' part left out, E |Z_a'W r|^2 = sum_b v_b |Z_a'WZ_b|^2 + sigma^2 |Z_a'W^(1/2)|^2 for the
    variances v of the effects, and E r'Wr = sum_b v_b |W^(1/2)Z_b|^2 + n sigma^2: as many equations as unknowns (Rao
    1971's MINQUE with zero prior weights). They are kept within a factor 20 of the residual's, per effect column of
    unit mean square.
    """
    m = products.n_effects
    starts = np.cumsum([0, *(s.n_effects for s in products.structures)])
    kind = np.concatenate(
        [np.tile(np.arange(starts[t], starts[t + 1]), products.levels[t]) for t in products.order]
    )  # which effect a column of Z belongs to
    coo = products.ztz.tocoo()
    left = np.zeros((m + 1, m + 1))
    left[:m, :m] = np.bincount(kind[coo.row] * m + kind[coo.col], np.square(coo.data), minlength=m * m).reshape(m, m)
    squares = products.mean_squares()
    left[:m, m] = left[m, :m] = squares * products.n
    left[m, m] = products.n
    right = np.append(np.bincount(kind, np.square(products.ztv[:, -1]), minlength=m), products.vtv[-1, -1])
    scale = np.append(np.where(squares > 0, squares, 1.0), 1.0)
    found = np.linalg.lstsq(left / np.outer(scale, scale), right / scale, rcond=None)[0]
    share = np.clip(found[:m] / found[m], 0.05**2, 20.0**2) if found[m] > 0 else np.ones(m)
    return products.covariance.raw(np.diag(np.sqrt(share / scale[:m])))


def split(raw: np.ndarray, products: FactorProducts) -> list[np.ndarray]:
    """T (S, S) of each factor from the free entries of all."""
    out, begin = [], 0
    for structure in products.structures:
        rows, columns = structure.entries
        T = np.zeros((structure.n_effects,) * 2)
        T[rows, columns] = raw[begin : begin + len(rows)]
        begin += len(rows)
        out.append(T)
    return out


def factor_slopes(T: np.ndarray, structure) -> list[np.ndarray]:
    """Derivatives of C = T T' in the free entries of T."""
    out = []
    for r, c in zip(*structure.entries, strict=True):
        dC = np.zeros_like(T)
        dC[r] += T[:, c]
        dC[:, r] += T[:, c]
        out.append(dC)
    return out
