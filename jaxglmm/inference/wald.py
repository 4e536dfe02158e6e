"""Wald statistics of the fixed effects: z, or t with Satterthwaite's degrees of freedom for Gaussian models."""

import math
from dataclasses import dataclass

import numpy as np

from jaxglmm.inference.satterthwaite import Satterthwaite


@dataclass(frozen=True)
class Coefficients:
    """One entry a fixed effect (p,); `df` is None where the statistic is z."""

    names: tuple[str, ...]
    estimate: np.ndarray
    se: np.ndarray
    statistic: np.ndarray
    df: np.ndarray | None
    p: np.ndarray


def normal_p(z: np.ndarray) -> np.ndarray:
    """P(|Z| > |z|), without scipy.stats, which is slow to import."""
    return np.array([math.erfc(abs(v) / math.sqrt(2)) for v in np.ravel(z)]).reshape(np.shape(z))


def student_p(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """P(|T| > |t|); normal where df is infinite."""
    from scipy.special import stdtr

    finite = np.isfinite(df)
    return np.where(finite, 2 * stdtr(np.where(finite, df, 1.0), -np.abs(t)), normal_p(t))


def chi2_p(x: float, df: float) -> float:
    """P(chi2_df > x); 1 at x <= 0."""
    from scipy.special import chdtrc

    return float(chdtrc(df, x)) if x > 0 else 1.0


def f_p(x: float, df: float, denominator: float) -> float:
    """P(F > x); chi-squared where the denominator's degrees of freedom are infinite."""
    from scipy.special import fdtrc

    return float(fdtrc(df, denominator, x)) if math.isfinite(denominator) else chi2_p(df * x, df)


def satterthwaite(state) -> Satterthwaite | None:
    """What degrees of freedom need, of the columns in use; None for models other than Gaussian with identity link."""
    estimate = state.estimate
    if estimate.vcov_jacobian is None:
        return None
    p = len(estimate.beta)
    covariance = estimate.covariance
    given = covariance[:p, :p]
    if estimate.method != "reml":
        # The joint information's own block in beta is the information given the variance parameters.
        free = np.flatnonzero(np.diag(covariance) > 0)
        part = covariance[np.ix_(free, free)]
        scale = np.sqrt(np.diag(part))
        information = np.linalg.inv(part / np.outer(scale, scale))[:p, :p] / np.outer(scale[:p], scale[:p])
        given = np.linalg.inv(information)
    return Satterthwaite(given, estimate.vcov_jacobian, covariance[p:, p:])


def coefficients(state) -> Coefficients:
    """Estimates, standard errors, statistics and two-sided p-values of the fixed effects."""
    estimate = state.estimate
    p = len(estimate.beta)
    se = np.sqrt(np.diag(estimate.vcov))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = estimate.beta / se
    free = satterthwaite(state)
    df = None if free is None or p == 0 else free.df(estimate.scaling.to_columns())
    values = normal_p(statistic) if df is None else student_p(statistic, df)
    return Coefficients(tuple(state.spec.fixed.names), estimate.beta, se, statistic, df, values)
