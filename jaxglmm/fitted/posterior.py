"""Group effects as tables: conditional modes, posterior means, reliability; and the table of variances."""

from typing import Any

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.effects import Effects
from jaxglmm.fitted.state import State
from jaxglmm.fitted.tables import native_table, text_column
from jaxglmm.model.centring import variances


def term_index(state: State, group: str | None) -> int:
    """Position of a grouping factor; the only one where none is named.

    Raises
    ------
    DataError
    """
    names = [term.group for term in state.terms]
    if group is None and len(names) == 1:
        return 0
    if group is None and names:
        raise DataError(f"this model has several grouping factors: name one of {', '.join(map(repr, names))}")
    if group not in names:
        known = ", ".join(map(repr, names)) or "none: the model has no random effects"
        raise DataError(f"no grouping factor {group!r} in this model; its factors: {known}")
    return names.index(group)


def check_level(level) -> None:
    """Refuse an interval's level that is no probability.

    Raises
    ------
    DataError
    """
    if not isinstance(level, (int, float, np.number)) or not 0 < level < 1:
        raise DataError(f"interval must be a level within (0, 1), such as 0.95; found {level!r}")


def reliability(variance: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """1 - Var(b | y, psi) / Var(b) of each level's effects (G, S), clipped to [0, 1]; 0 where Var(b) = 0."""
    prior = np.diag(covariance)
    share = np.divide(variance, prior, out=np.ones_like(variance), where=prior > 0)
    return np.clip(1 - share, 0.0, 1.0)


def ranef_table(state: State, at: int, effects: Effects, ends: np.ndarray | None) -> Any:
    """Table of all levels' effects, those of the columns as they were written; see `Fit.ranef`.

    Parameters
    ----------
    effects : Effects
        Of these columns.
    ends : (G, S, 2) or None
        Of intervals.
    """
    term, posterior = state.terms[at], state.posteriors[at]
    S = len(term.names)
    sd = lambda variance: np.sqrt(np.maximum(variance, 0.0)).ravel()
    columns = {
        "level": np.repeat(term.levels, S),
        "term": np.tile(text_column(term.names), len(term.levels)),
        "n": np.repeat(np.asarray(posterior.n, np.int64), S),
        "estimate": (posterior.mode @ term.basis.T).ravel(),
        "sd": sd(variances(term.basis, posterior.covariance)),
        "mean": effects.mean.ravel(),
        "sd_mean": sd(effects.variance),
        "sd_eb": sd(effects.variance_eb),
        "reliability": reliability(effects.variance, state.column_covariances[at]).ravel(),
    }
    if ends is not None:
        columns |= {"lower": ends[..., 0].ravel(), "upper": ends[..., 1].ravel()}
    table = native_table(state.native, columns)
    if hasattr(table, "attrs"):
        table.attrs["sd_eb"] = effects.told()
    return table


def variance_table(state: State) -> list[dict]:
    """[{group, name, variance, sd, corr: {other: r}}]; r is NaN beside a variance of zero."""
    rows = []
    for term, sigma in zip(state.terms, state.column_covariances, strict=True):
        sd = np.sqrt(np.diag(sigma))
        with np.errstate(invalid="ignore", divide="ignore"):
            corr = sigma / np.outer(sd, sd)
        for block in term.blocks:
            for a in block:
                rows.append(
                    {
                        "group": term.group,
                        "name": term.names[a],
                        "variance": float(sigma[a, a]),
                        "sd": float(sd[a]),
                        "corr": {term.names[b]: float(corr[a, b]) for b in block if b != a},
                    }
                )
    return rows
