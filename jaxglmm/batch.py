"""Very many fits of one model: one design with many responses, or one formula for many strata."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace

import numpy as np

from jaxglmm.arguments import flag, optional, path, takes, text
from jaxglmm.batching.gaussian import GaussianResponses, GaussianStrata
from jaxglmm.batching.options import Options
from jaxglmm.batching.parts import Parts, checksum
from jaxglmm.batching.responses import ResponseLanes
from jaxglmm.batching.strata import Strata
from jaxglmm.batching.stratum_lanes import StratumLanes
from jaxglmm.design.aliases import left_out, without_aliases
from jaxglmm.design.checks import check_frame
from jaxglmm.design.noiseless import NEED_NOISE, check_noise
from jaxglmm.design.sizes import outside, what_stands_out
from jaxglmm.errors import UNFINISHED, ColumnsError, DataError, DataWarning, NotYetError, reason_of
from jaxglmm.estimation import estimate_problem
from jaxglmm.fitted.fit import Fit
from jaxglmm.fitted.fits import Fits
from jaxglmm.fitted.lanes import LaneEstimates, model_parameters
from jaxglmm.fitting import RULES, check_options
from jaxglmm.formula.frame import ModelFrame, model_frame
from jaxglmm.formula.responses import open_responses
from jaxglmm.model.families import get_family
from jaxglmm.ops.columns import Columns
from jaxglmm.ops.computing import anywhere, computing
from jaxglmm.ops.layout import threads
from jaxglmm.ops.threads import calm
from jaxglmm.problem import make_problem
from jaxglmm.progress import Tally


@takes(**RULES, reml=flag, out=optional(path))
def fit_many(
    formula, data, *, responses, family="gaussian", method="auto", n_agq=None, reml=False, weights=None, offset=None,
    levels=None, full_rank=True, tol=1e-12, max_iterations=100, progress=None, out=None,
) -> Fits:  # fmt: skip
    """Fit one model to many responses: the columns and the groups are laid out once, the responses in blocks.

    Each response gets what `jaxglmm.fit` would find for it alone.

    Parameters
    ----------
    formula : str
        With an empty left side: "~ age + (1 | member)".
    data : table
        As in `jaxglmm.fit`.
    responses : list of str, table, or array (rows, B)
        Columns of `data`; or a table, or array, with a column for each response and the rows of `data`.
    family, method, n_agq, reml, weights, offset, levels, full_rank, tol, max_iterations
        As in `jaxglmm.fit`, the same for all fits.
    progress : bool, optional
        Show how many fits are done, how fast, and the time left; by default on a terminal, when it takes long.
    out : path, optional
        Folder that the estimates are written to as they come, in Parquet files with a row for each fit. A call that was
        cut off goes on from there when it is repeated.

    Returns
    -------
    Fits
        `by` is "response".

    Raises
    ------
    FormulaError, DataError
        For what concerns all fits. What concerns a single response (a missing value, no variation, separation) only
        marks that fit, see `Fits.failed`.
    NotYetError
        For several grouping factors.
    """
    began = time.perf_counter()
    family, options = get_family(family), Options(method, n_agq, reml, tol, max_iterations)
    check_options(family, method, n_agq, reml, None, None, "double", None)
    frame = model_frame(
        formula, data, family=family, weights=weights, offset=offset, levels=levels, full_rank=full_rank
    )
    if frame.y is not None:
        raise DataError(
            "fit_many takes a formula with an empty left side, as in '~ x + (1 | g)', and the responses apart; found "
            f"{formula!r}"
        )
    _one_factor(frame)
    # Some response that no check refuses: what is checked here is the design.
    any_response = lambda frame: replace(frame, y=np.linspace(0.25, 0.75, len(frame.X)))
    check_design = lambda frame: check_frame(any_response(frame), family, exact=True)
    try:
        check_design(frame)
    except ColumnsError as error:
        frame = without_aliases(frame, error)
        check_design(frame)
    source = open_responses(responses, data, frame.rows)
    labels, parameters = source.labels, model_parameters(frame.names, frame.terms, family)
    solver = solver_of_responses(frame, family, options, parameters)

    def frame_of(i, y=None):
        y = source.read(np.array([i]), family)[0][0] if y is None else y
        return replace(frame, y=y, spec=source.spec_of(frame.spec, i))

    columns, counting = Columns(frame.columns, len(frame.weights)), frame.weights > 0
    check = family.check_response  # looked up once: an equinox module makes a new object each time

    def solve(which):
        Y, reasons = source.read(which, family)
        used = Y[:, counting]
        alike = used.min(1) == used.max(1)
        weights = np.broadcast_to(frame.weights, Y.shape)
        suspect = reason_of(lambda: check(Y.ravel(), weights.ravel(), "response")) is not None
        extreme = outside(np.maximum(np.abs(used.min(1)), np.abs(used.max(1))), small=family.name == "gaussian")
        for k in range(len(which)) if suspect else np.flatnonzero(alike | extreme):
            if suspect and reasons[k] is None:
                reasons[k] = reason_of(lambda k=k: check(Y[k], frame.weights, str(labels[which[k]])))
            if reasons[k] is None and (alike[k] or extreme[k]):
                reasons[k] = reason_of(lambda k=k: check_frame(frame_of(which[k], Y[k]), family))
        for k in range(len(which)) if family.name in NEED_NOISE else ():
            if reasons[k] is None:
                reasons[k] = reason_of(lambda k=k: check_noise(frame_of(which[k], Y[k]), family, columns, counting))
        found = _solve_rest(reasons, lambda good: solver.solve(Y[good]), len(parameters))
        return _with_causes(found, lambda k: frame_of(which[k], Y[k]))

    everything = np.arange(len(labels))
    chunks = [everything[a : a + solver.at_once] for a in range(0, len(labels), solver.at_once)]
    names = [parameter.name for parameter in parameters]
    describe = lambda: _description("response", formula, family, options, frame)
    parts = Parts(out, describe, labels, names)
    estimates = _solve_all(chunks, solve, progress, parts, solver)
    return Fits(
        "response", labels, names, estimates, frame.native,
        lambda i: _fit_alone(frame_of(i), family, options), time.perf_counter() - began,
    )  # fmt: skip


@takes(**RULES, reml=flag, by=text, out=optional(path))
def fit_each(
    formula, data, *, by, family="gaussian", method="auto", n_agq=None, reml=False, weights=None, offset=None,
    levels=None, full_rank=True, tol=1e-12, max_iterations=100, progress=None, out=None,
) -> Fits:  # fmt: skip
    """Fit one model to every stratum of a table by itself.

    Each stratum gets what `jaxglmm.fit` would find for its rows alone, with the columns that the whole table gives
    (levels of factors, transformations); columns of factors for which its rows determine no estimate are left out there
    (`Fits.dropped`). Strata of like size are fitted together.

    Parameters
    ----------
    formula : str
    data : table
        As in `jaxglmm.fit`.
    by : str
        Column that tells the strata apart.
    family, method, n_agq, reml, weights, offset, levels, full_rank, tol, max_iterations
        As in `jaxglmm.fit`, the same for all fits.
    progress, out
        As in `fit_many`.

    Returns
    -------
    Fits
        In the order of the sorted values of `by`.

    Raises
    ------
    FormulaError, DataError
        For what concerns all fits. What concerns a single stratum (a missing value, one group only, a column that is
        constant there, separation) only marks that fit, see `Fits.failed`.
    NotYetError
        For several grouping factors.
    """
    began = time.perf_counter()
    family, options = get_family(family), Options(method, n_agq, reml, tol, max_iterations)
    check_options(family, method, n_agq, reml, None, None, "double", None)
    strata = Strata.read(formula, data, by, family, weights=weights, offset=offset, levels=levels, full_rank=full_rank)
    frame, labels = strata.frame, strata.labels
    _one_factor(frame)
    parameters = model_parameters(frame.names, frame.terms, family)
    solver, solve = _strata_solver(strata, family, options, parameters, fewer=True)
    names = [parameter.name for parameter in parameters]
    parts = Parts(out, lambda: _description(by, formula, family, options, frame, strata.code), labels, names)
    estimates = _solve_all(solver.chunks(), solve, progress, parts, solver)
    fits = Fits(
        by, labels, names, estimates, frame.native, lambda i: _fit_alone(strata.frame_of(i), family, options),
        time.perf_counter() - began,
    )  # fmt: skip
    if fewer := fits.dropped:
        label, columns = next(iter(fewer.items()))
        warnings.warn(
            f"the fixed effects are rank deficient in {len(fewer)} of {len(fits)} fits by {by!r}: columns of factors "
            f"left out, for which their data determine no estimate; of {by} {label!r} these are "
            f"{', '.join(map(repr, columns))} (see `dropped`)",
            DataWarning,
            stacklevel=3,
        )
    return fits


def solver_of_responses(frame: ModelFrame, family, options: Options, parameters):
    """What fits responses (B, n) of one frame by its `solve`, at most `at_once` of them."""
    if _is_linear(family):
        return GaussianResponses(frame, options, parameters)
    return ResponseLanes(frame, family, options, parameters)


def solve_strata(strata: Strata, family, options: Options, parameters) -> LaneEstimates:
    """Fit all strata. Needs x64."""
    solver, solve = _strata_solver(strata, family, options, parameters)
    chunks = list(solver.chunks())
    return LaneEstimates.joined([solve(which) for which in chunks], np.concatenate(chunks))


def _strata_solver(strata, family, options, parameters, fewer=False):
    """What fits strata, and a function that does so for some; with `fewer`, columns of factors are left out where
    that takes it."""
    solver = (GaussianStrata if _is_linear(family) else StratumLanes)(strata, family, options, parameters)
    P = len(parameters)

    def solve(which):
        rows = solver.read(which)
        reasons, kept = solver.judge(which, rows, fewer)
        whole = np.array([k for k in range(len(which)) if k not in kept], int)
        part = lambda good: rows if len(good) == len(which) else solver.read(which[good])
        found = [
            _solve_rest(
                [reasons[k] for k in whole], lambda good: solver.solve(which[whole[good]], part(whole[good])), P
            )
        ]
        order = [whole]
        for columns in dict.fromkeys(kept.values()):
            at = np.array([k for k in kept if kept[k] == columns])
            order.append(at)
            found.append(_with_fewer(strata.only(which[at], list(columns)), family, options, columns, P))
        found = LaneEstimates.joined(found, np.concatenate(order))
        return _with_causes(found, lambda k: strata.frame_of(int(which[k])))

    return solver, solve


def _with_fewer(strata, family, options, columns, n_parameters: int) -> LaneEstimates:
    """Fits of strata with some of the columns, in their places among all parameters."""
    frame = strata.frame
    found = solve_strata(strata, family, options, model_parameters(frame.names, frame.terms, family))
    others = n_parameters - found.estimate.shape[1] + len(columns)
    return found.among(np.concatenate([np.array(columns, int), np.arange(others, n_parameters)]), n_parameters)


def _is_linear(family) -> bool:
    return (family.name, family.link) == ("gaussian", "identity")


def _one_factor(frame: ModelFrame) -> None:
    if len(frame.terms) > 1:
        names = ", ".join(repr(term.group) for term in frame.terms)
        raise NotYetError(
            f"the formula has {len(frame.terms)} grouping factors ({names}), and many fits at once take one: keep one, "
            "join them as (1 | a:b), or call jaxglmm.fit in a loop"
        )


def _description(by, formula, family, options, frame, *more) -> dict:
    arrays = [frame.X, frame.weights, frame.offset, *(array for term in frame.terms for array in (term.codes, term.z))]
    arrays += [frame.y] if frame.y is not None else []
    return {
        "by": by, "formula": formula, "family": family.to_json(), "options": asdict(options),
        "data": checksum(*arrays, *more),
    }  # fmt: skip


def _solve_rest(reasons: list, solve: Callable, n_parameters: int) -> LaneEstimates:
    """Fit the lanes that nothing speaks against."""
    good = np.array([reason is None for reason in reasons], bool)
    bad = LaneEstimates.failed([reason for reason in reasons if reason is not None], n_parameters)
    if not good.any():
        return bad
    order = np.concatenate([np.flatnonzero(good), np.flatnonzero(~good)])
    return LaneEstimates.joined([_solve_apart(solve, np.flatnonzero(good), n_parameters), bad], order)


def _solve_apart(solve: Callable, lanes: np.ndarray, n_parameters: int) -> LaneEstimates:
    """Fit lanes together, or by halves where some system of theirs cannot be solved."""
    try:
        return solve(lanes)
    except np.linalg.LinAlgError as error:
        if len(lanes) == 1:
            return LaneEstimates.failed([f"{UNFINISHED} ({error})"], n_parameters)
    halves = np.array_split(lanes, 2)
    return LaneEstimates.joined([_solve_apart(solve, half, n_parameters) for half in halves], np.arange(len(lanes)))


def _with_causes(found: LaneEstimates, frame_of: Callable) -> LaneEstimates:
    """The same, with what stands out in the data where a search did not end."""
    for k, reason in enumerate(found.reasons):
        if reason is not None and reason.startswith(UNFINISHED):
            found.reasons[k] = f"{reason}: {what_stands_out(frame_of(k))}"
    return found


def _solve_all(chunks: Iterable[np.ndarray], solve: Callable, progress, parts: Parts, solver) -> LaneEstimates:
    """Fit chunk after chunk, those apart that were written before."""
    chunks = list(chunks)
    workers = solver.workers if len(chunks) > 1 else 1
    solver.threads = max(threads() // workers, 1)
    order = np.concatenate(chunks)

    def one(k):
        part = parts.load(k, chunks[k])
        if part is not None:
            return part, True
        with computing(), calm(), anywhere():
            part = solve(chunks[k])
        parts.save(k, chunks[k], part)
        return part, False

    found = {}
    with Tally(len(order), progress) as line, ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(one, k): k for k in range(len(chunks))}
        try:
            for done in as_completed(waiting):
                found[waiting[done]], skipped = done.result()
                line.add(len(chunks[waiting[done]]), skipped=skipped)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return LaneEstimates.joined([found[k] for k in range(len(chunks))], order)


def _fit_alone(frame: ModelFrame, family, options: Options) -> Fit:
    with computing(), calm(), anywhere():
        try:
            problem = make_problem(frame, family)
        except ColumnsError as error:
            frame = left_out(frame, error)
            problem = make_problem(frame, family)
        return Fit.from_training(problem, *estimate_problem(problem, **asdict(options)))
