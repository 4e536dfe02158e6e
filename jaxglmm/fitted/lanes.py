"""Estimates and standard errors of very many fits of one model, as arrays with a row for each fit."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from jaxglmm.inference.parameters import Parameter, covariance_parameters
from jaxglmm.model.family import AT_LIMIT
from jaxglmm.ops import lanes


@dataclass
class LaneEstimates:
    """What is known of B fits; NaN throughout for those that failed.

    Attributes
    ----------
    estimate, se : (B, P)
        Of the parameters that `model_parameters` lists, each on its own scale; se is NaN on the boundary.
    loglik, decrement : (B,)
    evaluations, n_agq, n, groups : int (B,)
        Evaluations of the likelihood; nodes per effect (0 where there are none), rows and groups.
    gap, checked_gap, checked_move : (B,)
        As of `optimise.estimate.Convergence`; NaN where there are none.
    checked_nodes : int (B,)
        0 where a fit was not looked at.
    warnings : list of lists of str
    singular : bool (B,)
    reasons : list of str or None
        Why a fit failed.
    """

    estimate: np.ndarray
    se: np.ndarray
    loglik: np.ndarray
    decrement: np.ndarray
    evaluations: np.ndarray
    n_agq: np.ndarray
    n: np.ndarray
    groups: np.ndarray
    singular: np.ndarray
    gap: np.ndarray
    checked_nodes: np.ndarray
    checked_gap: np.ndarray
    checked_move: np.ndarray
    warnings: list
    reasons: list

    def __post_init__(self):
        failed = np.array([reason is not None for reason in self.reasons], bool)
        told = self.gap, self.checked_gap, self.checked_move
        for array in (self.estimate, self.se, self.loglik, self.decrement, *told):
            array[failed] = np.nan
        self.singular = self.singular & ~failed
        self.warnings = [[] if none else texts for none, texts in zip(failed, self.warnings, strict=True)]

    @classmethod
    def failed(cls, reasons: list, n_parameters: int) -> LaneEstimates:
        """Of fits that were not begun."""
        wide, zero = np.full((len(reasons), n_parameters), np.nan), np.zeros(len(reasons), int)
        none = lambda: np.full(len(reasons), np.nan)
        return cls(
            wide, wide.copy(), none(), none(), zero, zero, zero, zero, zero.astype(bool), **unlooked(len(reasons)),
            reasons=reasons,
        )  # fmt: skip

    def among(self, places: np.ndarray, n_parameters: int) -> LaneEstimates:
        """The same, with the parameters at these places of as many, NaN for the others."""
        wide = np.full((2, len(self.loglik), n_parameters), np.nan)
        wide[0][:, places], wide[1][:, places] = self.estimate, self.se
        return replace(self, estimate=wide[0], se=wide[1])

    @classmethod
    def joined(cls, parts: list[LaneEstimates], order: np.ndarray) -> LaneEstimates:
        """Parts one after the other; `order` are the places of their fits in the result."""
        values = {}
        for field in fields(cls):
            both = [getattr(part, field.name) for part in parts]
            if field.name in ("reasons", "warnings"):
                flat, out = [one for part in both for one in part], [None] * len(order)
                for place, one in zip(order.tolist(), flat, strict=True):
                    out[place] = one
            else:
                flat = np.concatenate(both)
                out = np.empty_like(flat)
                out[order] = flat
            values[field.name] = out
        return cls(**values)


def unlooked(B: int) -> dict:
    """What `LaneEstimates` says of B fits whose likelihood is exact, or that failed."""
    none = lambda: np.full(B, np.nan)
    return {
        "gap": none(), "checked_nodes": np.zeros(B, int), "checked_gap": none(), "checked_move": none(),
        "warnings": [[] for _ in range(B)],
    }  # fmt: skip


def model_parameters(names, terms, family) -> list[Parameter]:
    """Parameters of a model in the order of its summary.

    Parameters
    ----------
    names : sequence of str
        Of the fixed effects.
    terms : sequence of TermFrame
        None or one.
    """
    out = [Parameter(name, "beta", (j,)) for j, name in enumerate(names)]
    for term in terms:
        out += covariance_parameters([(name, term.group) for name in term.names], term.blocks, term.basis)
    if family.dispersion_name is not None:
        out.append(Parameter(family.dispersion_name, "dispersion"))
    return out


def parameter_table(parameters, beta, factor, dispersion, covariance, free, entries):
    """Values (B, P) and standard errors (B, P) of the parameters.

    Parameters
    ----------
    beta : (B, p)
    factor : (B, S, S)
        Lambda.
    dispersion : (B,)
    covariance : (B, m, m)
        Of (beta, free entries of Lambda, log dispersion).
    free : bool (B, m)
    entries : (rows, columns)
        Of the free entries of Lambda.
    """
    p = beta.shape[1]
    q = len(entries[0])
    part = slice(p, p + q)
    value, se = (np.full((len(beta), len(parameters)), np.nan) for _ in range(2))
    variance = np.einsum("bii->bi", covariance)
    V = covariance[:, part, part]
    with np.errstate(invalid="ignore", divide="ignore"):
        for k, parameter in enumerate(parameters):
            if parameter.kind == "beta":
                value[:, k], se[:, k] = beta[:, parameter.effects[0]], np.sqrt(variance[:, parameter.effects[0]])
                continue
            if parameter.kind == "dispersion":
                value[:, k], se[:, k] = dispersion, dispersion * np.sqrt(variance[:, -1])
                limit = dispersion >= np.exp(AT_LIMIT - 1e-6)  # no family has another estimate of that size
                value[limit, k], se[limit, k] = np.inf, np.nan
                continue
            loads = np.array(parameter.loads)
            effect = loads @ factor  # rows (B, 1 or 2, S) of the factor of columns as written
            sd = np.sqrt(np.square(effect).sum(2))
            unit = effect / sd[:, :, None]
            if parameter.kind == "sd":
                value[:, k], by_rows = sd[:, 0], unit
            else:
                cor = np.sum(unit[:, 0] * unit[:, 1], 1)
                value[:, k] = cor
                by_rows = (unit[:, ::-1] - cor[:, None, None] * unit) / sd[:, :, None]
            slope = loads.T @ by_rows
            g = slope[:, entries[0], entries[1]]
            inside = free[:, part][:, np.isin(entries[0], parameter.block)].all(1)
            se[:, k] = np.where(inside, np.sqrt(np.einsum("bi,bij,bj->b", g, V, g)), np.nan)
    return value, se


def covariance_of(hessian: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Inverse observed information (B, m, m) of the free parameters, zero elsewhere; NaN where there is none."""
    both = free[:, :, None] & free[:, None, :]
    information = np.where(both, -hessian, np.eye(hessian.shape[1]))
    return np.where(both, np.moveaxis(lanes.inverse(lanes.lanes_last(information)), -1, 0), 0.0)


def columns_transform(center, scale, intercept) -> np.ndarray:
    """T (B, p, p) with beta = T beta_scaled, from centres and scales (B, p); as `Scaling.to_columns`."""
    T = np.zeros((*scale.shape, scale.shape[1]))
    at = np.arange(scale.shape[1])
    T[:, at, at] = 1 / scale
    if intercept is not None:
        T[:, intercept] -= center / scale / scale[:, intercept, None]
    return T


def marginal_estimates(solution, parameters, covariance, T, z_scale, n, groups) -> LaneEstimates:
    """From the optimiser's coordinates to the caller's columns.

    Parameters
    ----------
    solution : BatchSolution
    parameters : list of Parameter
    covariance : Covariance or None
    T : (B or 1, p, p)
    z_scale : (B or 1, S)
    n, groups : int (B,)
    """
    psi, p = solution.psi, T.shape[1]
    B, m = psi.shape
    rows, columns = covariance.entries if covariance else (np.zeros(0, int),) * 2
    S = covariance.n_effects if covariance else 0
    J = np.zeros((B, m, m))
    J[:, :p, :p], J[:, -1, -1] = T, 1.0
    inside = np.arange(p, p + len(rows))
    J[:, inside, inside] = 1 / z_scale[:, rows]
    factor = np.zeros((B, S, S))
    factor[:, rows, columns] = psi[:, p:-1] / z_scale[:, rows]
    V = J @ covariance_of(solution.hessian, solution.free) @ np.swapaxes(J, 1, 2)
    beta = np.einsum("bij,bj->bi", np.broadcast_to(T, (B, p, p)), psi[:, :p])
    value, se = parameter_table(parameters, beta, factor, np.exp(psi[:, -1]), V, solution.free, (rows, columns))
    return LaneEstimates(
        value, se, solution.value.copy(), solution.decrement, solution.evaluations, solution.n_agq, n, groups,
        solution.singular, solution.gap, solution.checked_nodes, solution.checked_gap, solution.checked_move,
        solution.warnings, list(solution.reasons),
    )  # fmt: skip
