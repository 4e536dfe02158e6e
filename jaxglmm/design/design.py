"""The arrays that an objective reads, in tile storage order, as one pytree."""

from dataclasses import dataclass

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from jaxglmm.design.groups import GroupIndex, Layout, build_index, row_index
from jaxglmm.errors import DataError, NotYetError
from jaxglmm.model.covariance import Covariance


class RandomTerm(eqx.Module):
    """One grouping factor: its index, its effects' columns and their covariance.

    Attributes
    ----------
    index : GroupIndex
    z : (S, n_slots)
        Column of each effect; ones for an intercept.
    covariance : Covariance
    """

    index: GroupIndex
    z: Float[Array, "S slots"]
    covariance: Covariance


class Design(eqx.Module):
    """Response, columns and groups of a model.

    Attributes
    ----------
    y : (n_slots,)
        Response in the family's own form (Binomial: proportions).
    X : (n_slots, p)
    offset : (n_slots,)
        On the link scale.
    weights : (n_slots,)
        Prior weights; 0 in slots without a row.
    terms : tuple of RandomTerm
        At most one for now.
    index : GroupIndex
        Of the first term, or of single rows when there is none.
    constant : ()
        The part of the log-likelihood that depends on the data alone.
    """

    y: Float[Array, " slots"]
    X: Float[Array, "slots p"]
    offset: Float[Array, " slots"]
    weights: Float[Array, " slots"]
    terms: tuple[RandomTerm, ...]
    index: GroupIndex
    constant: Float[Array, ""]


@dataclass(frozen=True)
class Scaling:
    """Columns are used as (X - center) / scale and z / z_scale; results are reported for X and z.

    Attributes
    ----------
    center, scale : (p,)
    intercept : int or None
        The column that takes up the centres; None when nothing is centred.
    z_scale : (S,)
    """

    center: np.ndarray
    scale: np.ndarray
    intercept: int | None
    z_scale: np.ndarray

    def to_columns(self) -> np.ndarray:
        """T (p, p) with beta = T beta_scaled."""
        T = np.diag(1.0 / self.scale)
        if self.intercept is not None:
            T[self.intercept] -= self.center / self.scale / self.scale[self.intercept]
        return T

    def factor_to_columns(self, factor: np.ndarray) -> np.ndarray:
        """Lambda for z as given from Lambda for scaled z."""
        return factor / self.z_scale[:, None]

    def factor_from_columns(self, factor: np.ndarray) -> np.ndarray:
        return factor * self.z_scale[:, None]

    def beta_from_columns(self, beta: np.ndarray) -> np.ndarray:
        return np.linalg.solve(self.to_columns(), beta)


def column_scaling(X: np.ndarray, weights: np.ndarray, z: np.ndarray | None) -> Scaling:
    """Weighted mean and standard deviation of each column; the root mean square of each effect's column."""
    p = X.shape[1]
    kept = weights > 0
    rows = X[kept] if not kept.all() else X
    low, high = (rows.min(0), rows.max(0)) if len(rows) else (np.zeros(p), np.zeros(p))
    constant = np.flatnonzero((low == high) & (low != 0))
    intercept = int(constant[0]) if len(constant) else None
    total = weights.sum()
    center = weights @ X / total
    # Column by column: no second copy of X.
    second = np.array([weights @ np.square(X[:, j] - center[j]) for j in range(p)]) / total
    scale = np.sqrt(second)
    if intercept is None:
        scale = np.sqrt(second + center**2)
        center = np.zeros(p)
    else:
        # The intercept may be any constant: dividing by it makes it 1, which is what takes up the centres.
        scale[intercept], center[intercept] = low[intercept], 0.0
    scale = np.where(scale > 0, scale, 1.0)
    z_scale = np.ones(0)
    if z is not None:
        z_scale = np.sqrt(np.mean(np.square(z), axis=1))
        z_scale = np.where(z_scale > 0, z_scale, 1.0)
    return Scaling(center, scale, intercept, z_scale)


def make_design(
    y, X, *, weights=None, offset=None, codes=None, n_groups=None, z=None, blocks=None,
    constant=0.0, scaling=None, dtype=np.float64, blocked=True, block=None,
) -> tuple[Design, Layout]:  # fmt: skip
    """Lay rows out in tile storage.

    Parameters
    ----------
    y, weights, offset : (n,)
        Response; prior weights (ones by default); offset on the link scale (zeros).
    X : (n, p)
    codes : int (n,), optional
        Group of each row; None for a model without random effects.
    n_groups : int, optional
    z : (S, n), optional
        Columns of the effects; an intercept by default.
    blocks : tuple of tuples of int, optional
        Effects that covary; all of them by default.
    constant : float
        Added to the log-likelihood.
    scaling : Scaling, optional
        Applied to X and z on the way.
    dtype : dtype
    blocked : bool
        As in `build_index`.

    Returns
    -------
    Design, Layout
        Arrays of the design are numpy; they become JAX arrays where they are first used.

    Raises
    ------
    DataError
        When lengths do not agree.
    """
    y, X = np.asarray(y), np.asarray(X)
    n = y.shape[0]
    if X.ndim != 2 or X.shape[0] != n:
        raise DataError(f"X must have shape ({n}, p), one row for each value of y; found {X.shape}")
    weights = np.ones(n) if weights is None else np.asarray(weights)
    offset = np.zeros(n) if offset is None else np.asarray(offset)
    for name, values in (("weights", weights), ("offset", offset), ("codes", codes)):
        if values is not None and np.shape(values) != (n,):
            raise DataError(f"{name} must have shape ({n},), as y has; found {np.shape(values)}")
    if codes is None:
        index, layout = row_index(n)
        terms = ()
    else:
        index, layout = build_index(codes, n_groups, blocked=blocked, block=block)
        z = np.ones((1, n)) if z is None else np.atleast_2d(np.asarray(z))
        if scaling is not None:
            z = z / scaling.z_scale[:, None]
        covariance = Covariance(blocks or (tuple(range(z.shape[0])),))
        terms = (RandomTerm(index, layout.scatter(z, dtype=dtype), covariance),)
    return Design(
        # A slot without a row needs some valid response; its weight is 0.
        y=layout.scatter(y, fill=y[0] if n else 0.0, dtype=dtype),
        X=scatter_columns(X, layout, scaling, dtype),
        offset=layout.scatter(offset, dtype=dtype),
        weights=layout.scatter(weights, dtype=dtype),
        terms=terms,
        index=index,
        constant=np.asarray(constant, dtype),
    ), layout


def scatter_columns(X, layout, scaling, dtype):
    """Rows of X (n, p), scaled if there is a `scaling`, into slots (n_slots, p)."""
    out = np.zeros((layout.n_slots, X.shape[1]), dtype)
    # In pieces, so that scaled rows exist twice only a piece at a time.
    for begin in range(0, X.shape[0], 1 << 18):
        rows = X[begin : begin + (1 << 18)]
        if scaling is not None:
            rows = (rows - scaling.center) / scaling.scale
        out[layout.slot[begin : begin + (1 << 18)]] = rows
    return out


def only_term(design: Design) -> RandomTerm:
    """The single random term of a design.

    Raises
    ------
    NotYetError
        When there are several.
    """
    if len(design.terms) != 1:
        raise NotYetError(f"this objective takes one grouping factor; the design has {len(design.terms)}")
    return design.terms[0]
