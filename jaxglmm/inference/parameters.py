"""What intervals are given for: fixed effects, sds, correlations and dispersion; their values and derivatives."""

import math
from dataclasses import dataclass

import numpy as np

from jaxglmm.inference.coordinates import coordinates


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
    loads : tuple of (S,)
        Of each of `effects`, counted over all terms: the effect of its column as written is loads'b, b the effects of
        centred columns that Lambda is of; see `model.centring`. Likewise (p,) of a fixed effect and the coefficients of
        the columns in use.
    """

    name: str
    kind: str
    effects: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    loads: tuple[tuple[float, ...], ...] = ()


def parameters(state) -> list[Parameter]:
    """All parameters of interest in the order of the summary; covariances that the caller held are left out."""
    rows = [tuple(row) for row in state.estimate.scaling.to_columns().tolist()]
    out = [Parameter(name, "beta", (j,), (), (rows[j],)) for j, name in enumerate(state.spec.fixed.names)]
    at = coordinates(state)
    held = not (at.free[at.p : -1].any() or state.estimate.convergence.singular)
    if not held:
        names = [(name, term.group) for term in state.terms for name in term.names]
        out += covariance_parameters(names, state.structure.blocks, state.basis)
    if state.family.dispersion_name is not None:
        out.append(Parameter(state.family.dispersion_name, "dispersion"))
    return out


def covariance_parameters(names, blocks, basis) -> list[Parameter]:
    """Standard deviations and correlations.

    Parameters
    ----------
    names : sequence of (str, str)
        Name and group of each effect.
    blocks : tuple of tuples of int
        Effects that covary.
    basis : (S, S)
        Takes effects of centred columns to those of the columns as written.
    """
    out, loads = [], [tuple(row) for row in np.asarray(basis).tolist()]
    for block in blocks:
        for i, r in enumerate(block):
            name, group = names[r]
            for s in block[:i]:
                title = f"cor[{name},{names[s][0]}|{group}]"
                out.append(Parameter(title, "cor", (r, s), block, (loads[r], loads[s])))
            out.append(Parameter(f"sd[{name}|{group}]", "sd", (r,), block, (loads[r],)))
    return out


def value(parameter: Parameter, state) -> float:
    """The estimate; NaN for a correlation beside a variance of zero."""
    estimate = state.estimate
    if parameter.kind == "beta":
        return float(estimate.beta[parameter.effects[0]])
    if parameter.kind == "dispersion":
        return math.inf if state.family.at_limit(state.log_dispersion) else float(estimate.dispersion)
    rows = np.array(parameter.loads) @ state.factor
    sd = np.sqrt(np.square(rows).sum(1))
    if parameter.kind == "sd":
        return float(sd[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(rows[0] @ rows[1] / (sd[0] * sd[1]))


def slope(parameter: Parameter, state) -> np.ndarray:
    """Derivative in x (m,), see `inference.coordinates`, of beta, log sd, atanh cor or log dispersion.

    NaN where that is infinite.
    """
    at = coordinates(state)
    out = np.zeros(len(at.x))
    if parameter.kind == "beta":
        out[: at.p] = parameter.loads[0]
    elif parameter.kind == "dispersion":
        out[-1] = 1.0
    else:
        loads = np.array(parameter.loads)
        rows = loads @ state.factor
        with np.errstate(invalid="ignore", divide="ignore"):
            sd = np.sqrt(np.square(rows).sum(1))
            unit = rows / sd[:, None]
            if parameter.kind == "sd":
                by_rows = unit / sd
            else:
                cor = unit[0] @ unit[1]
                by_rows = (unit[::-1] - cor * unit) / sd[:, None] / (1 - cor**2)
        out[at.p : -1] = (loads.T @ by_rows)[at.entries]
    return out
