"""Derivatives of the Gaussian criteria, from the expansion of the moments: a few p x p products on the host.

Notation of `objectives.gaussian`. With Q(T) the matrix, c = Q_xx^-1 Q_xr the coefficients of r that solve the
penalised least squares, v = (-c, 1), and subscripts k, l for derivatives in the entries of T:

    rss_k  = v'Q_k v              rss_kl = v'Q_kl v - 2 (Q_k v)_x' Q_xx^-1 (Q_l v)_x
    ldx_k  = tr Q_xx^-1 Q_k,xx    ldx_kl = tr Q_xx^-1 Q_kl,xx - tr Q_xx^-1 Q_k,xx Q_xx^-1 Q_l,xx

for the smallest residual sum of squares and ldx = log det Q_xx.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from jaxglmm.design.crossproducts import CrossProducts
from jaxglmm.objectives.gaussian_expansion import Expansion


class GaussianProfile:
    """The likelihood near one relative factor T, with beta and sigma at their best for it.

    Parameters
    ----------
    expansion : Expansion
        At the entries `raw`.
    cross : CrossProducts
    raw : (q,)
        Free entries of T.
    reml : bool
    log_sigma : float, optional
        Where to hold log sigma; at its best when absent.

    Raises
    ------
    numpy.linalg.LinAlgError
        When Q is not positive definite: X is collinear, or the fit is perfect.
    """

    def __init__(
        self,
        expansion: Expansion,
        cross: CrossProducts,
        raw: np.ndarray,
        *,
        reml: bool,
        log_sigma: float | None = None,
    ):
        (log_det, Q), (log_det1, Q1), (log_det2, Q2) = expansion
        p = cross.p
        self.raw, self.reml, self.p = np.asarray(raw, float), reml, p
        self.information = Q[:p, :p]
        L = np.linalg.cholesky(Q)
        self.rss = L[p, p] ** 2
        half = np.linalg.solve(L[:p, :p], np.eye(p))
        self.inverse = half.T @ half
        shift = self.inverse @ Q[:p, p]
        self.beta = np.asarray(cross.origin) + shift
        self.v = np.append(-shift, 1.0)
        self.slopes = Q1
        self.load = np.einsum("ijk,j->ik", Q1, self.v)  # Q_k v, (p + 1, q)
        self.rss1 = self.v @ self.load
        self.bend = np.einsum("i,ijkl,j->kl", self.v, Q2, self.v)  # v'Q_kl v
        self.rss2 = self.bend - 2 * self.load[:p].T @ self.inverse @ self.load[:p]

        self.n = float(cross.n) - (p if reml else 0)
        self.log_det0, self.log_det1, self.log_det2 = float(log_det), log_det1, log_det2
        if reml:
            turned = self.inverse @ np.moveaxis(Q1[:p, :p], -1, 0)
            self.log_det0 += 2 * np.log(np.diag(L)[:p]).sum()
            self.log_det1 = log_det1 + np.einsum("kii->k", turned)
            self.log_det2 = log_det2 + np.einsum("ij,jikl->kl", self.inverse, Q2[:p, :p])
            self.log_det2 = self.log_det2 - np.einsum("kij,lji->kl", turned, turned)
        self.log_sigma = 0.5 * math.log(self.rss / self.n) if log_sigma is None else float(log_sigma)
        self.log_weights = float(cross.log_weights)

    @property
    def sigma(self) -> float:
        """Residual standard deviation."""
        return math.exp(self.log_sigma)

    @cached_property
    def value(self) -> float:
        """Log-likelihood, restricted under REML, with all constants."""
        quadratic = self.rss / self.sigma**2
        normaliser = self.n * (2 * self.log_sigma + math.log(2 * math.pi))
        return 0.5 * (self.log_weights - self.log_det0 - quadratic - normaliser)

    @cached_property
    def gradient(self) -> np.ndarray:
        """Of the criterion maximised over beta and sigma, in the entries of T: (q,)."""
        return -0.5 * (self.n * self.rss1 / self.rss + self.log_det1)

    @cached_property
    def hessian(self) -> np.ndarray:
        """Of the criterion maximised over beta and sigma, in the entries of T: (q, q)."""
        ratio = self.rss1 / self.rss
        return -0.5 * (self.n * (self.rss2 / self.rss - np.outer(ratio, ratio)) + self.log_det2)

    def sigma_derivatives(self) -> tuple[float, float]:
        """First and second derivative in log sigma, when the absolute factor is held: T = Lambda / sigma."""
        s, t = self.sigma**-2, self.raw
        mixed, both = self._variance_hessian(self.rss2, s)
        first = -self.n + self.rss * s + 0.5 * (self.log_det1 + s * self.rss1) @ t
        bent = t @ both @ t - 2 * mixed @ t - 2 * self.rss * s
        return first, bent - 0.5 * (self.log_det1 + s * self.rss1) @ t

    def criterion_hessian(self) -> np.ndarray:
        """Of the criterion maximised over beta alone, in (T, log sigma): (q + 1, q + 1)."""
        s = self.sigma**-2
        mixed, both = self._variance_hessian(self.rss2, s)
        return np.block([[both, mixed[:, None]], [mixed[None, :], np.full((1, 1), -2 * self.rss * s)]])

    def joint_hessian(self) -> np.ndarray:
        """Of the log-likelihood of (beta, T, log sigma), at the best beta: (p + q + 1, p + q + 1)."""
        s, p = self.sigma**-2, self.p
        mixed, both = self._variance_hessian(self.bend, s)
        cross = s * self.load[:p]
        zero = np.zeros((p, 1))
        corner = np.full((1, 1), -2 * self.rss * s)
        return np.block(
            [
                [-s * self.information, cross, zero],
                [cross.T, both, mixed[:, None]],
                [zero.T, mixed[None, :], corner],
            ]
        )

    def _variance_hessian(self, second, s):
        return s * self.rss1, -0.5 * (self.log_det2 + s * second)

    @property
    def vcov(self) -> np.ndarray:
        """sigma^2 Q_xx^-1, the covariance of beta given the variance parameters."""
        return self.sigma**2 * self.inverse

    def vcov_jacobian(self) -> np.ndarray:
        """Derivatives of `vcov` in (T, log sigma): (q + 1, p, p)."""
        p = self.p
        slopes = np.moveaxis(self.slopes[:p, :p], -1, 0)
        along = -(self.sigma**2) * self.inverse @ slopes @ self.inverse
        return np.concatenate([along, 2 * self.vcov[None]])
