"""The factors that quadrature does not reach: what nodes say of each of them, the others' effects at their modes."""

import numpy as np

from jaxglmm.design.rows import RowDesign
from jaxglmm.objectives.level_gap import level_gap
from jaxglmm.objectives.several import SeveralEvaluation
from jaxglmm.optimise.node_ladder import Look, Place, look, nodes_above


# Beyond so many rows a second and a third order of them are not laid out for this.
MOST_ROWS = 300_000


def look_elsewhere(
    family, design: RowDesign, psi, free, factors, u, value, hessian, plus: SeveralEvaluation | None = None
) -> Look | None:
    """Nodes for each factor but the largest in turn; what they change is added up.

    Parameters
    ----------
    psi : (m,)
        (beta, free entries of each Lambda, log dispersion).
    free : bool (m,)
    factors : list of (S, S)
        Lambda of each term.
    u : (q,)
        Standardised modes of all effects.
    value : float
    hessian : (m, m)
        In psi.
    plus : SeveralEvaluation, optional
        What nodes change for the largest factor.

    Returns
    -------
    Look or None
        None where there is nothing to look at, or too much.
    """
    if len(design.y) > MOST_ROWS:
        return None
    p, found, most = design.X.shape[1], [] if plus is None else [plus], 0
    for t in design.order[1:]:
        nodes = nodes_above(1, design.terms[t].n_effects)
        if nodes is not None and factors[t].any():
            found.append(level_gap(family, design, psi[:p], factors, psi[-1], u, 1, nodes, which=t))
            most = max(most, nodes)
    if not most:
        return None
    gradient = np.zeros(len(psi))
    for gap in found:
        entries = [change[t.covariance.entries] for t, change in zip(design.terms, gap.factors, strict=True)]
        gradient += np.concatenate([gap.beta, *entries, [gap.log_phi]])
    change = sum(gap.value for gap in found)
    return look(most, Place(psi, value, hessian), free, value + change, gradient)
