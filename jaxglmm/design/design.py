"""The arrays that an objective reads, in tile storage order, as one pytree."""

from dataclasses import dataclass

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from jaxglmm.arguments import flag, floating, is_whole, number, optional, refuse, whole
from jaxglmm.design.groups import GroupIndex, Layout, build_index, row_index
from jaxglmm.design.shards import place, shared_index
from jaxglmm.errors import DataError, NotYetError
from jaxglmm.model.covariance import Covariance
from jaxglmm.ops.columns import Columns
from jaxglmm.ops.layout import scatter_rows
from jaxglmm.ops.measure import Moments, all_ones, moments
from jaxglmm.ops.memory import aligned_empty, aligned_zeros


# A mean of so many standard deviations is large; by how much a constant may differ from 1.
_LARGE, _EXACT = 100.0, 1e-12
_PLACES = 256, 16  # of the sample that such a constant is looked for in, and rows of each


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
    single : bool
        Fits compute with rows in float32, and add up blocks of rows in float64. By default they compute in float64
        whatever the rows are stored in.
    """

    y: Float[Array, " slots"]
    X: Float[Array, "slots p"]
    offset: Float[Array, " slots"]
    weights: Float[Array, " slots"]
    terms: tuple[RandomTerm, ...]
    index: GroupIndex
    constant: Float[Array, ""]
    single: bool = eqx.field(static=True, default=False)

    def work_type(self, dtype):
        """In which type rows are computed with, where the parameters have this one."""
        return np.dtype(np.float32) if self.single else dtype


@dataclass(frozen=True)
class Scaling:
    """Columns are used as (X - center) / scale and z / z_scale; results are reported for X and z.

    Attributes
    ----------
    center, scale : (p,)
    intercept : int or None
        A column that is constant, which takes up the centres.
    z_scale : (S,)
    constant : (p,) or None
        Without such a column, coefficients whose combination of columns is 1, as dummies of all levels of a factor give
        it: these take up the centres. Where there is neither nothing is centred.
    """

    center: np.ndarray
    scale: np.ndarray
    intercept: int | None
    z_scale: np.ndarray
    constant: np.ndarray | None = None

    @property
    def _one(self) -> np.ndarray | None:
        """Coefficients (p,) of a column of ones, of the columns as written."""
        if self.intercept is None:
            return self.constant
        return np.where(np.arange(len(self.scale)) == self.intercept, 1 / self.scale[self.intercept], 0.0)

    def to_columns(self) -> np.ndarray:
        """T (p, p) with beta = T beta_scaled."""
        T = np.diag(1.0 / self.scale)
        return T if (one := self._one) is None else T - np.outer(one, self.center / self.scale)

    def beta_to_columns(self, beta: np.ndarray) -> np.ndarray:
        """T beta, without T: (..., p) -> (..., p)."""
        out = beta / self.scale
        return out if (one := self._one) is None else out - (out @ self.center)[..., None] * one

    def factor_to_columns(self, factor: np.ndarray) -> np.ndarray:
        """Lambda for z as given from Lambda for scaled z."""
        return factor / self.z_scale[:, None]

    def factor_from_columns(self, factor: np.ndarray) -> np.ndarray:
        return factor * self.z_scale[:, None]

    def beta_from_columns(self, beta: np.ndarray) -> np.ndarray:
        """T^-1 beta: (..., p) -> (..., p)."""
        one = self._one
        return (beta if one is None else beta + (beta @ self.center)[..., None] * one) * self.scale

    def rows(self, X: np.ndarray) -> np.ndarray:
        """The columns in use of rows X (..., p): X T, without the cancellation of that product."""
        return (X - self.center) / self.scale


def column_scaling(
    X, weights: np.ndarray, z: np.ndarray | None, found: Moments | None = None, *, spanned: bool = False
) -> Scaling:
    """Weighted mean and standard deviation of each column; the root mean square of each effect's column.

    `found` are the moments of X, where they have been measured. Without a constant column, large means are taken off
    where others' span contains one, if `spanned` allows that their coefficients take up the centres.
    """
    found = moments(X, weights) if found is None else found
    constant = np.flatnonzero(found.constant & (found.low != 0))
    intercept = int(constant[0]) if len(constant) else None
    center, scale = found.mean.copy(), np.sqrt(found.variance)
    one = _constant_in_span(X, weights, found) if intercept is None and spanned else None
    if one is not None:
        center = np.where(one != 0, 0.0, center)
        scale = np.where(one != 0, np.sqrt(found.variance + found.mean**2), scale)
    elif intercept is None:
        scale = np.sqrt(found.variance + center**2)
        center = np.zeros_like(center)
    else:
        # The intercept may be any constant: dividing by it makes it 1, which is what takes up the centres.
        scale[intercept], center[intercept] = found.low[intercept], 0.0
    scale = np.where(scale > 0, scale, 1.0)
    z_scale = np.ones(0)
    if z is not None:
        z_scale = np.sqrt([np.mean(np.square(row)) if row.strides[0] else row[0] ** 2 for row in z])
        z_scale = np.where(z_scale > 0, z_scale, 1.0)
    return Scaling(center, scale, intercept, z_scale, one)


def _constant_in_span(X, weights, found: Moments) -> np.ndarray | None:
    """Coefficients (p,) of columns that add up to 1 in every row, where other columns have large means; else None."""
    large = np.abs(found.mean) > _LARGE * np.sqrt(found.variance)
    if not large.any() or large.all():
        return None
    X, others = Columns.of(X), np.flatnonzero(~large)
    some = X.only(others)
    count, size = _PLACES
    parts = some.places(count, size) if len(X) > 2 * count * size else some.pieces()
    sample = np.concatenate([values[weights[rows] > 0] for rows, values in parts])
    solved = np.linalg.lstsq(sample, np.ones(len(sample)), rcond=None)[0]
    solved = np.where(np.abs(solved) > _EXACT, solved, 0.0)
    for rows, values in some.pieces():
        if np.abs(values @ solved - 1)[weights[rows] > 0].max(initial=0.0) > _EXACT:
            return None
    one = np.zeros(X.shape[1])
    one[others] = solved
    return one


def make_design(
    y, X, *, weights=None, offset=None, codes=None, n_groups=None, z=None, blocks=None,
    constant=0.0, scaling=None, dtype=np.float64, single=False, blocked=True, block=None, least=(0, 0, 0), mesh=None,
) -> tuple[Design, Layout]:  # fmt: skip
    """Lay rows out in tile storage.

    Parameters
    ----------
    y, weights, offset : (n,)
        Response; prior weights (ones by default); offset on the link scale (zeros).
    X : (n, p) or Columns
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
        Of the arrays of rows.
    single : bool
        As in `Design`.
    blocked, block, least
        As in `build_index`.
    mesh : jax.sharding.Mesh, optional
        Of one axis: spread the groups over its devices. The arrays are JAX's then, each device with its part.

    Returns
    -------
    Design, Layout
        Arrays of the design are numpy; they become JAX arrays where they are first used.

    Raises
    ------
    DataError
        When lengths do not agree.
    """
    for name, values in (("y", y), ("X", X), ("weights", weights), ("offset", offset), ("codes", codes), ("z", z)):
        if isinstance(values, Columns) or (values is None and name not in ("y", "X")):
            continue
        if _kind(values) not in ("iu" if name == "codes" else "iufb"):
            refuse(name, f"an array of {'whole ' if name == 'codes' else ''}numbers", values)
    if codes is not None and (np.size(codes) == 0 or np.min(codes) < 0):
        raise DataError("codes must number the groups from 0, one for each row")
    if n_groups is not None and codes is not None:
        whole(int(np.max(codes)) + 1)("n_groups", n_groups)
    floating("dtype", dtype)
    for name, value in (("single", single), ("blocked", blocked)):
        flag(name, value)
    optional(whole(1))("block", block)
    number()("constant", constant)
    y = np.asarray(y)
    if y.ndim != 1:
        raise DataError(f"y must have one dimension; found shape {y.shape}")
    n = y.shape[0]
    if len(np.shape(X) if not isinstance(X, Columns) else X.shape) != 2 or X.shape[0] != n:
        raise DataError(f"X must have shape ({n}, p), one row for each value of y; found {np.shape(X)}")
    weights = np.broadcast_to(1.0, n) if weights is None else np.asarray(weights)
    offset = np.broadcast_to(0.0, n) if offset is None else np.asarray(offset)
    for name, values in (("weights", weights), ("offset", offset), ("codes", codes)):
        if values is not None and np.shape(values) != (n,):
            raise DataError(f"{name} must have shape ({n},), as y has; found {np.shape(values)}")
    unweighted = n > 0 and all_ones(weights)
    if codes is None:
        index, layout = row_index(n)
        terms = ()
    else:
        if mesh is None:
            index, layout = build_index(codes, n_groups, blocked=blocked, block=block, least=least)
        else:
            index, layout = shared_index(codes, n_groups, mesh)
        z = np.broadcast_to(1.0, (1, n)) if z is None else np.atleast_2d(np.asarray(z))
        if z.ndim != 2 or z.shape[1] != n or not len(z):
            raise DataError(f"z must have shape (S, {n}), a row for each effect; found {z.shape}")
        _check_blocks(blocks, len(z))
        scale = np.ones(len(z)) if scaling is None else scaling.z_scale
        slots = aligned_zeros((len(z), layout.n_slots), dtype)
        covariance = Covariance(blocks or (tuple(range(z.shape[0])),))
        terms = (RandomTerm(index, slots, covariance),)
    weights = layout.scatter(weights, dtype=dtype)
    if terms:
        for to, row, size in zip(slots, z, scale, strict=True):
            if not row.strides[0] and unweighted:  # a constant is where there are rows, which the weights tell
                np.multiply(weights, row[0] / size, out=to)
            else:
                scatter_rows([row], layout.slot, to, scale=[size])
    design = Design(
        # A slot without a row needs some valid response; its weight is 0.
        y=layout.scatter(y, fill=y[0] if n else 0.0, dtype=dtype),
        X=scatter_columns(X, layout, scaling, dtype),
        offset=layout.scatter(offset, dtype=dtype),
        weights=weights,
        terms=terms,
        index=index,
        constant=np.asarray(constant, dtype),
        single=single,
    )
    return (design if mesh is None else place(design)), layout


def _check_blocks(blocks, n_effects: int) -> None:
    """Refuse what does not part the effects into blocks."""
    good = blocks is None or isinstance(blocks, tuple)
    good = good and all(isinstance(block, tuple) and all(map(is_whole, block)) for block in blocks or ())
    if not good or (blocks and sorted(i for block in blocks for i in block) != list(range(n_effects))):
        refuse("blocks", f"a tuple of tuples, which hold each of 0 to {n_effects - 1} once", blocks)


def _kind(values) -> str:
    """The kind of numbers of an array or a list, as `numpy.dtype.kind`; "O" where they are none."""
    dtype = getattr(values, "dtype", None)
    if dtype is None and isinstance(values, list | tuple):
        try:
            dtype = np.asarray(values).dtype
        except ValueError:  # ragged
            return "O"
    return getattr(dtype, "kind", "O")


def scatter_columns(X, layout, scaling, dtype):
    """Rows of X (n, p) or Columns, scaled if there is a `scaling`, into slots (n_slots, p)."""
    out = aligned_empty((layout.n_slots, X.shape[1]), dtype)
    out[layout.empty] = 0.0
    scales = () if scaling is None else (scaling.center, scaling.scale)
    for begin, arrays in Columns.of(X).parts():
        if len(arrays):
            scatter_rows(arrays, layout.slot[begin : begin + len(arrays[0])], out, *scales)
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
