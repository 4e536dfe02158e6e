"""Confidence intervals, as a table of the caller's kind."""

import math
from statistics import NormalDist

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.tables import native_table, text_column
from jaxglmm.inference.likelihood import raw_covariance
from jaxglmm.inference.parameters import Parameter, parameters, slope, value


# Scales on which Wald intervals are symmetric.
_SCALES = {
    "beta": (lambda v: v, lambda v: v),
    "sd": (np.log, np.exp),
    "cor": (np.arctanh, np.tanh),
    "dispersion": (np.log, np.exp),
}


def confint(fit, method: str, level: float, wanted):
    """See `Fit.confint`.

    Raises
    ------
    DataError
    """
    chosen = _chosen(fit.state, wanted)
    quantile = NormalDist().inv_cdf(0.5 + level / 2)
    if method == "profile":
        from jaxglmm.inference.profile import profile_intervals

        fit._training("a profile")
        fit._unpenalised("a profile")
        limits = profile_intervals(fit.state, fit._problem, chosen, quantile)
    else:
        limits = [wald(fit.state, parameter, quantile) for parameter in chosen]
    return native_table(
        fit.state.native,
        {
            "parameter": text_column([parameter.name for parameter in chosen]),
            "estimate": np.array([value(parameter, fit.state) for parameter in chosen], float),
            "lower": np.array([pair[0] for pair in limits], float),
            "upper": np.array([pair[1] for pair in limits], float),
        },
    )


def _chosen(state, wanted) -> list[Parameter]:
    known = parameters(state)
    if wanted is None:
        return known
    names = [parameter.name for parameter in known]
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in wanted:
        if name not in names:
            raise DataError(f"no parameter {name!r} in this model; its parameters: {', '.join(map(repr, names))}")
    return [known[names.index(name)] for name in wanted]


def wald(state, parameter: Parameter, quantile: float) -> tuple[float, float]:
    """Estimate +- quantile x standard error, on the parameter's own scale; NaN on a boundary.

    Far from an optimum, as a fit with throw=False may be, standard errors may be beyond all measure: then a limit
    is as far as its scale goes, such as 0 and infinity for a standard deviation.
    """
    forward, inverse = _SCALES[parameter.kind]
    at, gradient, covariance = value(parameter, state), slope(parameter, state), raw_covariance(state)
    if not np.isfinite(gradient).all():
        return math.nan, math.nan
    se = math.sqrt(max(gradient @ covariance @ gradient, 0.0))
    if se == 0 or (parameter.block and state.estimate.convergence.singular and _on_boundary(state, parameter)):
        return math.nan, math.nan
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        middle = forward(at)
        if not (np.isfinite(middle) and math.isfinite(se)):
            return math.nan, math.nan
        return float(inverse(middle - quantile * se)), float(inverse(middle + quantile * se))


def _on_boundary(state, parameter) -> bool:
    factor = state.factor
    return any(factor[a, a] == 0 for a in parameter.block)
