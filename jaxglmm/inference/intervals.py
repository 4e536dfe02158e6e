"""Confidence intervals, as a table of the caller's kind."""

import itertools
import math
from statistics import NormalDist

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.tables import native_table, text_column
from jaxglmm.inference.coordinates import raw_covariance
from jaxglmm.inference.likelihood import no_profile
from jaxglmm.inference.parameters import Parameter, parameters, slope, value


# Standard error of a log sd, or of atanh of a correlation, below which a likelihood is a parabola in it.
_CLEAR = 0.05
_ONE = 1 - 1e-9  # size of a correlation from which it is on its boundary
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
    state, chosen = fit.state, _chosen(fit.state, wanted)
    quantile = NormalDist().inv_cdf(0.5 + level / 2)
    if method == "profile":
        fit._training("a profile")
        fit._unpenalised("a profile")
    profiled = [method == "profile" or (method == "auto" and _profiled(fit, parameter)) for parameter in chosen]
    limits = [wald(state, parameter, quantile) for parameter in chosen]
    if any(profiled):
        from jaxglmm.inference.profile import profile_intervals

        found = iter(profile_intervals(state, fit._problem, list(itertools.compress(chosen, profiled)), quantile))
        limits = [next(found) if use else pair for use, pair in zip(profiled, limits, strict=True)]
    return native_table(
        fit.state.native,
        {
            "parameter": text_column([parameter.name for parameter in chosen]),
            "estimate": np.array([value(parameter, fit.state) for parameter in chosen], float),
            "lower": np.array([pair[0] for pair in limits], float),
            "upper": np.array([pair[1] for pair in limits], float),
            "method": text_column([_told(use, pair) for use, pair in zip(profiled, limits, strict=True)]),
        },
    )


def _told(profiled: bool, limits) -> str:
    if profiled:
        return "profile"
    return "boundary" if any(map(math.isnan, limits)) else "wald"


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


def _profiled(fit, parameter: Parameter) -> bool:
    """Whether a parameter's limits are by profile unless asked otherwise."""
    state, problem = fit.state, fit._problem
    if problem is None or fit.penalised is not None or fit.method == "joint" or not fit.convergence.converged:
        return False
    if parameter.kind == "dispersion":
        return state.family.limit is not None and not no_profile(state, problem)
    wanted = parameter.kind in ("sd", "cor") and not _standard_error(state, parameter) < _CLEAR
    return wanted and not no_profile(state, problem)


def _standard_error(state, parameter: Parameter) -> float:
    """On the scale of Wald limits; NaN on a boundary."""
    gradient = slope(parameter, state)
    se = math.sqrt(max(gradient @ raw_covariance(state) @ gradient, 0.0)) if np.isfinite(gradient).all() else 0.0
    return se if se > 0 else math.nan


def wald(state, parameter: Parameter, quantile: float) -> tuple[float, float]:
    """Estimate +- quantile x standard error, on the parameter's own scale; on a boundary what is known of them.

    Far from an optimum, as a fit with throw=False may be, standard errors may be beyond all measure: then a limit
    is as far as its scale goes, such as 0 and infinity for a standard deviation.
    """
    forward, inverse = _SCALES[parameter.kind]
    at, se = value(parameter, state), _standard_error(state, parameter)
    if parameter.kind == "sd" and at == 0:
        return 0.0, math.nan
    if parameter.kind == "cor" and math.isnan(at):  # beside a variance of zero
        return -1.0, 1.0
    if parameter.kind == "cor" and abs(at) > _ONE:
        return (math.nan, 1.0) if at > 0 else (-1.0, math.nan)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        middle = forward(at)
        if not (np.isfinite(middle) and math.isfinite(se)):
            return math.nan, math.nan
        return float(inverse(middle - quantile * se)), float(inverse(middle + quantile * se))
