"""Simulated data with random effects and normal errors, and their likelihood by dense linear algebra."""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxglmm.design.crossproducts import CrossProducts, cross_products


@dataclass
class Data:
    y: np.ndarray
    X: np.ndarray
    codes: np.ndarray
    z: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    n_groups: int
    blocks: tuple[tuple[int, ...], ...]

    def cross(self, **changes) -> CrossProducts:
        given = {**self.__dict__, **changes}
        return cross_products(given.pop("y"), given.pop("X"), **given)

    def covariance(self, factor, sigma) -> np.ndarray:
        """Var(y), the whole n x n matrix."""
        wide = np.zeros((len(self.y), self.n_groups, len(self.z)))
        wide[np.arange(len(self.y)), self.codes] = self.z.T
        effects = np.kron(np.eye(self.n_groups), factor @ factor.T)
        flat = wide.reshape(len(self.y), -1)
        return sigma**2 * np.diag(1 / self.weights) + flat @ effects @ flat.T

    def dense_loglik(self, beta, factor, sigma, reml=False) -> float:
        """log N(y; X beta + offset, V), or the restricted log-likelihood (Harville 1974, without log |X'X|)."""
        V, X = self.covariance(factor, sigma), self.X
        inverse, log_det, n = np.linalg.inv(V), np.linalg.slogdet(V)[1], len(self.y)
        if reml:
            information = X.T @ inverse @ X
            beta = np.linalg.solve(information, X.T @ inverse @ (self.y - self.offset))
            log_det += np.linalg.slogdet(information)[1]
            n -= X.shape[1]
        r = self.y - self.offset - X @ beta
        return -0.5 * (n * np.log(2 * np.pi) + log_det + r @ inverse @ r)


def simulated(blocks=((0, 1),), n=60, n_groups=9, p=3, seed=0, sds=0.8) -> Data:
    rng = np.random.default_rng(seed)
    size = sum(len(block) for block in blocks)
    z = np.vstack([np.ones(n), rng.normal(size=(size - 1, n))])
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))])
    codes = np.append(rng.integers(0, n_groups, n - n_groups), np.arange(n_groups))
    weights, offset = rng.uniform(0.5, 2.0, n), rng.normal(size=n)
    b = sds * rng.normal(size=(n_groups, size))
    y = X @ rng.normal(size=p) + offset + (z.T * b[codes]).sum(1) + rng.normal(size=n) / np.sqrt(weights)
    return Data(y, X, codes, z, weights, offset, n_groups, blocks)
