"""What more quadrature nodes for one factor's effects change, the other factors' effects held at their modes.

Given the others' effects the levels of the factor are independent: two passes over its rows, with few nodes and with
many, whatever couples the factors elsewhere. What the others' log-determinant would change is left out.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.design import Design, make_design
from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.several import linear_predictor
from jaxglmm.objectives.marginal import gauss_hermite
from jaxglmm.objectives.quadrature import slot_gradient
from jaxglmm.objectives.several import SeveralEvaluation
from jaxglmm.ops import fused
from jaxglmm.ops.programs import program


def level_gap(
    family, design: RowDesign, beta, factors, log_phi, u, few: int, many: int, *, which: int | None = None
) -> SeveralEvaluation:
    """Log-likelihood with many nodes per effect of one factor minus that with few, and its gradient.

    Parameters
    ----------
    beta : (p,)
    factors : sequence of (S, S)
        Lambda of each term, in formula order.
    log_phi : float
    u : (q,)
        Standardised modes of all effects; those of the factor itself are not read.
    few, many : int
        1 is Laplace's approximation.
    which : int, optional
        The factor; the largest by default.
    """
    own_term = design.order[0] if which is None else which
    own, parts = design.terms[own_term], design.split(u)
    others = [np.zeros_like(f) if t == own_term else f for t, f in enumerate(factors)]
    eta = linear_predictor(design, design.offset + design.X @ beta, others, u)
    n, z = len(design.y), np.stack([np.ones(len(design.y)) if v is None else v for v in own.z])
    tiles, layout = make_design(
        design.y, np.zeros((n, 0)), weights=design.weights, codes=own.codes, n_groups=own.n_levels, z=z
    )
    tiles, native = jax.device_put(tiles), fused.covers(family, tiles)

    def at(count):
        rule = gauss_hermite(count, own.n_effects)
        found = _by_eta(family, int(rule.count), native, tiles, rule, factors[own_term], log_phi, layout.scatter(eta))
        return [np.asarray(v) for v in found]

    value, by_eta, by_factor, by_phi = (above - below for above, below in zip(at(many), at(few), strict=True))
    by_eta = by_eta[layout.slot]
    gradients = [
        by_factor if t == own_term else term.sums(by_eta).T @ part
        for t, (term, part) in enumerate(zip(design.terms, parts, strict=True))
    ]
    return SeveralEvaluation(float(value), design.X.T @ by_eta, gradients, float(by_phi), u)


@program(static=("family", "count", "native"))
def _by_eta(family, count, native, design: Design, nodes, factor, log_phi, eta):
    """Value, and its derivatives in eta (n_slots,), Lambda (S, S) and log dispersion."""
    return slot_gradient(
        family, count, True, native, eta, jnp.asarray(factor), log_phi, design.y, design.weights,
        design.terms[0].z, design.index, nodes,
    )  # fmt: skip
