"""Likelihood-ratio tests of nested models."""

from itertools import pairwise
from typing import Any

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.tables import native_table, text_column
from jaxglmm.inference.wald import chi2_p


def anova(*fits) -> Any:
    """Compare nested models by likelihood ratio.

    Parameters
    ----------
    *fits : Fit
        Two or more, fitted to the same rows by the same method; they are put in order of their parameters.

    Returns
    -------
    table of the first fit's kind
        One row a model: `formula`, `df`, `loglik`, `aic`, `bic`, and against the model above it `chisq` = 2 (difference
        of loglik), `chisq_df`, `p` and `reference`, the distribution that p comes from. A single variance at zero is
        on the boundary of its range, so that chisq is then 0 half the time: the reference is an equal mixture of 0 and
        chi2(1). Where several covariance parameters are added it is the plain chi-squared, whose p is too large
        (conservative), and `reference` says so.

    Raises
    ------
    DataError
        When a fit has a penalty or a prior, or the fits are of different rows, families or kinds of likelihood, or REML
        fits of different fixed parts.

    References
    ----------
    Self & Liang (1987), JASA 82, 605. Stram & Lee (1994), Biometrics 50, 1171.
    """
    if len(fits) < 2:
        raise DataError("anova compares two or more fits: anova(smaller, larger)")
    for fit in fits:
        fit._unpenalised("a likelihood-ratio test")
    for other in fits[1:]:
        _check(fits[0], other)
    fits = sorted(fits, key=lambda fit: fit.df)
    chisq, extra, p, reference = [np.nan], [np.nan], [np.nan], [""]
    for smaller, larger in pairwise(fits):
        statistic, difference = 2 * (larger.loglik - smaller.loglik), larger.df - smaller.df
        value, text = _reference(smaller, larger, statistic, difference)
        chisq.append(statistic)
        extra.append(difference)
        p.append(value)
        reference.append(text)
    return native_table(
        fits[0].state.native,
        {
            "formula": text_column([fit.formula for fit in fits]),
            "df": np.array([fit.df for fit in fits]),
            "loglik": np.array([fit.loglik for fit in fits]),
            "aic": np.array([fit.aic for fit in fits]),
            "bic": np.array([fit.bic for fit in fits]),
            "chisq": np.array(chisq, float),
            "chisq_df": np.array(extra, float),
            "p": np.array(p, float),
            "reference": text_column(reference),
        },
    )


def _reference(smaller, larger, statistic, extra) -> tuple[float, str]:
    if extra == 0:
        return np.nan, "none: the models have equally many parameters"
    missing = [name for name in smaller.names if name not in larger.names]
    note = f"; are the models nested? {missing[0]!r} is only in the smaller one" if missing else ""
    variances = _covariance_parameters(larger) - _covariance_parameters(smaller)
    if variances == 0:
        return chi2_p(statistic, extra), f"chi2({extra}){note}"
    if variances == 1 and extra == 1:
        p = 0.5 * chi2_p(statistic, 1) if statistic > 0 else 1.0
        return p, f"half 0, half chi2(1): one variance at zero{note}"
    return chi2_p(statistic, extra), f"chi2({extra}), conservative: variances at zero are on the boundary{note}"


def _covariance_parameters(fit) -> int:
    return len(fit.state.structure.diagonal)


def _check(first, other):
    a, b = first.state, other.state
    if a.n != b.n:
        raise DataError(
            f"the fits use different rows ({a.n:,} and {b.n:,}): rows with missing values in a column that only one "
            "formula uses are dropped from that fit alone; drop them from the data first"
        )
    if a.fingerprint != b.fingerprint:
        raise DataError(
            "the fits have different responses, weights or rows: their likelihoods cannot be compared; fit both to the "
            "same data"
        )
    if a.family.name != b.family.name:
        raise DataError(
            f"the fits have different families ({a.family.name} and {b.family.name}), which are not nested: compare "
            "them by aic"
        )
    kinds = {_kind(first), _kind(other)}
    if "joint" in kinds:
        raise DataError("a fit with method='joint' has no marginal likelihood to compare: fit with method='auto'")
    if "reml" in kinds and len(kinds) == 2:
        raise DataError("one fit is by REML and the other is not: fit both with reml=False (or both with reml=True)")
    if kinds == {"laplace", "agq"}:
        raise DataError(
            "one fit is by Laplace's approximation and the other by quadrature: fit both with the same method="
        )
    if kinds == {"reml"} and set(first.names) != set(other.names):
        raise DataError(
            "REML likelihoods of models with different fixed effects cannot be compared "
            f"({_listed(first)} against {_listed(other)}): fit both with reml=False"
        )


def _kind(fit) -> str:
    # Without random effects the likelihood is exact, and compares with any approximation.
    return "glm" if not fit.groups and fit.method != "reml" else fit.method


def _listed(fit) -> str:
    return ", ".join(fit.names) or "no fixed effect"
