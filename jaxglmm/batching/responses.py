"""One design with many responses."""

import equinox as eqx
import jax
import numpy as np

from jaxglmm.batching.options import Options
from jaxglmm.design.batch import Batch, packed_layout
from jaxglmm.design.design import Design, RandomTerm, Scaling, column_scaling, scatter_columns
from jaxglmm.design.groups import row_index
from jaxglmm.fitted.lanes import LaneEstimates, columns_transform, marginal_estimates
from jaxglmm.fitting import quadrature_rule
from jaxglmm.model.covariance import Covariance
from jaxglmm.optimise.batch_fit import CAPACITIES, fit_lanes


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
        n = len(frame.X)
        self.covariance, terms = None, ()
        if term is None:
            index, self.layout = row_index(n)
        else:
            packing, self.layout = packed_layout(term.codes, len(term.levels))
            head = np.zeros(packing.n_slots, bool)
            head[self.layout.first] = True
            index, self.covariance = packing.index(head), Covariance(term.blocks)
            terms = (RandomTerm(index, self.layout.scatter(term.z / self.scaling.z_scale[:, None]), self.covariance),)
        self.design = Design(
            y=np.zeros(self.layout.n_slots), X=scatter_columns(frame.X, self.layout, self.scaling, float),
            offset=self.layout.scatter(frame.offset), weights=self.layout.scatter(frame.weights), terms=terms,
            index=index, constant=np.zeros(()),
        )  # fmt: skip
        owned = jax.tree.map(lambda _: False, self.design)
        self.owned = eqx.tree_at(lambda d: (d.y, d.constant), owned, (True, True))

    @property
    def at_once(self) -> int:
        return lanes_at_once(self.layout.n_slots)

    def solve(self, Y: np.ndarray) -> LaneEstimates:
        """Fit responses (B, n). Needs x64."""
        frame, B = self.frame, len(Y)
        y = np.repeat(Y[:, :1], self.layout.n_slots, axis=1)  # a slot without a row needs some valid response
        y[:, self.layout.slot] = Y
        constant_of = self.family.constant  # looked up once: an equinox module makes a new object each time
        constant = np.array([constant_of(row, frame.weights) for row in Y])
        stacked = eqx.tree_at(lambda d: (d.y, d.constant), self.design, (y, constant))
        n_agq, auto = 1, False
        if frame.terms:
            n_agq, auto = quadrature_rule(self.options.method, self.options.n_agq, frame.terms[0])
        solution = fit_lanes(
            self.family, Batch.of(stacked, self.owned), intercept=self.scaling.intercept, names=frame.names,
            n_agq=n_agq, auto=auto, tol=self.options.tol, max_iterations=self.options.max_iterations,
        )  # fmt: skip
        T = columns_transform(self.scaling.center[None], self.scaling.scale[None], self.scaling.intercept)
        groups = len(frame.terms[0].levels) if frame.terms else 0
        return marginal_estimates(
            solution, self.parameters, self.covariance, T, self.scaling.z_scale[None], np.full(B, len(frame.X)),
            np.full(B, groups),
        )  # fmt: skip
