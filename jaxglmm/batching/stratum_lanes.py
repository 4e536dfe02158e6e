"""Fits of many strata: which can be fitted, which together, and how their rows are laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import equinox as eqx
import jax
import numpy as np

from jaxglmm.batching.options import Options
from jaxglmm.batching.responses import MOST_NUMBERS
from jaxglmm.batching.rows import constants, group_begins, natively_at_once, row_pieces
from jaxglmm.batching.strata import Strata
from jaxglmm.design.aliases import left_out
from jaxglmm.design.batch import Batch, Packing, pack
from jaxglmm.design.checks import check_frame
from jaxglmm.design.design import Design, RandomTerm
from jaxglmm.design.groups import round_up, row_index
from jaxglmm.design.sizes import LARGEST, NOTHING, RULES, WHOLE, outside
from jaxglmm.errors import ColumnsError, DataError, reason_of
from jaxglmm.estimation import quadrature_rule, tell_of_lanes
from jaxglmm.fitted.lanes import LaneEstimates, columns_transform, marginal_estimates
from jaxglmm.formula.frame import TermFrame
from jaxglmm.model.covariance import Covariance
from jaxglmm.ops import lane_pass
from jaxglmm.ops.lane_pass import LaneRows
from jaxglmm.ops.layout import threads
from jaxglmm.ops.measure import all_ones
from jaxglmm.ops.stratum_rows import Segments, Source, StratumRows, gather
from jaxglmm.optimise.batch_fit import fit_lanes
from jaxglmm.optimise.batch_lanes import CAPACITIES, DesignLanes, RowLanes


# Strata of one batch differ in rows and in groups by this factor at most.
_ALIKE = 1.5


class StratumLanes:
    """Fits of many strata by quadrature or Laplace's approximation, or without random effects."""

    def __init__(self, strata: Strata, family, options: Options, parameters):
        self.strata, self.family, self.options, self.parameters = strata, family, options, parameters
        frame = strata.frame
        self.term: TermFrame | None = frame.terms[0] if frame.terms else None
        codes = np.zeros(len(frame.y), np.int32) if self.term is None else self.term.codes
        constant = np.flatnonzero(frame.moments.constant & (frame.moments.low != 0)) if len(codes) else []
        self.intercept = int(constant[0]) if len(constant) else None
        self.covariance = None if self.term is None else Covariance(self.term.blocks)
        self.threads = threads()
        self.at = Segments(strata.code, codes, len(strata.labels), self.threads)
        z = None if self.term is None or (self.term.z == 1).all() else self.term.z
        self.source = Source(
            y=frame.y, columns=frame.columns, weights=None if all_ones(frame.weights) else frame.weights,
            offset=frame.offset if frame.offset.any() else None, z=z,
            effects=0 if self.term is None else len(self.term.z), intercept=self.intercept,
        )  # fmt: skip
        self.n_agq, self.auto = 1, False
        if frame.terms:
            self.n_agq, self.auto = quadrature_rule(options.method, options.n_agq, frame.terms[0])

    @property
    def workers(self) -> int:
        """How many chunks at a time: programs would be compiled twice, and have threads of their own."""
        return 2 if self.is_native(np.arange(len(self.at.rows))) else 1

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
            if self.is_native(part[:1]) and not self.is_native(part):
                alike &= at.largest[part] <= lane_pass.MOST_PAIRED_ROWS
            end = begin + (len(part) if alike.all() else int(np.argmin(alike)))
            yield order[begin:end]
            begin = end

    def lanes_at_once(self, lead: int) -> int:
        if self.is_native(np.array([lead])):
            return natively_at_once(int(self.at.rows[lead]))
        slots = 3 * _ALIKE * max(int(self.at.rows[lead]), 8)
        return max([c for c in CAPACITIES if c * slots <= MOST_NUMBERS], default=CAPACITIES[0])

    # --- Which can be fitted -------------------------------------------------------------------------------

    def read(self, which: np.ndarray) -> StratumRows:
        """Their rows, with what speaks against fitting them."""
        return gather(self.source, self.at.order[self._places(which)], self.at.rows[which], self.threads)

    def judge(self, which: np.ndarray, rows: StratumRows, fewer: bool) -> tuple[list[str | None], dict]:
        """Why strata cannot be fitted: those that look so are checked as a fit alone would be.

        With `fewer`, those that can be fitted without some columns of factors, as `jaxglmm.fit` leaves them out, are
        told by the columns (k,) that they keep.
        """
        out: list[str | None] = [self.strata.incomplete.get(int(i)) for i in which]
        kept = {}
        suspect = rows.suspect | self._bad_response(rows) | self._extreme(rows)
        if self.term is not None:
            count, groups, S = self.at.rows[which], self.at.groups[which], len(self.term.z)
            suspect |= (groups < 2) | (self.at.largest[which] < 2)
            suspect |= (groups <= len(self.strata.frame.columns)) | ((S > 1) & (count <= groups * S))
            if S > 1:
                suspect |= ~self._varies_in_levels(which, rows)
        for k in np.flatnonzero(suspect):
            if out[k] is None:
                try:
                    kept[int(k)] = self._checked(int(which[k]), fewer)
                except DataError as error:
                    out[k] = str(error)
        every = tuple(range(len(self.strata.frame.columns)))
        return out, {k: columns for k, columns in kept.items() if columns != every}

    def _varies_in_levels(self, which: np.ndarray, rows: StratumRows) -> np.ndarray:
        """Whether some column of the effects varies within some level of a stratum."""
        assert rows.z is not None
        first = np.flatnonzero(self.at.within[self._places(which)] == 0)
        varies = np.minimum.reduceat(rows.z, first, axis=1) < np.maximum.reduceat(rows.z, first, axis=1)
        return np.bincount(rows.lane[first], varies.any(0), minlength=len(which)) > 0

    def _bad_response(self, rows: StratumRows) -> bool:
        weights = rows.ones if rows.weights is None else rows.weights
        return reason_of(lambda: self.family.check_response(rows.y, weights, "response")) is not None

    def _extreme(self, rows: StratumRows) -> np.ndarray:
        """Strata (B,) with numbers whose sizes may be beyond what can be computed with."""
        full = np.diff(rows.begin) > 0
        begins = rows.begin[:-1][full]
        largest = lambda v: np.maximum.reduceat(np.abs(v), begins)
        out = np.any(outside(np.abs(rows.center) + rows.scale), axis=1, keepdims=True)[:, 0]
        out[full] |= outside(largest(rows.y), small=self.family.name == "gaussian")
        if rows.offset is not None:
            out[full] |= outside(largest(rows.offset), small=False)
        if rows.z is not None:
            out |= outside(rows.z_scale).any(1)
        if rows.weights is not None:
            high = largest(rows.weights)
            least, most = (0.0, LARGEST) if self.family.name == "gaussian" else (NOTHING, WHOLE)
            out[full] |= (
                outside(high)
                | (high < least)
                | (high > np.minimum(most, RULES * np.minimum.reduceat(rows.weights, begins)))
            )
        return out

    def _checked(self, i: int, fewer: bool) -> tuple[int, ...]:
        """Columns that a stratum can be fitted with.

        Raises
        ------
        DataError
            Where there are none.
        """
        if not self.at.rows[i]:
            raise DataError("no complete row")
        frame = self.strata.frame_of(i)
        self.family.check_response(frame.y, frame.weights, frame.spec.response_text, frame.rows)
        try:
            check_frame(frame, self.family)
        except ColumnsError as error:
            if not fewer:
                raise
            rest = left_out(frame, error)
            check_frame(rest, self.family)
            return tuple(frame.names.index(name) for name in rest.names)
        return tuple(range(len(frame.names)))

    # --- Fitting -------------------------------------------------------------------------------------------

    def _places(self, which):
        """Places in the sorted rows, stratum after stratum."""
        rows = self.at.rows[which]
        return np.arange(rows.sum()) + np.repeat(self.at.begin[which] - (np.cumsum(rows) - rows), rows)

    def solve(self, which: np.ndarray, rows: StratumRows) -> LaneEstimates:
        """Fit strata. Needs x64."""
        if rows.z is not None:
            rows.z /= rows.z_scale[rows.lane].T
        lay_out = self._native if self.is_native(which) else self._compiled
        solution = fit_lanes(
            self.family, lay_out(which, rows), intercept=self.intercept, names=self.strata.frame.names,
            n_agq=self.n_agq, auto=self.auto, tol=self.options.tol, max_iterations=self.options.max_iterations,
        )  # fmt: skip
        if self.term is not None:
            tell_of_lanes(solution, self.strata.frame.names, self.term, self.family, climbed=self.auto)
        T = columns_transform(rows.center, rows.scale, self.intercept)
        groups = self.at.groups[which] if self.term is not None else np.zeros(len(which), int)
        z_scale = rows.z_scale
        return marginal_estimates(solution, self.parameters, self.covariance, T, z_scale, self.at.rows[which], groups)

    def is_native(self, which) -> bool:
        """Whether the native library takes these strata together."""
        largest = int(self.at.largest[which].max(initial=1))
        effects = 0 if self.term is None else len(self.term.z)
        return lane_pass.covers(self.family, effects, len(self.strata.frame.columns), largest)

    def _native(self, which, rows: StratumRows) -> RowLanes:
        if self.term is None:
            begin = row_pieces(self.at.rows[which])
        else:
            counts = np.zeros((len(which), int(self.at.groups[which].max())), np.int64)
            G = self.at.groups[which]
            lane = np.repeat(np.arange(len(which)), G)
            rank = np.arange(G.sum()) - np.repeat(np.cumsum(G) - G, G)
            counts[lane, rank] = self.at.count[self.at.first_group[which][lane] + rank]
            begin = group_begins(counts)
        lane_rows = LaneRows(
            X=rows.X, y=rows.y, weights=rows.weights, offset=rows.offset, z=rows.z, effects=self.source.effects,
            design_row=rows.begin[:-1], response_row=rows.begin[:-1], begin=begin, shared=False, threads=self.threads,
        )  # fmt: skip
        constant = constants(self.family, rows.y, rows.begin, rows.weights)
        return RowLanes(self.family, lane_rows, self.covariance or Covariance(()), constant)

    def _compiled(self, which, rows: StratumRows) -> DesignLanes:
        B = len(which)
        place, lane, begins = self._places(which), rows.lane, rows.begin[:-1]
        if self.term is None:
            index, layout = row_index(round_up(int(self.at.rows[which].max())))
            slots, slot, head = layout.n_slots, self.at.within[place], None
        else:
            packing = self._packing(which)
            slots, rank = packing.n_slots, self.at.rank[self.at.group[place]]
            slot = packing.slots(rank, self.at.within[place])
            first = self.at.within[place] == 0
            head = np.zeros((B, slots), bool)
            head[lane[first], slot[first]] = True
            index = packing.index(head)
        at = lane * slots + slot
        fill = lambda values, start=0.0: _fill(values, at, B, slots, start)
        z = np.ones((self.source.effects, len(at))) if rows.z is None else rows.z
        terms = () if self.term is None else (RandomTerm(index, np.stack([fill(v) for v in z], 1), self.covariance),)
        columns = np.zeros((B * slots, rows.X.shape[1]))
        columns[at] = rows.X
        design = Design(
            y=fill(rows.y, rows.y[begins][:, None]), X=columns.reshape(B, slots, -1),
            offset=fill(0.0 if rows.offset is None else rows.offset),
            weights=fill(1.0 if rows.weights is None else rows.weights),
            terms=terms, index=index, constant=constants(self.family, rows.y, rows.begin, rows.weights),
        )  # fmt: skip
        owned = jax.tree.map(lambda v: v is not None, design)
        indices = lambda d: [d.index, *(d.terms[k].index for k in range(len(terms)))]  # an empty tuple is a leaf here
        static = lambda i: [i.kind] + ([] if i.piece is None else [i.piece]) + ([i.head] if head is None else [])
        owned = eqx.tree_at(lambda d: [v for i in indices(d) for v in static(i)], owned, replace_fn=lambda _: False)
        return DesignLanes(self.family, Batch.of(design, owned))

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


def _fill(values, at, B, slots, start):
    out = np.empty((B, slots))
    out[:] = start
    out.reshape(-1)[at] = values
    return out
