"""Satterthwaite's degrees of freedom for contrasts of the fixed effects of a Gaussian model.

The variance of l'beta, v = l'V(theta)l, is estimated; matching its first two moments to a scaled chi-squared gives
df = 2 v^2 / Var(v), Var(v) ~ g'A g with g the gradient of v in the variance parameters and A their asymptotic
covariance. Any parameters will do, as long as g and A belong to the same ones.

References
----------
Giesbrecht & Burns (1985), Biometrics 41, 477. Fai & Cornelius (1996), J. Stat. Comput. Simul. 54, 363.
Kuznetsova, Brockhoff & Christensen (2017), J. Stat. Softw. 82(13).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


# Eigenvalues of a contrast's covariance below this share of the largest count as zero.
_RANK = 1e-8


@dataclass(frozen=True)
class Satterthwaite:
    """What degrees of freedom need of a fit.

    Attributes
    ----------
    vcov : (p, p)
        Covariance V of beta given the variance parameters.
    jacobian : (m, p, p)
        dV / d(variance parameters).
    covariance : (m, m)
        Asymptotic covariance A of the variance parameters; zero for those on the boundary.
    """

    vcov: np.ndarray
    jacobian: np.ndarray
    covariance: np.ndarray

    def df(self, contrasts: np.ndarray) -> np.ndarray:
        """Degrees of freedom of the t statistic of each row l of `contrasts` (k, p), shape (k,).

        Infinite where v does not depend on the variance parameters.
        """
        contrasts = self._checked(contrasts)
        variance = np.einsum("ki,ij,kj->k", contrasts, self.vcov, contrasts)
        slope = np.einsum("ki,mij,kj->km", contrasts, self.jacobian, contrasts)
        spread = np.einsum("km,mn,kn->k", slope, self.covariance, slope)
        return np.divide(2 * variance**2, spread, out=np.full_like(variance, np.inf), where=spread > 0)

    def f_test(self, contrasts: np.ndarray, beta: np.ndarray) -> tuple[float, int, float]:
        """Wald's F for L beta = 0 with q = rank of L.

        The quadratic form is a sum of q squared t statistics of uncorrelated contrasts; the denominator's degrees
        of freedom match the expectation of that sum, E = sum nu / (nu - 2), to that of q F: 2 E / (E - q).

        Parameters
        ----------
        contrasts : (k, p)
        beta : (p,)

        Returns
        -------
        F : float
        q : int
        df : float
            Of the denominator.

        Raises
        ------
        ValueError
            When the contrasts are all zero or do not have p columns.
        """
        contrasts = self._checked(contrasts)
        values, vectors = np.linalg.eigh(contrasts @ self.vcov @ contrasts.T)
        kept = values > _RANK * values[-1]
        q = int(kept.sum())
        if q == 0:
            raise ValueError("the contrasts are zero: expected at least one row that involves a fixed effect")
        turned = vectors[:, kept].T @ contrasts
        F = float(np.sum((turned @ beta) ** 2 / values[kept]) / q)
        nu = self.df(turned)
        if q == 1:
            return F, q, float(nu[0])
        if np.ptp(nu) <= 1e-8 * nu.min():
            return F, q, float(nu.mean())
        # A contrast with nu <= 2 has no mean square: the limit of the formula is 2.
        if (nu <= 2).any():
            return F, q, 2.0
        expected = np.sum(np.divide(nu, nu - 2, out=np.ones_like(nu), where=np.isfinite(nu)))
        return F, q, float(2 * expected / (expected - q)) if expected > q else float("inf")

    def _checked(self, contrasts: np.ndarray) -> np.ndarray:
        contrasts = np.atleast_2d(np.asarray(contrasts, float))
        p = len(self.vcov)
        if contrasts.ndim != 2 or contrasts.shape[1] != p:
            raise ValueError(
                f"contrasts must have one column for each of the {p} fixed effects; found shape {contrasts.shape}"
            )
        return contrasts
