"""Rows of two nested factors in tile storage: groups of the finer one, sorted by the coarser one's level."""

from dataclasses import dataclass, replace

import jax
import numpy as np

from jaxglmm.design.design import Design, Scaling, make_design
from jaxglmm.design.groups import Layout
from jaxglmm.design.pairs import level_order, nesting_chain
from jaxglmm.model.covariance import Covariance
from jaxglmm.ops.columns import Columns


# Rows that a coarse level has in the mean at least: what is kept of each is then no more than the rows.
_LEAST_ROWS = 3
# Rows of a design that is sampled, the share and the fewest rows of a sample; the fewest groups that a coarse level has
# in it in the mean, or the fewest levels of a sample of whole levels.
_MANY_ROWS, _SHARE, _FEWEST_ROWS, _FEWEST_GROUPS, _FEWEST_LEVELS = 150_000, 0.04, 20_000, 5, 30


@dataclass(frozen=True)
class NestedTerm:
    """A factor with an intercept each: `RowTerm` without its rows."""

    n_levels: int
    z_scale: np.ndarray
    covariance: Covariance

    @property
    def n_effects(self) -> int:
        return 1

    def factor_to_columns(self, factor: np.ndarray) -> np.ndarray:
        """Lambda for z as given from Lambda for scaled z."""
        return factor / self.z_scale[:, None]

    def factor_from_columns(self, factor: np.ndarray) -> np.ndarray:
        return factor * self.z_scale[:, None]


@dataclass(frozen=True)
class NestedDesign:
    """Two nested factors with a scalar effect each.

    Attributes
    ----------
    tiles : Design
        The rows grouped by the finer factor; groups are numbered in the order of their parents.
    layout : Layout
        Of `tiles`.
    codes : int32 (n,)
        Group of each of the caller's rows.
    parents : int32 (G,)
        Coarse level of each group, ascending.
    group : int32 (n_slots,)
        Number of a group at its first slot, -1 elsewhere.
    levels : (G,)
        The finer factor's level that each group is.
    terms : tuple of NestedTerm
        In formula order.
    order : (int, int)
        Positions in it of the finer and of the coarser factor.
    """

    tiles: Design
    layout: Layout
    codes: np.ndarray
    parents: np.ndarray
    group: np.ndarray
    levels: np.ndarray
    terms: tuple[NestedTerm, ...]
    order: tuple[int, int]

    @property
    def n_parents(self) -> int:
        return self.terms[self.order[1]].n_levels


def nested_design(y, X, terms, *, weights, offset, scaling: Scaling, constant: float) -> NestedDesign | None:
    """Lay the rows out where there are two factors with an intercept each, one nested in the other.

    Parameters
    ----------
    y, weights, offset : (n,)
    X : (n, p) or Columns
    terms : sequence of TermFrame
        Have codes (n,), levels (G,), z (S, n).
    scaling : Scaling
        Of the columns of X.
    constant : float
        Added to the log-likelihood.

    Returns
    -------
    NestedDesign or None
    """
    if len(terms) != 2 or not all(len(t.z) == 1 and t.z[0, 0] > 0 and (t.z == t.z[0, 0]).all() for t in terms):
        return None
    sizes = [len(t.levels) for t in terms]
    if (order := nesting_chain([t.codes for t in terms], sizes)) is None or _LEAST_ROWS * min(sizes) > len(y):
        return None
    fine, coarse = (terms[t] for t in order)
    parent = np.zeros(sizes[order[0]], np.int32)
    parent[fine.codes] = coarse.codes
    levels = level_order(parent, sizes[order[1]]).rows
    number = np.empty(len(parent), np.int32)
    number[levels] = np.arange(len(parent), dtype=np.int32)
    made = tuple(NestedTerm(len(t.levels), t.z[:, 0], Covariance(((0,),))) for t in terms)
    scaling = replace(scaling, z_scale=np.ones(1))  # an effect's column is one of ones here
    return _laid_out(y, X, number[fine.codes], parent[levels], levels, made, order, weights, offset, scaling, constant)


def _spread(count: int, share: float) -> np.ndarray:
    """Numbers below `count`, evenly."""
    wanted = int(np.ceil(share * count))
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(int)


def _laid_out(y, X, codes, parents, levels, terms, order, weights, offset, scaling, constant):
    tiles, layout = make_design(
        y, X, weights=weights, offset=offset, codes=codes, n_groups=len(parents), scaling=scaling, constant=constant
    )
    group = np.full(layout.n_slots, -1, np.int32)
    group[layout.first] = np.arange(len(parents))
    tiles = jax.device_put(tiles, may_alias=True)
    return NestedDesign(tiles, layout, codes, parents, group, levels, terms, order)


def sample_parents(design: NestedDesign) -> NestedDesign | None:
    """Some groups of every coarse level, spread evenly over their numbers; where levels have few, some levels whole.

    Returns
    -------
    NestedDesign or None
        With the same coarse levels, or with fewer; None where there is no need, or are too few.
    """
    n, many = len(design.codes), design.n_parents
    share = max(_SHARE, _FEWEST_ROWS / n)
    if n < _MANY_ROWS or 3 * share > 1:
        return None
    groups, wanted = _spread(len(design.parents), share), many
    chosen = np.ones(many, bool)
    if len(groups) < _FEWEST_GROUPS * many:
        wanted = max(int(np.ceil(many * share)), _FEWEST_LEVELS)
        if 3 * wanted > many:
            return None
        chosen[:] = False
        chosen[_spread(many, wanted / many)] = True
        groups = np.flatnonzero(chosen[design.parents])
    inside = np.zeros(len(design.parents), bool)
    inside[groups] = True
    rows = np.flatnonzero(inside[design.codes])
    if len(rows) > n // 3:
        return None
    at, tiles = design.layout.slot[rows], design.tiles
    weights = np.asarray(tiles.weights)[at]
    if not weights.any():
        return None
    number = np.cumsum(inside, dtype=np.int32) - 1
    parents = (np.cumsum(chosen, dtype=np.int32) - 1)[design.parents[groups]]
    fine, coarse = design.order
    terms = list(design.terms)
    terms[fine] = replace(terms[fine], n_levels=len(groups))
    terms[coarse] = replace(terms[coarse], n_levels=wanted)
    return _laid_out(
        np.asarray(tiles.y)[at], Columns.of(np.asarray(tiles.X)[at]), number[design.codes[rows]], parents,
        design.levels[groups], tuple(terms), design.order, weights, np.asarray(tiles.offset)[at], None, 0.0,
    )  # fmt: skip
