"""Columns of factors that no estimate is determined for: empty cells of an interaction, levels nested in others.

lme4 and R's lm leave out each column that is a combination of the ones before it, with a message; here so of columns
that factors give, where it is the design's doing. Columns of numbers that are combinations of others stay an error,
since one of them is mostly there by mistake.
"""

import warnings
from dataclasses import replace

import numpy as np
from scipy.linalg import solve_triangular

from jaxglmm.errors import ColumnsError, DataWarning
from jaxglmm.ops.columns import Columns


_SUSPECT = 1e-9  # share of a column's square that elimination leaves, below which the rows are looked at
_COLLINEAR = 1e-7  # share of a column outside the others that is none, as in R's lm
_SMALL = 1e-9  # coefficients of a combination that are rounding


def without_aliases(frame, error: ColumnsError):
    """A frame without the columns that `left_out` leaves out, with a `DataWarning` that says so.

    Raises
    ------
    ColumnsError
    """
    kept = left_out(frame, error)
    dropped = kept.spec.fixed.dropped
    warnings.warn(
        f"the fixed effects are rank deficient: {len(dropped)} column{'s' * (len(dropped) > 1)} of factors left out, "
        f"for which the data determine no estimate: {_listed(list(dropped))} (combinations of levels that no row has, "
        "or factors that are nested in others)",
        DataWarning,
        stacklevel=4,
    )
    return kept


def left_out(frame, error: ColumnsError):
    """A frame without the columns of factors that are zero, or combinations of the columns before them.

    What each column is a combination of goes to `frame.spec.fixed.dropped`: new rows in which it is another one have no
    estimate (see `ModelSpec.fixed_matrix`).

    Parameters
    ----------
    frame : ModelFrame
    error : ColumnsError
        Why the columns cannot be used, which is raised where no column of a factor is the cause.

    Raises
    ------
    ColumnsError
    """
    recipe = frame.spec.fixed
    if not recipe.full_rank or not recipe.of_factors:
        raise error
    n, p = len(frame.weights), len(frame.names)
    found = aliases(Columns(frame.columns, n), [name in recipe.of_factors for name in frame.names])
    if not found or (p > n and 2 * (p - len(found)) > n):  # most combinations have one row: too many are asked for
        raise error
    dropped = {
        frame.names[j]: {frame.names[i]: value for i, value in combination.items()} for j, combination in found.items()
    }
    kept = [j for j in range(len(frame.names)) if j not in found]
    names = tuple(frame.names[j] for j in kept)
    spec = replace(frame.spec, fixed=replace(recipe, names=names, dropped=dropped))
    return replace(frame.with_columns(kept), spec=spec)


def aliases(X: Columns, of_factors) -> dict[int, dict[int, float]]:
    """Columns of factors as combinations of earlier columns that are kept, where they are such.

    Parameters
    ----------
    X : (n, p) Columns
    of_factors : bool (p,)

    Returns
    -------
    {column: {earlier column: coefficient}}
        Columns of numbers that are such are in no combination.
    """
    p = X.shape[1]
    gram = np.zeros((p, p))
    for _, values in X.pieces():
        gram += values.T @ values
    size = np.sqrt(np.diag(gram))
    scaled = gram / np.outer(np.where(size > 0, size, 1.0), np.where(size > 0, size, 1.0))
    kept: list[int] = []
    L, found = np.zeros((p, p)), {}
    for j in range(p):
        k = len(kept)
        row = np.zeros(k)
        if k and size[j]:
            row = solve_triangular(L[:k, :k], scaled[kept, j], lower=True, check_finite=False)
            if not np.isfinite(row).all():  # columns of numbers nearly are combinations of each other
                return {}
        rest = scaled[j, j] - row @ row
        if rest < _SUSPECT:
            combination = {}
            if size[j]:
                weights = solve_triangular(L[:k, :k], row, lower=True, trans="T", check_finite=False)
                values = weights * size[j] / size[kept]
                combination = {i: _plain(v) for i, v in zip(kept, values, strict=True) if abs(v) > _SMALL}
            if _is(X, j, combination, size[j]):
                if of_factors[j]:
                    found[j] = combination
                continue
        L[k, :k], L[k, k] = row, np.sqrt(max(rest, 1e-300))
        kept.append(j)
    return found


def _plain(value: float) -> float:
    """Coefficients of dummies are whole but for rounding."""
    whole = round(float(value))
    return float(whole) if abs(value - whole) < 1e-6 else float(value)


def _is(X: Columns, j: int, combination, size: float) -> bool:
    """Whether all rows say so."""
    outside = 0.0
    for _, values in X.pieces():
        rest = values[:, j].astype(float)
        for i, value in combination.items():
            rest -= value * values[:, i]
        outside += float(rest @ rest)
    return outside <= (_COLLINEAR * size) ** 2


def _listed(names) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(repr, names[:8])) + more
