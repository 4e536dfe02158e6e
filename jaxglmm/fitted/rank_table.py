"""The table of ranked levels: what `Fit.rank` and `jaxglmm rank` return."""

import itertools
from typing import Any

import numpy as np

from jaxglmm.arguments import choice
from jaxglmm.errors import DataError
from jaxglmm.fitted.history import is_normal, nodes_for, posteriors
from jaxglmm.fitted.posterior import check_level, term_index
from jaxglmm.fitted.ranking import Piece, normal_pieces, rank_groups
from jaxglmm.fitted.scoring import history_from, only_factor, own_prior, score_columns
from jaxglmm.fitted.tables import native_table


# What each order is optimal for.
ORDERS = {
    "rank": "expected rank: least squared error of the ranks",
    "top": "probability of the top alpha: fewest levels wrongly placed in or out of it",
    "r_value": "r-value: for every alpha at once, most true members in the list of its top alpha",
    "mean": "posterior mean: least squared error of the effects",
    "threshold": "probability of exceeding the threshold: fewest levels on the wrong side of it",
}
_WIDE = 6.0  # reach of the lattice: beyond it lie less than 1e-8 of a posterior
_KEPT = 200_000_000  # lattice weights to keep between passes; more are computed again


def rank_table(
    fit, group: str | None = None, *, term: str | None = None, top: float | int | None = None, alpha: float = 0.1,
    order: str = "rank", threshold: float | None = None, interval: float = 0.95, r_values: bool = False, data=None,
) -> Any:  # fmt: skip
    """Levels of a grouping factor in order, the largest effects first.

    Posteriors are given the parameters, as in the references: errors of the fixed effects and standard deviations move
    and stretch all levels together.

    Parameters
    ----------
    fit : Fit
    group : str, optional
        Grouping factor; by default the only one.
    term : str, optional
        Effect to rank by; by default the first.
    top : float or int, optional
        Return the first levels only: a share of them such as 0.1, or a number such as 50. A share is also `alpha`.
    alpha : float
        Share of the levels that `p_top` is about.
    order : {"rank", "top", "r_value", "mean", "threshold"}
        By expected rank (least squared error of ranks), by `p_top` (fewest levels misplaced in or out of the top
        alpha), by r-value, by posterior mean (least squared error of effects), by `p_above`.
    threshold : float, optional
        Effect on the link scale whose exceedance `p_above` is about.
    interval : float
        Level of the percentiles' intervals.
    r_values : bool
        Compute the column `r_value`.
    data : table, optional
        Rank the members of these rows, scored as by `Fit.score`, instead of the levels of the fit.

    Returns
    -------
    table of the caller's kind
        `position` (1 the first), `level`, `n`, `mean`, `sd_mean`, `rank` (expected, 1 the smallest effect),
        `percentile` = 100 (rank - 1/2)/m with `percentile_lower`, `percentile_upper`, `p_top`, and `p_above` and
        `r_value` where asked for. Where the standard deviation is estimated as zero, so that given the parameters every
        effect is 0, `mean` and `sd_mean` are those over the posterior of the parameters, as `sd_eb` of `Fit.ranef`, and
        ranks come from normal posteriors of these.

    Raises
    ------
    DataError
        For unknown options, a variance of zero where there is no `sd_eb`, or a saved fit without rows and no `data`.

    References
    ----------
    Laird & Louis (1989), J. Educ. Stat. 14, 29. Lin, Louis, Paddock & Ridgeway (2006), Bayesian Anal. 1, 915.
    Henderson & Newton (2016), JRSS B 78, 781.
    """
    at = term_index(fit.state, group)
    threshold = None if threshold is None else float(threshold)
    alpha = _check(fit.state, top, alpha, order, threshold, interval)
    names = fit.state.terms[at].names
    term = names[0] if term is None else term
    if term not in names:
        raise DataError(f"term must be one of {', '.join(map(repr, names))}; found {term!r}")
    effect = names.index(term)
    zero = fit.state.column_covariances[at][effect, effect] == 0
    uncertain = _with_uncertainty(fit, at, effect) if zero and data is None else None
    if zero and uncertain is None:
        raise DataError(
            f"the standard deviation of {term!r} between levels of {fit.state.terms[at].group!r} is zero: given the "
            "parameters every effect is 0, and there is nothing to rank"
        )
    native, levels, counts, pieces = _source(fit, at, effect, data) if uncertain is None else uncertain
    found = rank_groups(
        pieces, len(levels), alpha=alpha, threshold=threshold, interval=interval,
        r_values=r_values or order == "r_value",
    )  # fmt: skip
    by = {
        "rank": found.rank, "top": found.p_top, "mean": found.mean, "threshold": found.p_above,
        "r_value": None if found.r_value is None else -found.r_value,
    }[order]  # fmt: skip
    assert by is not None
    first = np.lexsort((-found.percentile, -by))
    if top is not None:
        count = int(top) if top >= 1 else int(np.ceil(top * len(levels)))
        first = first[:count]
    columns = {
        "position": np.arange(1, len(first) + 1), "level": levels[first], "n": counts[first],
        "mean": found.mean[first], "sd_mean": found.sd[first], "rank": found.rank[first],
        "percentile": found.percentile[first], "percentile_lower": found.lower[first],
        "percentile_upper": found.upper[first], "p_top": found.p_top[first],
    }  # fmt: skip
    if found.p_above is not None:
        columns["p_above"] = found.p_above[first]
    if found.r_value is not None:
        columns["r_value"] = found.r_value[first]
    return native_table(native, columns)


def _check(state, top, alpha, order, threshold, interval) -> float:
    choice(*ORDERS)("order", order)
    if order == "threshold" and threshold is None:
        raise DataError("order='threshold' needs threshold=, an effect on the link scale")
    check_level(interval)
    if top is not None and (isinstance(top, bool) or not top > 0 or (top > 1 and top != int(top))):
        raise DataError(f"top must be a share within (0, 1) or a whole number of levels; found {top!r}")
    alpha = float(top) if top is not None and top < 1 else alpha
    if not 0 < alpha < 1:
        raise DataError(f"alpha must be a share within (0, 1); found {alpha!r}")
    return alpha


def _with_uncertainty(fit, at: int, effect: int):
    """As `_source`, of normal posteriors with the parameters' uncertainty; None where there are none of some width."""
    effects = fit._effects(at).of_columns(fit.state.terms[at].basis)
    mean, variance = effects.mean_eb[:, effect], effects.variance_eb[:, effect]
    if not (variance > 0).all():
        return None
    state, sd = fit.state, np.sqrt(variance)
    counts = np.asarray(state.posteriors[at].n, np.int64)
    return state.native, state.terms[at].levels, counts, lambda: normal_pieces(mean, sd)


def _source(fit, at: int, effect: int, data):
    """Kind of table, levels (G,), rows of each (G,), and a callable that gives their posteriors."""
    state = fit.state
    layout = None
    if data is not None:
        from jaxglmm.formula.table import open_table

        only_factor(state, "rank(data=...)")
        history, levels = history_from(state, data)
        native, counts = open_table(data).native, np.bincount(history.codes, minlength=len(levels))
    else:
        native, levels, counts = state.native, state.terms[at].levels, np.asarray(state.posteriors[at].n, np.int64)
        if len(state.terms) > 1 or is_normal(state.family) or len(state.terms[at].names) > 1:
            found = fit._effects(at).of_columns(state.terms[at].basis)
            mean, sd = found.mean[:, effect], np.sqrt(found.variance[:, effect])
            return native, levels, counts, lambda: normal_pieces(mean, sd)
        history, layout = fit._history("rank()")
    if is_normal(state.family) or history.z.shape[0] > 1:
        columns, S = score_columns(state, history, own_prior(state)), history.z.shape[0]
        mean, sd = columns["mean"][effect::S], columns["sd_mean"][effect::S]
        return native, levels, counts, lambda: normal_pieces(mean, sd)
    prior = own_prior(state)
    nodes = nodes_for(state.family, prior, history, wide=_WIDE)

    def pieces():
        found = posteriors(state.family, state.log_dispersion, history, prior, nodes, layout=layout, keep=True)
        for groups, p in found:
            yield Piece(groups, p.mean[0], np.sqrt(p.covariance[0, 0]), p.first, p.step, p.weights)

    if history.n_groups * nodes.points.shape[1] > _KEPT:
        return native, levels, counts, pieces
    kept = list(pieces())
    return native, levels, counts, lambda: itertools.chain(kept)
