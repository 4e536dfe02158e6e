"""Where a large fit of nested factors begins: at the fit of some levels of the coarsest factor, with all below them."""

from dataclasses import replace

import numpy as np

from jaxglmm.design.rows import RowDesign, RowTerm, parent_pairs


# Rows of a design that is sampled, the share and the fewest rows of a sample, and the fewest of its coarsest levels.
_MANY_ROWS, _SHARE, _FEWEST_ROWS, _FEWEST_LEVELS = 150_000, 0.04, 20_000, 30


def sample_levels(design: RowDesign) -> RowDesign | None:
    """The rows of coarsest levels spread evenly over their numbers.

    Returns
    -------
    RowDesign or None
        None where the factors cross, or the design is too small to make it worthwhile.
    """
    n = len(design.y)
    if not design.nested or n < _MANY_ROWS:
        return None
    coarsest = design.terms[design.order[-1]]
    wanted = int(np.ceil(coarsest.n_levels * max(_SHARE, _FEWEST_ROWS / n)))
    wanted = max(wanted, _FEWEST_LEVELS)
    if 3 * wanted > coarsest.n_levels:
        return None
    chosen = np.zeros(coarsest.n_levels, bool)
    chosen[((np.arange(wanted) + 0.5) * coarsest.n_levels / wanted).astype(int)] = True
    rows = np.flatnonzero(chosen[coarsest.codes])
    if len(rows) > n // 3 or not design.weights[rows].any():
        return None
    terms = tuple(_part(term, rows) for term in design.terms)
    pairs = {(t, u): parent_pairs(terms[t], terms[u]) for t, u in design.pairs}
    return replace(
        design, y=design.y[rows], X=design.X[rows], offset=design.offset[rows], weights=design.weights[rows],
        terms=terms, pairs=pairs, constant=0.0,
    )  # fmt: skip


def _part(term: RowTerm, rows) -> RowTerm:
    codes = term.codes[rows]
    present = np.zeros(term.n_levels, bool)
    present[codes] = True
    number = np.cumsum(present) - 1
    z = tuple(None if v is None else v[rows] for v in term.z)
    return replace(term, codes=number[codes], n_levels=int(present.sum()), z=z)
