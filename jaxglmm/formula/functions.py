"""The functions that a formula may call: formulaic's transforms, and R's where they go by other names.

formulaic's splines, `poly`, `scale`, `center` and contrasts keep their state; here is only what it lacks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from formulaic.transforms import TRANSFORMS, C as formulaic_c
from formulaic.transforms.contrasts import TreatmentContrasts
from formulaic.transforms.cubic_spline import cubic_spline
from formulaic.utils.stateful_transforms import stateful_transform


def categorical(data: Any, contrasts: Any = None, *, levels: Any = None) -> Any:
    """`C(x)` and `factor(x)`: a factor, whose levels are integers when the numbers are.

    Raises
    ------
    ValueError
        For levels that the list of them lacks, of which formulaic would make rows of zeros.
    """
    data = _whole(data)
    if levels is not None:
        values = pd.Series(data).dropna().unique()
        if lacking := sorted({str(v) for v in values if v not in list(levels)}):
            raise ValueError(f"levels= lacks {', '.join(map(repr, lacking[:5]))}: list all levels, or drop those rows")
    return formulaic_c(data, contrasts, levels=levels)


def relevel(data: Any, ref: Any) -> Any:
    """R's `relevel(x, ref = "b")`: a factor with another reference level."""
    return formulaic_c(_whole(data), TreatmentContrasts(base=ref))


def _whole(data: Any) -> Any:
    values = np.asarray(data) if getattr(data, "dtype", None) == np.float64 else None
    if values is not None and np.all(values == np.rint(values)):
        if np.abs(values).max(initial=0.0) > 2**53:
            raise ValueError("whole numbers beyond 2^53 are numbers elsewhere in the formula, where some become one")
        return pd.Series(values.astype(np.int64))
    return data


@stateful_transform
def natural_spline(
    x: Any,
    df: int | None = None,
    knots: Any = None,
    Boundary_knots: Any = None,
    _state: dict[str, Any] = {},  # noqa: B006
) -> Any:
    """R's `ns(x, df)`: a natural cubic spline without intercept, linear beyond its boundary knots.

    The space of functions is R's: `df - 1` inner knots at quantiles of x, boundary knots at its range. The
    basis of that space is formulaic's (Wood 2017, section 5.3.1), so coefficients differ and fits do not.
    """
    x = np.asarray(x, dtype=float)
    if "knots" not in _state:
        if knots is None and (df is None or df < 2):
            raise ValueError("ns() needs df of at least 2, or knots; df = 1 is the column itself")
        low, high = Boundary_knots if Boundary_knots is not None else (np.min(x), np.max(x))
        if knots is None:
            inside = x[(x >= low) & (x <= high)]
            knots = np.quantile(inside, np.linspace(0, 1, int(df or 0) + 1)[1:-1])
        inner = np.atleast_1d(np.asarray(knots, dtype=float))
        return cubic_spline(
            x, knots=inner, lower_bound=float(low), upper_bound=float(high), constraints="center", _state=_state
        )
    return cubic_spline(x, _state=_state)


def _numbers(x: Any) -> Any:
    if isinstance(getattr(x, "dtype", None), pd.CategoricalDtype):
        raise TypeError("as.numeric() of text or a factor has no meaning here; convert the column first")
    return pd.Series(np.asarray(x, dtype=float))


def _log(x: Any, base: float | None = None) -> Any:
    return np.log(x) if base is None else np.log(x) / np.log(base)


def _c(*values: Any) -> list[Any]:
    return list(values)


FUNCTIONS: dict[str, Any] = {
    **{name: f for name, f in TRANSFORMS.items() if name not in ("hashed", "Q", "lag")},
    "C": categorical,
    "factor": categorical,
    "relevel": relevel,
    "ns": natural_spline,
    "c": _c,
    "as_numeric": _numbers,
    "as_integer": lambda x: _numbers(x).pipe(np.trunc),
    "log": _log,
    "sqrt": np.sqrt,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "abs": np.abs,
    "sign": np.sign,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "tanh": np.tanh,
    "floor": np.floor,
    "ceiling": np.ceil,
    "round": lambda x, digits=0: np.round(x, digits),
    "pmin": np.minimum,
    "pmax": np.maximum,
    "ifelse": np.where,
}
