"""Wald tests of linear combinations of the fixed effects."""

from dataclasses import dataclass
from numbers import Real

import numpy as np

from jaxglmm.arguments import number, numbers, refuse
from jaxglmm.errors import DataError
from jaxglmm.inference.wald import chi2_p, f_p, normal_p, satterthwaite, student_p


@dataclass(frozen=True)
class ContrastTest:
    """Tests of L beta = rhs.

    Attributes
    ----------
    contrasts : (k, p)
    estimate, se, statistic, p : (k,)
        Of each row: L beta - rhs, its standard error, z or t, two-sided p-value.
    df : (k,) or None
        Degrees of freedom of t (Satterthwaite), for Gaussian models.
    joint : dict
        {statistic, kind ("chi2" or "F"), df, df_denominator, p} of all rows together, by Fai & Cornelius (1996) for F.
    """

    contrasts: np.ndarray
    estimate: np.ndarray
    se: np.ndarray
    statistic: np.ndarray
    df: np.ndarray | None
    p: np.ndarray
    joint: dict


def test_contrasts(state, contrasts, rhs=0.0) -> ContrastTest:
    """Test L beta = rhs, row by row and jointly.

    Parameters
    ----------
    contrasts : str, dict, (p,) or (k, p), or list of these
        A coefficient's name; {name: weight}; or weights of all coefficients in the order of `fit.names`.
    rhs : float or (k,)

    Returns
    -------
    ContrastTest
        With t and F and Satterthwaite's degrees of freedom for Gaussian models, else z and chi-squared.

    Raises
    ------
    DataError
        For an unknown name, a wrong number of weights, or contrasts that are zero or not estimable.
    """
    names, estimate = tuple(state.spec.fixed.names), state.estimate
    L = _matrix(contrasts, names)
    rhs = np.asarray(rhs, float)
    if rhs.shape not in ((), (len(L),)):
        raise DataError(f"rhs must be one number, or one for each of the {len(L)} contrasts; found shape {rhs.shape}")
    p = len(names)
    difference = L @ estimate.beta - rhs
    # L beta as combinations of the coefficients of the columns in use.
    turned, vcov = L @ estimate.scaling.to_columns(), estimate.covariance[:p, :p]
    se = np.sqrt(np.einsum("ki,ij,kj->k", turned, vcov, turned))
    if not (se > 0).all():
        raise DataError(f"contrast {int(np.argmin(se))} is zero, or involves no estimated coefficient")
    statistic = difference / se
    free = satterthwaite(state)
    if free is None:
        df, values = None, normal_p(statistic)
        joint = _chi2(turned, vcov, difference)
    else:
        df = free.df(turned)
        values = student_p(statistic, df)
        F, q, denominator = free.f_test(turned, np.linalg.lstsq(turned, difference, rcond=None)[0])
        joint = {"statistic": F, "kind": "F", "df": q, "df_denominator": denominator, "p": f_p(F, q, denominator)}
    return ContrastTest(L, difference, se, statistic, df, values, joint)


test_contrasts.__test__ = False  # not a test of ours, whatever its name


def _chi2(L, vcov, difference):
    values, vectors = np.linalg.eigh(L @ vcov @ L.T)
    kept = values > 1e-10 * values[-1]
    x = float(np.sum((vectors[:, kept].T @ difference) ** 2 / values[kept]))
    q = int(kept.sum())
    return {"statistic": x, "kind": "chi2", "df": q, "df_denominator": None, "p": chi2_p(x, q)}


def _matrix(contrasts, names) -> np.ndarray:
    if not isinstance(contrasts, str | dict | list | tuple | np.ndarray):
        refuse("contrasts", "a coefficient's name, {name: weight}, weights, or a list of these", contrasts)
    if isinstance(contrasts, str | dict) or (len(contrasts) and all(isinstance(v, Real) for v in contrasts)):
        contrasts = [contrasts]
    rows = [_row(row, names) for row in contrasts]
    if not rows:
        raise DataError("contrasts is empty: expected at least one combination of coefficients")
    return np.stack(rows)


def _row(row, names) -> np.ndarray:
    if isinstance(row, str):
        row = {row: 1.0}
    if isinstance(row, dict):
        out = np.zeros(len(names))
        for name, weight in row.items():
            if name not in names:
                raise DataError(f"no coefficient {name!r} in this model; its coefficients: {', '.join(names)}")
            number()(f"the weight of {name!r}", weight)
            out[names.index(name)] = weight
        return out
    numbers("a contrast", row)
    out = np.asarray(row, float)
    if out.shape != (len(names),):
        raise DataError(
            f"a contrast must have one weight for each of the {len(names)} coefficients ({', '.join(names)}); found "
            f"shape {out.shape}"
        )
    return out
