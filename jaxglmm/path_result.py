"""What a path of penalised fits found: coefficients, covariances and criteria at every lambda, and the refit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxglmm.arguments import optional, path as paths, takes, whole
from jaxglmm.formula.table import open_table
from jaxglmm.model.penalties import ElasticNet
from jaxglmm.optimise.cross_validation import CrossValidation


@dataclass(frozen=True)
class Path:
    """Penalised fits along a falling sequence of lambda, made by `jaxglmm.fit_path`. Everything is numpy.

    Attributes
    ----------
    formula : str
    names : tuple of str
        Of the p columns.
    lambdas : (L,)
    alpha : float
    coef : (L, p)
        On the scale of the columns as they are.
    theta : dict
        {group: sd (L,)}, or covariance matrices (L, S, S) where a group has several effects; absolute, on the link
        scale, in the form that `theta=` takes. Empty without random effects.
    dispersion : (L,) or None
    loglik : (L,)
        Without the penalty.
    df : (L,)
        Effective number of parameters, those of theta and dispersion included: for the lasso the number of coefficients
        that are not zero (Zou, Hastie & Tibshirani 2007), otherwise the trace of (A + D)^-1 A over these, A the
        information and D the ridge's part of it.
    aic, bic, ebic : (L,)
        -2 loglik + 2 df; + log(n) df; and the extended BIC, + 2 gamma log binom(candidates, chosen) (Chen & Chen 2008).
    kkt : (L,)
        Largest violation of the optimality conditions of all columns, relative to the gradient's own scale: in scaled
        columns, the mean log-likelihood's derivative divided by the root of the information in a row.
    converged : bool (L,)
    n : int
        Rows.
    n_agq : int or None
        Quadrature nodes per effect.
    cv : CrossValidation or None
    passes : float
        Passes over all columns and rows.
    seconds : float
    warnings : tuple of str
        Of lambdas at which more quadrature nodes than the path's say something else.
    """

    formula: str
    names: tuple[str, ...]
    lambdas: np.ndarray
    alpha: float
    coef: np.ndarray
    theta: dict
    dispersion: np.ndarray | None
    loglik: np.ndarray
    df: np.ndarray
    aic: np.ndarray
    bic: np.ndarray
    ebic: np.ndarray
    kkt: np.ndarray
    converged: np.ndarray
    n: int
    n_agq: int | None
    cv: CrossValidation | None
    passes: float
    seconds: float
    warnings: tuple[str, ...] = ()
    refit_with: Any = None

    @property
    def best(self) -> int:
        """Index of lambda.min where there was cross-validation, otherwise of the smallest BIC."""
        return int(np.argmin(self.bic)) if self.cv is None else self.cv.minimum

    @takes(at=optional(whole(-(10**9))))
    def selected(self, at: int | None = None) -> list[str]:
        """Names of the coefficients that are not zero at lambdas[at]; at `best` by default."""
        at = self.best if at is None else at
        return [name for name, value in zip(self.names, self.coef[at], strict=True) if value != 0]

    @takes(at=optional(whole(-(10**9))))
    def coefficients(self, at: int | None = None) -> dict[str, float]:
        """{name: coefficient} at lambdas[at]; at `best` by default."""
        at = self.best if at is None else at
        return dict(zip(self.names, self.coef[at].tolist(), strict=True))

    @takes(at=optional(whole(-(10**9))))
    def refit(self, at: int | None = None, **options):
        """Fit the columns selected at lambdas[at] (at `best` by default) without a penalty.

        Standard errors and intervals of a refit take the selection as given: those of columns that were selected
        wrongly are not valid.

        Parameters
        ----------
        at : int, optional
        **options
            Of `jaxglmm.fit`, in place of those of the path.

        Returns
        -------
        Fit
            With coefficients 0 for the columns of the formula that are left out. Selected columns of `X=` and
            `dummies=` are columns of its table, by their names on the path; `predict` expects them in new data.
        """
        return self.refit_with(self.selected(at), options)

    @takes(path=optional(paths))
    def plot(self, path=None):
        """Coefficients against lambda, and the cross-validation's score; see `jaxglmm.path_plots.plot_path`."""
        from jaxglmm.path_plots import plot_path

        return plot_path(self, path)

    def __repr__(self) -> str:
        chosen, warned = len(self.selected()), ", with warnings" if self.warnings else ""
        return (
            f"<jaxglmm.Path {self.formula!r}, {len(self.lambdas)} lambdas from {self.lambdas[0]:.3g} to "
            f"{self.lambdas[-1]:.3g}, {chosen} of {len(self.names)} columns at the best{warned}>"
        )


def along(frame, family, laid, found, gamma, scale) -> dict:
    """The arrays of a `Path` from the solutions at each lambda."""
    from scipy.special import gammaln

    coef = laid.scaling.beta_to_columns(np.array([s.beta for s in found]))
    loglik, df = np.array([s.loglik for s in found]), np.array([s.df for s in found])
    rest = np.array([s.rest for s in found])
    n = len(frame.y)
    dispersion = None
    if family.dispersion_name is not None:
        dispersion = np.array([np.inf if family.at_limit(v) else np.exp(v) for v in rest[:, -1]])
    if scale == "rss":
        # L was that at sigma 1, where -2 L is the residual sum of squares and a constant.
        used = frame.weights > 0
        rows, logs = used.sum(), np.log(frame.weights[used]).sum()
        rss = np.maximum(logs - rows * np.log(2 * np.pi) - 2 * loglik, 1e-300)
        dispersion = np.sqrt(rss / rows)
        loglik, df = 0.5 * (logs - rows * (np.log(2 * np.pi * rss / rows) + 1)), df + 1
    candidates = np.isfinite(laid.weights.factors) & (laid.weights.factors > 0)
    many, chosen = candidates.sum(), np.count_nonzero(coef[:, candidates], axis=1)
    choices = gammaln(many + 1) - gammaln(chosen + 1) - gammaln(many - chosen + 1)
    bic = -2 * loglik + np.log(n) * df
    theta = {}
    if frame.terms:
        covariance = laid.design.terms[0].covariance
        sigma = []
        for raw in rest[:, :-1]:
            factor = np.zeros((covariance.n_effects,) * 2)
            factor[covariance.entries] = raw
            factor = frame.terms[0].basis @ laid.scaling.factor_to_columns(factor)
            sigma.append(factor @ factor.T)
        sigma = np.array(sigma)
        theta[frame.terms[0].group] = np.sqrt(sigma[:, 0, 0]) if sigma.shape[1] == 1 else sigma
    return {
        "coef": coef, "theta": theta, "dispersion": dispersion, "loglik": loglik, "df": df,
        "aic": -2 * loglik + 2 * df, "bic": bic, "ebic": bic + 2 * gamma * choices,
        "kkt": np.array([s.kkt for s in found]), "converged": np.array([s.converged for s in found]),
    }  # fmt: skip


@dataclass(frozen=True)
class Refit:
    """Fits chosen columns without a penalty.

    Attributes
    ----------
    formula : str
    data
        The table.
    options : dict
        Of `jaxglmm.fit`.
    formula_names : tuple of str
        Columns of the formula.
    column : callable
        Name of a further column -> its numbers in the rows that were kept.
    rows : int (n,)
        These rows' places in the table.
    """

    formula: str
    data: Any
    options: dict
    formula_names: tuple[str, ...]
    column: Callable[[str], np.ndarray]
    rows: np.ndarray

    def __call__(self, selected, options):
        from jaxglmm.fitting import fit

        data, formula = self.data, self.formula
        if beyond := [name for name in selected if name not in self.formula_names]:
            table = open_table(data)
            total = table.load(table.names[:1])[1]
            further = {name: np.zeros(total) for name in beyond}
            for name in beyond:
                further[name][self.rows] = self.column(name)
            data = table.joined(further)
            formula = f"{formula} + {' + '.join(f'`{name}`' for name in beyond)}"
        factors = {name: np.inf for name in self.formula_names if name not in selected}
        return fit(formula, data, **(self.options | {"penalty": ElasticNet(0.0, 1.0, factors)} | options))
