"""Bootstrap and jackknife of a fit: all replicates are fitted together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from jaxglmm.arguments import instance, optional, share, takes
from jaxglmm.errors import DataError, NotYetError
from jaxglmm.fitted.predict import simulate
from jaxglmm.fitted.tables import native_table, text_column
from jaxglmm.inference.parameters import parameters, value
from jaxglmm.ops.computing import computing


# Rows of replicates that exist at once.
_ROWS = 2_000_000
_MOST_COPIES = 100_000_000


class Replicates:
    """Estimates from replicates of a fit's data.

    Attributes
    ----------
    kind : {"parametric", "cases", "jackknife"}
    parameters : tuple of str
        As in `Fits`.
    estimate : (P,)
        Of the fit.
    replicates : (n, P)
        NaN where a replicate could not be fitted.
    failed : dict of int to str
        Why not.
    warnings : dict of int to list of str
        Of the replicates that have any, as in the `convergence` of a fit: they take the nodes of the fit.
    """

    def __init__(
        self, kind: str, names, estimate, replicates, failed: dict[int, str], warnings: dict[int, list[str]],
        native: str,
    ):  # fmt: skip
        self.kind, self.parameters, self.estimate = kind, tuple(names), np.asarray(estimate, float)
        self.replicates, self.failed, self.warnings, self._native = replicates, failed, warnings, native

    @takes(level=share(), jackknife=optional(instance("Replicates", "the replicates of Fit.jackknife")))
    def table(self, level: float = 0.95, *, jackknife: Replicates | None = None) -> Any:
        """Bias, standard errors and intervals.

        Bootstrap: the replicates' mean less the estimate, their standard deviation, and the percentile interval.
        Jackknife of G groups: (G - 1) times that difference, sqrt((G - 1)/G sum of squared deviations), and a normal
        interval.

        Parameters
        ----------
        level : float
        jackknife : Replicates, optional
            The same fit's, for bootstrap intervals that are corrected for bias and acceleration (BCa; Efron 1987).

        Returns
        -------
        table of the caller's kind
            `parameter`, `estimate`, `bias`, `se`, `lower`, `upper`.

        References
        ----------
        Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapters 10, 11, 13 and 14.
        """
        used = self.replicates[np.isfinite(self.replicates).all(1)]
        if len(used) < 2:
            raise DataError(f"{len(used)} of {len(self.replicates)} replicates could be fitted; see `failed`")
        mean = used.mean(0)
        if self.kind == "jackknife":
            G = len(used)
            bias = (G - 1) * (mean - self.estimate)
            se = np.sqrt((G - 1) / G * np.sum((used - mean) ** 2, 0))
            from statistics import NormalDist

            wide = NormalDist().inv_cdf(0.5 + level / 2) * se
            lower, upper = self.estimate - wide, self.estimate + wide
        else:
            bias, se = mean - self.estimate, used.std(0, ddof=1)
            shares = np.tile([[0.5 - level / 2], [0.5 + level / 2]], len(mean))
            if jackknife is not None:
                shares = _accelerated(shares, np.mean(used < self.estimate, axis=0), jackknife)
            each = [np.quantile(values, share) for values, share in zip(used.T, shares.T, strict=True)]
            lower, upper = np.transpose(each)
        return native_table(self._native, {
            "parameter": text_column(self.parameters), "estimate": self.estimate, "bias": bias, "se": se,
            "lower": lower, "upper": upper,
        })  # fmt: skip

    def plot(self, level: float = 0.95, *, path=None):
        """Histograms of the replicates with estimates and intervals; see `jaxglmm.replicate_plots.histograms`."""
        from jaxglmm.replicate_plots import histograms

        return histograms(self, level, path=path)

    def __repr__(self) -> str:
        warned = f", {len(self.warnings):,} with warnings" if self.warnings else ""
        return f"<jaxglmm.Replicates: {self.kind}, {len(self.replicates):,}, {len(self.failed):,} failed{warned}>"


def _accelerated(shares, below, jackknife: Replicates):
    """Shares (2, P) of the replicates that bound BCa intervals: eq. 14.10 and 14.15 of Efron & Tibshirani.

    `below` (P,) is the share of the replicates below the estimate.
    """
    from scipy.special import ndtr, ndtri

    if jackknife.kind != "jackknife":
        raise DataError(f"jackknife: expected what Fit.jackknife returns; found replicates of kind {jackknife.kind!r}")
    left = jackknife.replicates[np.isfinite(jackknife.replicates).all(1)]
    apart = left.mean(0) - left
    with np.errstate(invalid="ignore"):
        acceleration = np.nan_to_num(np.sum(apart**3, 0) / (6 * np.sum(apart**2, 0) ** 1.5))
    bias = ndtri(np.clip(below, 1e-6, 1 - 1e-6))
    moved = bias + ndtri(shares)
    return ndtr(bias + moved / (1 - acceleration * moved))


def bootstrap(fit, n: int, kind: str, seed, progress) -> Replicates:
    """See `Fit.bootstrap`."""
    if not isinstance(n, int | np.integer) or n < 2:
        raise DataError(f"n must be a whole number of replicates, at least 2; found {n!r}")
    frame, options, wanted = prepare(fit, "bootstrap")
    rng = np.random.default_rng(seed)
    if kind == "parametric":
        from jaxglmm.batch import solver_of_responses

        frame = frame if fit.family.weight_is == "mean of copies" else _written_out(fit, frame)
        solver = solver_of_responses(frame, fit.family, options, wanted)
        solve = lambda which: solver.solve(simulate(fit.state, frame, len(which), rng).T)
        return _replicates(fit, kind, wanted, solve, n, solver.at_once, progress)
    frame = frame if frame.terms else _written_out(fit, frame)
    groups = _groups(frame)
    draw = lambda _: rng.integers(0, len(groups), len(groups))
    return _replicates(
        fit, kind, wanted, _resampler(fit, frame, options, wanted, groups, draw), n, _most(frame), progress
    )


def jackknife(fit, progress) -> Replicates:
    """See `Fit.jackknife`."""
    frame, options, wanted = prepare(fit, "jackknife")
    frame = frame if frame.terms else _written_out(fit, frame)
    groups = _groups(frame)
    every = np.arange(len(groups))
    leave = lambda g: np.delete(every, g)
    solve = _resampler(fit, frame, options, wanted, groups, leave)
    return _replicates(fit, "jackknife", wanted, solve, len(groups), _most(frame), progress)


def prepare(fit, what: str):
    """Frame, options and parameters of a fit whose replicates can be fitted.

    Raises
    ------
    DataError, NotYetError
    """
    from jaxglmm.batching.options import Options

    frame = fit._training(f"the {what}")
    if len(frame.terms) > 1:
        raise NotYetError(f"the {what} takes one grouping factor for now; the fit has {len(frame.terms)}")
    methods = {"laplace": "agq", "agq": "agq", "ml": "auto", "reml": "auto", "glm": "auto"}
    wanted = parameters(fit.state)
    held = frame.terms and not any(parameter.kind == "sd" for parameter in wanted)
    if fit.method not in methods or held or fit.state.estimate.penalised is not None:
        raise NotYetError(f"the {what} takes fits by maximum likelihood whose parameters are all estimated")
    return frame, Options(methods[fit.method], fit.n_agq, fit.method == "reml"), wanted


def _written_out(fit, frame):
    """The frame with each row as often as its weight says, where weights are copies.

    Raises
    ------
    DataError
        For weights that are not whole numbers.
    """
    weights = frame.weights
    if "copies" not in fit.family.weight_is or (weights == 1).all():
        return frame
    if (weights != np.floor(weights)).any() or weights.sum() > _MOST_COPIES:
        found = weights[weights != np.floor(weights)]
        what = f"{found[0]:g}" if len(found) else f"{weights.sum():g} in all"
        raise DataError(
            f"the bootstrap of a {fit.family.name} model draws the copies that its weights stand for: expected whole "
            f"numbers of them, at most {_MOST_COPIES:,}; found weights of {what}"
        )
    return of_rows(frame, np.repeat(np.arange(len(weights)), weights.astype(np.int64)), weights=1.0)


def of_rows(frame, rows, codes=None, weights=None):
    """Some rows of a frame, with other groups (a list, one a term) or one weight for all."""
    terms = tuple(
        replace(term, z=term.z[:, rows], codes=term.codes[rows] if codes is None else codes[k])
        for k, term in enumerate(frame.terms)
    )
    return replace(
        frame, y=frame.y[rows], offset=frame.offset[rows], terms=terms,
        weights=frame.weights[rows] if weights is None else np.full(len(rows), weights),
        columns=tuple(column[rows] for column in frame.columns), rows=np.arange(len(rows)), unweighted=None,
    )  # fmt: skip


def _groups(frame) -> list[np.ndarray]:
    """Rows of each group; every row by itself without random effects."""
    if not frame.terms:
        return list(np.arange(len(frame.y))[:, None])
    codes = frame.terms[0].codes
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])


def _most(frame) -> int:
    return max(_ROWS // max(len(frame.y), 1), 1)


def _resampler(fit, frame, options, wanted, groups, draw: Callable) -> Callable:
    """Fits of data sets made of the groups that `draw` gives for each replicate, each draw a group of its own."""
    from jaxglmm.batch import solve_strata
    from jaxglmm.batching.strata import Strata

    sizes = np.array([len(rows) for rows in groups])

    def solve(which):
        drawn = [draw(int(k)) for k in which]
        rows = np.concatenate([groups[g] for one in drawn for g in one])
        code = np.repeat(np.arange(len(which)), [sizes[one].sum() for one in drawn])
        own = np.concatenate([np.repeat(np.arange(len(one)), sizes[one]) for one in drawn]).astype(np.int32)
        resampled = of_rows(frame, rows, [own] * len(frame.terms))
        return solve_strata(Strata(resampled, np.arange(len(which)), code, {}), fit.family, options, wanted)

    return solve


def _replicates(fit, kind, wanted, solve, n, most, progress) -> Replicates:

    from jaxglmm.ops.threads import calm
    from jaxglmm.progress import Tally

    parts, failed, warned = [], {}, {}
    with Tally(n, progress) as line:
        for begin in range(0, n, most):
            which = np.arange(begin, min(begin + most, n))
            with computing(), calm():
                found = solve(which)
            parts.append(found.estimate)
            failed |= {int(k): reason for k, reason in zip(which, found.reasons, strict=True) if reason is not None}
            warned |= {int(k): texts for k, texts in zip(which, found.warnings, strict=True) if texts}
            line.add(len(which))
    names = [parameter.name for parameter in wanted]
    estimate = [value(parameter, fit.state) for parameter in wanted]
    return Replicates(kind, names, estimate, np.concatenate(parts), failed, warned, fit.state.native)
