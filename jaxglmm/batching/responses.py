"""One design with many responses."""

from dataclasses import replace

import equinox as eqx
import jax
import numpy as np

from jaxglmm.batching.options import Options
from jaxglmm.batching.rows import constants, group_begins, lane_rows, natively_at_once, row_pieces
from jaxglmm.design.batch import Batch, packed_layout
from jaxglmm.design.design import Design, RandomTerm, Scaling, column_scaling, scatter_columns
from jaxglmm.design.groups import row_index
from jaxglmm.estimation import quadrature_rule, tell_of_lanes
from jaxglmm.fitted.lanes import LaneEstimates, columns_transform, marginal_estimates
from jaxglmm.model.covariance import Covariance
from jaxglmm.ops import lane_pass
from jaxglmm.ops.layout import threads
from jaxglmm.optimise.batch_fit import fit_lanes
from jaxglmm.optimise.batch_lanes import CAPACITIES, DesignLanes, RowLanes


# Numbers in an array that holds all slots of all lanes that are fitted together.
MOST_NUMBERS = 4_000_000


def lanes_at_once(slots: int) -> int:
    """How many designs of so many slots are fitted together."""
    return max([c for c in CAPACITIES if c * slots <= MOST_NUMBERS], default=CAPACITIES[0])


class ResponseLanes:
    """Fits of one design by quadrature or Laplace's approximation, or without random effects.

    Parameters
    ----------
    frame : ModelFrame
        Its response is not read.
    family : AbstractFamily
    options : Options
    parameters : list of Parameter
    """

    def __init__(self, frame, family, options: Options, parameters):
        self.frame, self.family, self.options, self.parameters = frame, family, options, parameters
        term = frame.terms[0] if frame.terms else None
        self.scaling: Scaling = column_scaling(frame.X, frame.weights, None if term is None else term.z)
        self.covariance = None if term is None else Covariance(term.blocks)
        self.threads = threads()
        self.n_agq, self.auto = 1, False
        if term is not None:
            self.n_agq, self.auto = quadrature_rule(options.method, options.n_agq, term)
        largest = 1 if term is None else int(np.bincount(term.codes).max())
        self.native = lane_pass.covers(family, 0 if term is None else len(term.z), frame.X.shape[1], largest)
        (self._lay_out_rows if self.native else self._lay_out_design)(term)

    @property
    def workers(self) -> int:
        """How many blocks at a time: programs would be compiled twice, and have threads of their own."""
        return 2 if self.native else 1

    @property
    def at_once(self) -> int:
        """How many responses are fitted together."""
        return natively_at_once(len(self.frame.X)) if self.native else lanes_at_once(self.layout.n_slots)

    def solve(self, Y: np.ndarray) -> LaneEstimates:
        """Fit responses (B, n). Needs x64."""
        frame, B = self.frame, len(Y)
        constant = constants(self.family, Y.ravel(), np.arange(B + 1) * Y.shape[1], frame.weights)
        solution = fit_lanes(
            self.family, (self._native if self.native else self._compiled)(Y, constant),
            intercept=self.scaling.intercept, names=frame.names, n_agq=self.n_agq, auto=self.auto,
            tol=self.options.tol, max_iterations=self.options.max_iterations,
        )  # fmt: skip
        T = columns_transform(self.scaling.center[None], self.scaling.scale[None], self.scaling.intercept)
        groups = len(frame.terms[0].levels) if frame.terms else 0
        if frame.terms:
            tell_of_lanes(solution, frame.names, frame.terms[0], self.family, climbed=self.auto)
        return marginal_estimates(
            solution, self.parameters, self.covariance, T, self.scaling.z_scale[None], np.full(B, len(frame.X)),
            np.full(B, groups),
        )  # fmt: skip

    # --- For the native library ----------------------------------------------------------------------------

    def _lay_out_rows(self, term):
        frame, scaling = self.frame, self.scaling
        if term is None:
            self.order, begin = np.arange(len(frame.X)), row_pieces(np.array([len(frame.X)]))
        else:
            counts = np.bincount(term.codes)
            by_size = np.argsort(-counts, kind="stable")
            rank = np.empty_like(by_size)
            rank[by_size] = np.arange(len(counts))
            self.order = np.argsort(rank[term.codes], kind="stable")
            begin = group_begins(counts[by_size][None])
        z = np.ones((0, len(frame.X))) if term is None else term.z[:, self.order] / scaling.z_scale[:, None]
        self.rows = lane_rows(
            np.zeros(0), (frame.X[self.order] - scaling.center) / scaling.scale, frame.weights[self.order],
            frame.offset[self.order], z, design_row=np.zeros(0), response_row=np.zeros(0), begin=begin, shared=True,
            threads=self.threads,
        )  # fmt: skip

    def _native(self, Y, constant) -> RowLanes:
        B, n = Y.shape
        rows = replace(
            self.rows, y=np.take(Y, self.order, axis=1).ravel(), design_row=np.zeros(B, np.int64),
            response_row=np.arange(B) * n, threads=self.threads,
        )  # fmt: skip
        return RowLanes(self.family, rows, self.covariance or Covariance(()), constant)

    # --- For compiled programs -----------------------------------------------------------------------------

    def _lay_out_design(self, term):
        frame, terms = self.frame, ()
        if term is None:
            index, self.layout = row_index(len(frame.X))
        else:
            packing, self.layout = packed_layout(term.codes, len(term.levels))
            head = np.zeros(packing.n_slots, bool)
            head[self.layout.first] = True
            index = packing.index(head)
            terms = (RandomTerm(index, self.layout.scatter(term.z / self.scaling.z_scale[:, None]), self.covariance),)
        self.design = Design(
            y=np.zeros(self.layout.n_slots), X=scatter_columns(frame.X, self.layout, self.scaling, float),
            offset=self.layout.scatter(frame.offset), weights=self.layout.scatter(frame.weights), terms=terms,
            index=index, constant=np.zeros(()),
        )  # fmt: skip
        owned = jax.tree.map(lambda _: False, self.design)
        self.owned = eqx.tree_at(lambda d: (d.y, d.constant), owned, (True, True))

    def _compiled(self, Y, constant) -> DesignLanes:
        y = np.repeat(Y[:, :1], self.layout.n_slots, axis=1)  # a slot without a row needs some valid response
        y[:, self.layout.slot] = Y
        stacked = eqx.tree_at(lambda d: (d.y, d.constant), self.design, (y, constant))
        return DesignLanes(self.family, Batch.of(stacked, self.owned))
