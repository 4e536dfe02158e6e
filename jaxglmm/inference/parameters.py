"""What intervals are given for: fixed effects, sds, correlations and dispersion; their values and derivatives."""

import math
from dataclasses import dataclass

import numpy as np

from jaxglmm.inference.likelihood import coordinates


@dataclass(frozen=True)
class Parameter:
    """One parameter of interest.

    Attributes
    ----------
    name : str
        A fixed effect's, "sd[Intercept|g]", "cor[x,Intercept|g]", or the dispersion's.
    kind : {"beta", "sd", "cor", "dispersion"}
    effects : tuple of int
        (r,) for the sd of effect r, (r, s) for the correlation of effects r > s, counted over all terms; (j,) for
        fixed effect j.
    block : tuple of int
        Effects that covary with it.
    """

    name: str
    kind: str
    effects: tuple[int, ...] = ()
    block: tuple[int, ...] = ()


def parameters(state) -> list[Parameter]:
    """All parameters of interest in the order of the summary; covariances that the caller held are left out."""
    out = [Parameter(name, "beta", (j,)) for j, name in enumerate(state.spec.fixed.names)]
    at = coordinates(state)
    held = not (at.free[at.p : -1].any() or state.estimate.convergence.singular)
    if not held:
        names = [(name, term.group) for term in state.terms for name in term.names]
        out += covariance_parameters(names, state.structure.blocks)
    if state.family.dispersion_name is not None:
        out.append(Parameter(state.family.dispersion_name, "dispersion"))
    return out


def covariance_parameters(names, blocks) -> list[Parameter]:
    """Standard deviations and correlations.

    Parameters
    ----------
    names : sequence of (str, str)
        Name and group of each effect.
    blocks : tuple of tuples of int
        Effects that covary.
    """
    out = []
    for block in blocks:
        for i, r in enumerate(block):
            name, group = names[r]
            out += [Parameter(f"cor[{name},{names[s][0]}|{group}]", "cor", (r, s), block) for s in block[:i]]
            out.append(Parameter(f"sd[{name}|{group}]", "sd", (r,), block))
    return out


def value(parameter: Parameter, state) -> float:
    """The estimate; NaN for a correlation beside a variance of zero."""
    estimate = state.estimate
    if parameter.kind == "beta":
        return float(estimate.beta[parameter.effects[0]])
    if parameter.kind == "dispersion":
        return math.inf if state.family.at_limit(state.log_dispersion) else float(estimate.dispersion)
    sigma = state.factor @ state.factor.T
    if parameter.kind == "sd":
        return float(np.sqrt(sigma[parameter.effects[0], parameter.effects[0]]))
    r, s = parameter.effects
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(sigma[r, s] / np.sqrt(sigma[r, r] * sigma[s, s]))


def slope(parameter: Parameter, state) -> np.ndarray:
    """Derivative in x (m,) of beta, log sd, atanh cor or log dispersion; NaN where that is infinite."""
    at = coordinates(state)
    out = np.zeros(len(at.x))
    if parameter.kind == "beta":
        out[parameter.effects[0]] = 1.0
    elif parameter.kind == "dispersion":
        out[-1] = 1.0
    else:
        factor = state.factor
        by_factor = np.zeros_like(factor)
        r, s = parameter.effects[0], parameter.effects[-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = factor / np.sqrt(np.square(factor).sum(1, keepdims=True))
            sd = np.sqrt(np.square(factor).sum(1))
            if parameter.kind == "sd":
                by_factor[r] = unit[r] / sd[r]
            else:
                cor = unit[r] @ unit[s]
                by_factor[r] = (unit[s] - cor * unit[r]) / sd[r] / (1 - cor**2)
                by_factor[s] = (unit[r] - cor * unit[s]) / sd[s] / (1 - cor**2)
        out[at.p : -1] = by_factor[at.entries]
    return out
