"""Fits of several imputations of one data set, combined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxglmm.arguments import a_fit, refuse, share, takes
from jaxglmm.errors import DataError
from jaxglmm.fitted.tables import native_table, text_column


@dataclass(frozen=True)
class Pooled:
    """Fixed effects of m imputations by Rubin's rules.

    Attributes
    ----------
    names : tuple of str
    estimate : (p,)
        Mean over the imputations.
    vcov : (p, p)
        Mean covariance plus (1 + 1/m) times the covariance between the imputations.
    df : (p,)
        Degrees of freedom for intervals (Barnard & Rubin 1999).
    missing : (p,)
        Share of the variance that the missing values account for, (1 + 1/m) B / T.
    m : int
    """

    names: tuple[str, ...]
    estimate: np.ndarray
    vcov: np.ndarray
    df: np.ndarray
    missing: np.ndarray
    m: int
    native: str = "pandas"

    @property
    def se(self) -> np.ndarray:
        """Standard errors (p,)."""
        return np.sqrt(np.diag(self.vcov))

    @takes(level=share())
    def table(self, level: float = 0.95) -> Any:
        """`parameter`, `estimate`, `se`, `df`, `lower`, `upper` and `missing`, in a table of the caller's kind."""
        from scipy.stats import t

        wide = t.ppf(0.5 + level / 2, self.df) * self.se
        return native_table(self.native, {
            "parameter": text_column(self.names), "estimate": self.estimate, "se": self.se, "df": self.df,
            "lower": self.estimate - wide, "upper": self.estimate + wide, "missing": self.missing,
        })  # fmt: skip


def pool(fits) -> Pooled:
    """Combine the fits of m imputations.

    Parameters
    ----------
    fits : sequence of Fit, or Fits
        Of the same model; those of `fit_many` and `fit_each` do as well.

    Returns
    -------
    Pooled

    Raises
    ------
    DataError
        For fewer than two fits, fits of different models, or fits that failed.

    References
    ----------
    Rubin (1987), Multiple Imputation for Nonresponse in Surveys, chapter 3. Barnard & Rubin (1999), Biometrika 86, 948.
    """
    if not isinstance(fits, list | tuple) and type(fits).__name__ != "Fits":
        refuse("fits", "a list of fits, or what fit_many or fit_each returns", fits)
    fits = [fits[i] for i in range(len(fits))]
    for fit in fits:
        a_fit("each of fits", fit)
    if len(fits) < 2:
        raise DataError(f"pooling takes the fits of at least two imputations; found {len(fits)}")
    names, m = fits[0].names, len(fits)
    for i, fit in enumerate(fits):
        if fit.names != names:
            raise DataError(f"fit {i} has the fixed effects {list(fit.names)}, and fit 0 {list(names)}: pool one model")
    beta = np.array([list(fit.fixef.values()) for fit in fits])
    within = np.mean([np.asarray(fit.vcov) for fit in fits], axis=0)
    between = np.atleast_2d(np.cov(beta, rowvar=False))
    total = within + (1 + 1 / m) * between
    share = (1 + 1 / m) * np.diag(between) / np.diag(total)
    complete = min(fit.n for fit in fits) - len(names)
    with np.errstate(divide="ignore"):
        old = (m - 1) / np.square(share)
        observed = (complete + 1) / (complete + 3) * complete * (1 - share)
        df = 1 / (1 / old + 1 / observed)
    return Pooled(names, beta.mean(0), total, df, share, m, fits[0].state.native)
