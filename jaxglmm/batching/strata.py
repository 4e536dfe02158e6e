"""One model for many strata: the table taken apart, and strata of like size laid out alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace

import equinox as eqx
import jax
import numpy as np

from jaxglmm.batching.options import Options
from jaxglmm.batching.responses import MOST_NUMBERS
from jaxglmm.design.batch import Batch, Packing, pack
from jaxglmm.design.checks import check_frame
from jaxglmm.design.design import Design, RandomTerm
from jaxglmm.design.groups import round_up, row_index
from jaxglmm.errors import DataError
from jaxglmm.fitted.lanes import LaneEstimates, columns_transform, marginal_estimates
from jaxglmm.fitting import quadrature_rule
from jaxglmm.formula.frame import ModelFrame, TermFrame, model_frame
from jaxglmm.formula.levels import factorize
from jaxglmm.formula.table import open_table
from jaxglmm.model.covariance import Covariance
from jaxglmm.ops import lanes
from jaxglmm.optimise.batch_fit import CAPACITIES, fit_lanes


# Strata of one batch differ in rows and in groups by this factor at most.
_ALIKE = 1.5
# Below this share of a column's size, what other columns leave of it is looked at closely.
_SUSPECT = 1e-9


@dataclass(frozen=True)
class Strata:
    """A model frame and the stratum of each of its rows.

    Attributes
    ----------
    frame : ModelFrame
        Of all rows.
    labels : (B,)
    code : int (n,)
        Stratum of each row.
    incomplete : dict of int to str
        Strata that had rows with missing values, and which.
    """

    frame: ModelFrame
    labels: np.ndarray
    code: np.ndarray
    incomplete: dict[int, str]

    @classmethod
    def read(cls, formula, data, by: str, family, **options) -> Strata:
        """Apply the formula to the whole table, whatever its responses are; strata are checked one by one.

        Raises
        ------
        FormulaError, DataError
        """
        lenient = SimpleNamespace(name=family.name, check_response=lambda *_: None)
        table = open_table(data)
        frame = model_frame(formula, table, family=lenient, **options)
        if frame.y is None:
            raise DataError("the formula has no response: write it as 'y ~ ...'")
        columns, total = table.load([by])
        column = columns[by]
        if column.missing is not None:
            raise DataError(
                f"by={by!r} is missing in row {int(np.argmax(column.missing))} (counting from 0): every row belongs to "
                "a stratum; drop such rows"
            )
        codes, labels = factorize(column)
        dropped = np.setdiff1d(np.arange(total), frame.rows, assume_unique=True)
        found, first = np.unique(codes[dropped], return_index=True)
        names = ", ".join(repr(name) for name in frame.dropped_by)
        incomplete = {
            int(i): f"row {int(dropped[at])} (counting from 0) has a missing value; columns with such: {names}"
            for i, at in zip(found, first, strict=True)
        }
        return cls(frame, labels, codes[frame.rows], incomplete)

    @cached_property
    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows stratum by stratum (n,), and where each stratum begins (B + 1,)."""
        counts = np.bincount(self.code, minlength=len(self.labels))
        return np.argsort(self.code, kind="stable"), np.append(0, np.cumsum(counts))

    def frame_of(self, i: int) -> ModelFrame:
        """The frame of one stratum, with the levels that occur there."""
        order, begin = self.sorted
        frame, rows = self.frame, order[begin[i] : begin[i + 1]]
        terms, specs = [], []
        for term, spec in zip(frame.terms, frame.spec.terms, strict=True):
            present, codes = np.unique(term.codes[rows], return_inverse=True)
            terms.append(replace(term, levels=term.levels[present], codes=codes.astype(np.int32), z=term.z[:, rows]))
            grouping = spec.grouping
            if grouping.cells is None:
                grouping = replace(grouping, levels=(grouping.levels[0][present],))
            else:
                grouping = replace(grouping, cells=grouping.cells[present])
            specs.append(replace(spec, grouping=grouping))
        return replace(
            frame, y=frame.y[rows], weights=frame.weights[rows], offset=frame.offset[rows],
            columns=tuple(column[rows] for column in frame.columns),
            terms=tuple(terms), rows=frame.rows[rows], n_dropped=0, dropped_by={}, unweighted=None,
            spec=replace(frame.spec, terms=tuple(specs)),
        )  # fmt: skip


class Segments:
    """Rows sorted by stratum and group, and where each stratum and group begins.

    Attributes
    ----------
    order : int (n,)
        The frame's rows in that order.
    rows, groups, largest : int (B,)
        Rows and groups of each stratum, and rows of its largest group.
    """

    def __init__(self, strata: Strata, codes: np.ndarray):
        B = len(strata.labels)
        self.order = np.lexsort((codes, strata.code))
        self.stratum, codes = strata.code[self.order], codes[self.order]
        self.rows = np.bincount(self.stratum, minlength=B)
        self.begin = np.cumsum(self.rows) - self.rows
        new = np.append(True, (np.diff(self.stratum) != 0) | (np.diff(codes) != 0))
        first = np.flatnonzero(new)
        self.group = np.cumsum(new) - 1
        self.count = np.diff(np.append(first, len(codes)))
        self.within = np.arange(len(codes)) - first[self.group]
        self.of_group = self.stratum[first]
        self.groups = np.bincount(self.of_group, minlength=B)
        by_size = np.lexsort((-self.count, self.of_group))
        self.rank = np.empty(len(first), np.int64)
        self.rank[by_size] = np.arange(len(first)) - np.repeat(np.cumsum(self.groups) - self.groups, self.groups)
        self.largest = np.zeros(B, np.int64)
        np.maximum.at(self.largest, self.of_group, self.count)


class StratumLanes:
    """Fits of many strata by quadrature or Laplace's approximation, or without random effects."""

    def __init__(self, strata: Strata, family, options: Options, parameters):
        self.strata, self.family, self.options, self.parameters = strata, family, options, parameters
        frame = strata.frame
        self.term: TermFrame | None = frame.terms[0] if frame.terms else None
        codes = np.zeros(len(frame.y), np.int32) if self.term is None else self.term.codes
        self.at = Segments(strata, codes)
        constant = np.flatnonzero((frame.X.min(0) == frame.X.max(0)) & (frame.X[0] != 0)) if len(frame.X) else []
        self.intercept = int(constant[0]) if len(constant) else None
        self.covariance = None if self.term is None else Covariance(self.term.blocks)

    def chunks(self) -> Iterator[np.ndarray]:
        """Strata that are fitted together: of like size, the smallest first."""
        at = self.at
        scale = np.floor(np.log(np.maximum(at.rows, 1)) / np.log(_ALIKE)).astype(int)
        order = np.lexsort((at.groups, at.largest, scale))
        begin = 0
        while begin < len(order):
            lead = order[begin]
            most = max(self.lanes_at_once(lead), 1)
            part = order[begin : begin + most]
            alike = (scale[part] == scale[lead]) & (at.groups[part] <= _ALIKE * max(at.groups[lead], 4))
            end = begin + (len(part) if alike.all() else int(np.argmin(alike)))
            yield order[begin:end]
            begin = end

    def lanes_at_once(self, lead: int) -> int:
        slots = 3 * _ALIKE * max(int(self.at.rows[lead]), 8)
        return max([c for c in CAPACITIES if c * slots <= MOST_NUMBERS], default=CAPACITIES[0])

    # --- Which can be fitted -------------------------------------------------------------------------------

    def reasons(self, which: np.ndarray) -> list[str | None]:
        """Why a stratum cannot be fitted: those that look so are checked as a fit alone would be."""
        out: list[str | None] = [self.strata.incomplete.get(int(i)) for i in which]
        place, lane, begins = self._rows(which)
        rows = self.at.order[place]
        y, weights, X = (v[rows] for v in (self.strata.frame.y, self.strata.frame.weights, self.strata.frame.X))
        suspect = self.at.rows[which] < X.shape[1]
        suspect |= self.at.rows[which] == 0
        suspect |= self._bad_response(y, weights, lane, len(which))
        full = np.flatnonzero(self.at.rows[which] > 0)
        low, high = np.zeros((2, len(which)))
        low[full], high[full] = np.minimum.reduceat(y, begins), np.maximum.reduceat(y, begins)
        suspect |= (low == high) | (np.bincount(lane, weights <= 0, minlength=len(which)) > 0)
        suspect[full] |= self._bad_columns(X, begins)
        if self.term is not None:
            suspect |= (self.at.groups[which] < 2) | (self.at.largest[which] < 2)
        for k in np.flatnonzero(suspect & np.array([reason is None for reason in out])):
            out[k] = self._refusal(int(which[k]))
        return out

    def _bad_response(self, y, weights, lane, B) -> np.ndarray:
        try:
            self.family.check_response(y, weights, "response")
            return np.zeros(B, bool)
        except DataError:
            return np.ones(B, bool)

    def _bad_columns(self, X, begins) -> np.ndarray:
        """Strata in which columns may be zero, constant or combinations of others."""
        p = X.shape[1]
        counts = np.diff(np.append(begins, len(X)))
        gram = np.empty((p, p, len(begins)))
        mean = np.add.reduceat(X, begins) / counts[:, None]
        if self.intercept is not None:
            mean[:, self.intercept] = 0.0
            centred = X - np.repeat(mean, counts, axis=0)
        else:
            centred = X
        for j in range(p):
            gram[j] = np.add.reduceat(centred * centred[:, j : j + 1], begins).T
        with np.errstate(invalid="ignore", divide="ignore"):
            size = np.sqrt(np.einsum("iib->ib", gram))
            L = lanes.cholesky(gram / size[:, None] / size[None, :], least=_SUSPECT)
            # What centring leaves of a constant is rounding.
            constant = (size < 1e-7 * np.sqrt(counts) * (np.abs(mean.T) + 1e-300)) & (mean.T != 0)
        return ~np.isfinite(L).all((0, 1)) | constant.any(0)

    def _refusal(self, i: int) -> str | None:
        if not self.at.rows[i]:
            return "no complete row"
        frame = self.strata.frame_of(i)
        try:
            self.family.check_response(frame.y, frame.weights, frame.spec.formula.split("~")[0].strip())
            check_frame(frame, self.family)
        except DataError as error:
            return str(error)
        return None

    # --- Fitting -------------------------------------------------------------------------------------------

    def _rows(self, which):
        """Places in the sorted rows, stratum after stratum; lane of each; where those strata begin that have rows."""
        rows = self.at.rows[which]
        begins = np.cumsum(rows) - rows
        lane = np.repeat(np.arange(len(which)), rows)
        place = np.arange(rows.sum()) - begins[lane] + self.at.begin[which][lane]
        return place, lane, begins[rows > 0]

    def solve(self, which: np.ndarray) -> LaneEstimates:
        """Fit strata. Needs x64."""
        frame, B = self.strata.frame, len(which)
        place, lane, begins = self._rows(which)
        rows = self.at.order[place]
        if self.term is None:
            slots = round_up(int(self.at.rows[which].max()))
            index, layout = row_index(slots)
            slots, slot = layout.n_slots, self.at.within[place]
            head = None
        else:
            packing = self._packing(which)
            slots, rank = packing.n_slots, self.at.rank[self.at.group[place]]
            slot = packing.slots(rank, self.at.within[place])
            first = self.at.within[place] == 0
            head = np.zeros((B, slots), bool)
            head[lane[first], slot[first]] = True
            index = packing.index(head)
        weights, X = frame.weights[rows], frame.X[rows]
        center, scale = scaling_of(X, weights, begins, self.intercept)
        at = lane * slots + slot
        fill = lambda values, start=0.0: _fill(values, at, B, slots, start)
        z_scale, terms = np.ones((B, 0)), ()
        if self.term is not None:
            z = self.term.z[:, rows]
            z_scale = np.sqrt(np.add.reduceat(z * z, begins, axis=1) / self.at.rows[which]).T
            z_scale = np.where(z_scale > 0, z_scale, 1.0)
            stacked = np.stack([fill(v / z_scale[lane, a]) for a, v in enumerate(z)], axis=1)
            terms = (RandomTerm(index, stacked, self.covariance),)
        scaled = (X - center[lane]) / scale[lane]
        columns = np.zeros((B * slots, X.shape[1]))
        columns[at] = scaled
        y = frame.y[rows]
        design = Design(
            y=fill(y, y[begins][:, None]), X=columns.reshape(B, slots, -1), offset=fill(frame.offset[rows]),
            weights=fill(weights), terms=terms, index=index, constant=self._constants(y, weights, begins),
        )  # fmt: skip
        owned = jax.tree.map(lambda v: v is not None, design)
        indices = lambda d: [d.index, *(term.index for term in d.terms)]
        static = lambda i: [i.kind] + ([] if i.piece is None else [i.piece]) + ([i.head] if head is None else [])
        owned = eqx.tree_at(lambda d: [v for i in indices(d) for v in static(i)], owned, replace_fn=lambda _: False)
        n_agq, auto = 1, False
        if frame.terms:
            n_agq, auto = quadrature_rule(self.options.method, self.options.n_agq, frame.terms[0])
        solution = fit_lanes(
            self.family, Batch.of(design, owned), intercept=self.intercept, names=frame.names, n_agq=n_agq, auto=auto,
            tol=self.options.tol, max_iterations=self.options.max_iterations,
        )  # fmt: skip
        T = columns_transform(center, scale, self.intercept)
        groups = self.at.groups[which] if self.term is not None else np.zeros(B, int)
        return marginal_estimates(solution, self.parameters, self.covariance, T, z_scale, self.at.rows[which], groups)

    def _packing(self, which) -> Packing:
        """The envelope of some strata, its number of blocks rounded up so that batches share programs."""
        lane_of = np.full(len(self.strata.labels), -1)
        lane_of[which] = np.arange(len(which))
        mine = np.flatnonzero(lane_of[self.at.of_group] >= 0)
        profile = np.zeros((len(which), int(self.at.groups[which].max())), np.int64)
        profile[lane_of[self.at.of_group[mine]], self.at.rank[mine]] = self.at.count[mine]
        packing = pack(profile.max(0))
        short = round_up(packing.n_short)
        return replace(packing, kind=np.pad(packing.kind, (0, short - packing.n_short)), n_short=short)

    def _constants(self, y, weights, begins):
        ends = np.append(begins[1:], len(y))
        constant = self.family.constant
        return np.array([constant(y[a:b], weights[a:b]) for a, b in zip(begins, ends, strict=True)])


def _fill(values, at, B, slots, start):
    out = np.empty((B, slots))
    out[:] = start
    out.reshape(-1)[at] = values
    return out


def scaling_of(X, weights, begins, intercept) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale of each column in each stratum, as `design.column_scaling`."""
    total = np.add.reduceat(weights, begins)[:, None]
    counts = np.diff(np.append(begins, len(X)))
    center = np.add.reduceat(X * weights[:, None], begins) / total
    apart = np.square(X - np.repeat(center, counts, axis=0)) * weights[:, None]
    scale = np.sqrt(np.add.reduceat(apart, begins) / total)
    if intercept is None:
        scale, center = np.sqrt(np.square(scale) + np.square(center)), np.zeros_like(center)
    else:
        scale[:, intercept], center[:, intercept] = center[:, intercept], 0.0
    return center, np.where(scale != 0, scale, 1.0)
