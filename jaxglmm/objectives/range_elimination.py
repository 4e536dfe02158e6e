"""As `objectives.elimination`, in an orthonormal basis of the span of all effects (`design.factor_range`).

With H = I + K K', K = N T, of the order r of the span, and c = Q'WR,

    log det V* W = log det H        U = Z'V*^-1 R = N'H^-1 c        B = N'H^-1 N

in which nothing cancels, however large T is. The conditional covariance over sigma^2, T (I + K'K)^-1 T', is taken from
the singular values of K: of what no row tells, I + K'K is the identity.
"""

from __future__ import annotations

import numpy as np

from jaxglmm.design.factor_products import FactorProducts
from jaxglmm.objectives.elimination import multiply


class RangeElimination:
    """The factorisation at relative factors T; attributes and methods as those of `Elimination`."""

    def __init__(self, factors, products: FactorProducts):
        from scipy import linalg

        assert products.within is not None
        self.range, self.bounds = products.within, products.bounds
        self.factors = [np.asarray(factors[t], float) for t in products.order]
        root = self.range.root.T
        self.K = np.concatenate([multiply(T.T, part) for T, part in self._parts(root)]).T
        # H = R'R without forming H, whose identity would be rounded away beside large T of only some factors.
        R = linalg.qr(np.concatenate([self.K.T, np.eye(len(self.K))]), mode="r", check_finite=False)[0][: len(self.K)]
        self.log_det = 2 * float(np.log(np.abs(np.diag(R))).sum())
        self.lower = lambda v: linalg.solve_triangular(R, v, trans="T", check_finite=False)
        self.half = self.lower(root.T)

    def _parts(self, v: np.ndarray):
        """T of each factor, in the order of elimination, with its rows of v (q, ...)."""
        return [(T, v[a:b]) for T, a, b in zip(self.factors, self.bounds[:-1], self.bounds[1:], strict=True)]

    def moments(self, products: FactorProducts) -> tuple[np.ndarray, np.ndarray]:
        """U of V and V'V*^-1 V: (q, p + 1), (p + 1, p + 1)."""
        c = self.lower(self.range.basis.T @ products.ztv)
        return self.half.T @ c, self.range.rest + c.T @ c

    def solve(self, F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        whole = self.range.basis.T @ F
        c = self.lower(whole)
        return self.half.T @ c, whole.T @ whole - c.T @ c

    def traces(self) -> list[np.ndarray]:
        return [
            np.einsum("gai,gbi->ab", *[part.reshape(-1, len(T), part.shape[1])] * 2)
            for T, part in self._parts(self.half.T)
        ]

    def covariances(self) -> list[np.ndarray]:
        _, s, V = np.linalg.svd(self.K)
        left = V.T / np.sqrt(1 + np.square(np.append(s, np.zeros(len(V) - len(s)))))
        parts = [multiply(T, part).reshape(-1, len(T), len(V)) for T, part in self._parts(left)]
        return [np.einsum("gai,gbi->gab", part, part) for part in parts]
