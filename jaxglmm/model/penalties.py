"""Penalties on the fixed effects: what is subtracted from the mean log-likelihood."""

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxglmm.arguments import flag, is_number, refuse
from jaxglmm.errors import DataError


class ElasticNet(eqx.Module):
    """Elastic net on the fixed effects.

    A penalised fit minimises

        -(1/N) L(beta, theta, phi) + sum_j lam f_j [ alpha |beta_j| + (1 - alpha)/2 beta_j^2 ],

    L the log-likelihood that the fit without a penalty maximises and N the sum of the prior weights (the trials of
    binomial counts, otherwise the rows). The intercept is never penalised.

    Attributes
    ----------
    lam : float
        Strength, at least 0.
    alpha : float
        1 is the lasso, 0 ridge.
    factors : mapping of str to float, array (p,), or None
        f_j of each column, used as given (never rescaled): 0 leaves it unpenalised, infinity leaves it out; 1 by
        default. A mapping names columns, or the variable of several dummy columns; an array has an entry for each of
        `fit.names`, of which the intercept's is not read. Adaptive weights are factors (Zou 2006).
    standardize : bool
        Penalise the coefficients of columns divided by their weighted 1/n standard deviation. Reported coefficients
        are always those of the columns as they are.

    Raises
    ------
    DataError
        When lam or alpha is outside of its range, or a factor is negative.

    References
    ----------
    Zou & Hastie (2005), JRSS B 67, 301. Friedman, Hastie & Tibshirani (2010), J. Stat. Softw. 33(1). Schelldorfer,
    Meier & Buehlmann (2014), J. Comp. Graph. Stat. 23, 460.
    """

    lam: float
    alpha: float = 1.0
    factors: Mapping[str, float] | np.ndarray | None = None
    standardize: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        flag("penalty: standardize", self.standardize)
        traced = isinstance(self.lam, Tracer)  # the strength that a fit is differentiated in
        if not traced and (not is_number(self.lam) or not 0 <= self.lam < np.inf):
            raise DataError(f"penalty: lam must be a finite number of at least 0; found {self.lam!r}")
        check_alpha(self.alpha)
        factors = self.factors
        if not (factors is None or isinstance(factors, Mapping) or getattr(factors, "dtype", None) is not None):
            factors = np.asarray(factors if isinstance(factors, list | tuple) else np.nan)
            if factors.dtype.kind not in "iuf" or np.isnan(factors).any():
                refuse("penalty: factors", "{column: factor}, or an array of them", self.factors)
        if getattr(factors, "ndim", 1) != 1:
            refuse("penalty: factors", "{column: factor}, or an array (p,) of them", self.factors)

    def __call__(self, beta: Array) -> Array:
        """Value at the coefficients (p,), for factors that are an array or absent."""
        f = 1.0 if self.factors is None else jnp.asarray(self.factors)
        size = self.alpha * jnp.abs(beta) + 0.5 * (1 - self.alpha) * jnp.square(beta)
        return self.lam * jnp.sum(jnp.where(size > 0, f * size, 0.0))


def Ridge(lam: float, factors=None, *, standardize: bool = False) -> ElasticNet:
    """`ElasticNet` with alpha = 0: lam/2 sum_j f_j beta_j^2 (Hoerl & Kennard 1970)."""
    return ElasticNet(lam, 0.0, factors, standardize)


def Lasso(lam: float, factors=None, *, standardize: bool = False) -> ElasticNet:
    """`ElasticNet` with alpha = 1: lam sum_j f_j |beta_j| (Tibshirani 1996)."""
    return ElasticNet(lam, 1.0, factors, standardize)


def check_alpha(alpha) -> None:
    """Refuse a mixing parameter outside of [0, 1].

    Raises
    ------
    DataError
    """
    if not is_number(alpha) or not 0 <= alpha <= 1:
        raise DataError(f"alpha must be a number from 0 (ridge) to 1 (lasso); found {alpha!r}")


def column_factors(factors, names: Sequence[str], intercept: int | None) -> np.ndarray:
    """f (p,) of each column: 0 for the intercept.

    Parameters
    ----------
    factors
        As in `ElasticNet`.
    names : (p,)
    intercept : int or None

    Raises
    ------
    DataError
        Naming the column, or the length that was expected.
    """
    out = np.ones(len(names))
    if isinstance(factors, Mapping):
        for name, factor in factors.items():
            mine = [j for j, column in enumerate(names) if column == name or column.startswith(f"{name}[")]
            if not mine:
                raise DataError(f"factors: no column {name!r}; the columns are {', '.join(map(repr, names[:12]))}")
            if not is_number(factor):
                refuse(f"factors[{name!r}]", "a number of at least 0, or infinity", factor)
            out[mine] = factor
    elif factors is not None:
        try:
            given = np.asarray(factors, float)
        except (TypeError, ValueError):
            given = np.zeros(0)
        if given.shape != out.shape:
            raise DataError(
                f"factors must be a mapping of column names, or one number for each of the {len(names)} columns "
                f"({', '.join(map(repr, names[:6]))}{', ...' if len(names) > 6 else ''}); found shape {given.shape}"
            )
        out = given.copy()
    if intercept is not None:
        out[intercept] = 0.0
    bad = np.flatnonzero(~(out >= 0))
    if len(bad):
        raise DataError(f"factors: {names[bad[0]]!r} has {out[bad[0]]:g}; a factor is at least 0 (infinity: left out)")
    return out
