"""Fits of many strata: which can be fitted, which together, and how their rows are laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import equinox as eqx
import jax
import numpy as np

from jaxglmm.batching.options import Options
from jaxglmm.batching.responses import MOST_NUMBERS
from jaxglmm.batching.rows import constants, group_begins, lane_rows, natively_at_once, row_pieces
from jaxglmm.batching.strata import Segments, Strata
from jaxglmm.design.batch import Batch, Packing, pack
from jaxglmm.design.checks import check_frame
from jaxglmm.design.design import Design, RandomTerm
from jaxglmm.design.groups import round_up, row_index
from jaxglmm.errors import DataError
from jaxglmm.estimation import quadrature_rule
from jaxglmm.fitted.lanes import LaneEstimates, columns_transform, marginal_estimates
from jaxglmm.formula.frame import TermFrame
from jaxglmm.model.covariance import Covariance
from jaxglmm.ops import lane_pass, lanes
from jaxglmm.ops.layout import threads
from jaxglmm.optimise.batch_fit import fit_lanes
from jaxglmm.optimise.batch_lanes import CAPACITIES, DesignLanes, RowLanes


# Strata of one batch differ in rows and in groups by this factor at most.
_ALIKE = 1.5
# Below this share of a column's size, what other columns leave of it is looked at closely.
_SUSPECT = 1e-9
# Rows that tell which columns may be constant.
_FEW = 1000


class StratumLanes:
    """Fits of many strata by quadrature or Laplace's approximation, or without random effects."""

    def __init__(self, strata: Strata, family, options: Options, parameters):
        self.strata, self.family, self.options, self.parameters = strata, family, options, parameters
        frame = strata.frame
        self.term: TermFrame | None = frame.terms[0] if frame.terms else None
        codes = np.zeros(len(frame.y), np.int32) if self.term is None else self.term.codes
        self.at = Segments(strata, codes)
        likely = (
            np.flatnonzero((frame.X[:_FEW] == frame.X[:1]).all(0) & (frame.X[:1] != 0).all(0)) if len(frame.X) else []
        )
        constant = [j for j in likely if (frame.X[:, j] == frame.X[0, j]).all()]
        self.intercept = int(constant[0]) if len(constant) else None
        self.covariance = None if self.term is None else Covariance(self.term.blocks)
        self.threads = threads()
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
        weights, X = frame.weights[rows], frame.X[rows]
        center, scale = scaling_of(X, weights, begins, self.intercept)
        X -= center[lane]
        X /= scale[lane]
        z, z_scale = np.ones((0, len(rows))), np.ones((B, 0))
        if self.term is not None:
            z = self.term.z[:, rows]
            z_scale = np.sqrt(np.add.reduceat(z * z, begins, axis=1) / self.at.rows[which]).T
            z_scale = np.where(z_scale > 0, z_scale, 1.0)
            z /= z_scale[lane].T
        lay_out = self._native if self.is_native(which) else self._compiled
        solution = fit_lanes(
            self.family, lay_out(which, frame.y[rows], X, weights, frame.offset[rows], z), intercept=self.intercept,
            names=frame.names, n_agq=self.n_agq, auto=self.auto, tol=self.options.tol,
            max_iterations=self.options.max_iterations,
        )  # fmt: skip
        T = columns_transform(center, scale, self.intercept)
        groups = self.at.groups[which] if self.term is not None else np.zeros(B, int)
        return marginal_estimates(solution, self.parameters, self.covariance, T, z_scale, self.at.rows[which], groups)

    def is_native(self, which) -> bool:
        """Whether the native library takes these strata together."""
        largest, one_node = int(self.at.largest[which].max(initial=1)), self.n_agq == 1 and not self.auto
        effects = 0 if self.term is None else len(self.term.z)
        return lane_pass.covers(self.family, effects, self.strata.frame.X.shape[1], largest, one_node)

    def _native(self, which, y, X, weights, offset, z) -> RowLanes:
        begins = np.cumsum(self.at.rows[which]) - self.at.rows[which]
        if self.term is None:
            begin = row_pieces(self.at.rows[which])
        else:
            counts = np.zeros((len(which), int(self.at.groups[which].max())), np.int64)
            G = self.at.groups[which]
            lane = np.repeat(np.arange(len(which)), G)
            rank = np.arange(G.sum()) - np.repeat(np.cumsum(G) - G, G)
            counts[lane, rank] = self.at.count[self.at.first_group[which][lane] + rank]
            begin = group_begins(counts)
        rows = lane_rows(
            y,
            X,
            weights,
            offset,
            z,
            design_row=begins,
            response_row=begins,
            begin=begin,
            shared=False,
            threads=self.threads,
        )
        return RowLanes(self.family, rows, self.covariance or Covariance(()), self._constants(y, weights, begins))

    def _compiled(self, which, y, X, weights, offset, z) -> DesignLanes:
        B = len(which)
        place, lane, begins = self._rows(which)
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
        terms = () if self.term is None else (RandomTerm(index, np.stack([fill(v) for v in z], 1), self.covariance),)
        columns = np.zeros((B * slots, X.shape[1]))
        columns[at] = X
        design = Design(
            y=fill(y, y[begins][:, None]), X=columns.reshape(B, slots, -1), offset=fill(offset), weights=fill(weights),
            terms=terms, index=index, constant=self._constants(y, weights, begins),
        )  # fmt: skip
        owned = jax.tree.map(lambda v: v is not None, design)
        indices = lambda d: [d.index, *(term.index for term in d.terms)]
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

    def _constants(self, y, weights, begins):
        ends = np.append(begins[1:], len(y))
        return constants(self.family, [y[a:b] for a, b in zip(begins, ends, strict=True)], weights, begins)


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
