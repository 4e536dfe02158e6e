"""Rows and columns of penalised fits: a formula's columns, a further matrix, and categoricals kept as their codes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.arguments import numbers, told
from jaxglmm.design.checks import check_frame
from jaxglmm.design.design import Design, Scaling, column_scaling, make_design
from jaxglmm.design.groups import Layout
from jaxglmm.design.wide import DensePart, IndexPart, MatrixPart, WideColumns, index_moments, matrix_moments
from jaxglmm.errors import DataError, NotYetError
from jaxglmm.formula.grouping import first_grouping
from jaxglmm.formula.table import open_table, unknown_column
from jaxglmm.model.penalties import column_factors
from jaxglmm.ops.columns import Columns
from jaxglmm.ops.measure import Moments
from jaxglmm.optimise.path_model import Weights
from jaxglmm.problem import Problem, with_rows


@dataclass(frozen=True)
class PathDesign:
    """What a path is computed from.

    Attributes
    ----------
    design : Design
        Of all rows; its X has no columns.
    layout : Layout
    columns : WideColumns
    scaling : Scaling
        Of all columns.
    weights : Weights
    names : tuple of str
        Of all columns.
    extras : list
        Where the columns beyond the formula's come from.
    """

    design: Design
    layout: Layout
    columns: WideColumns
    scaling: Scaling
    weights: Weights
    names: tuple[str, ...]
    extras: list["_Extra"]

    def further(self, name: str) -> np.ndarray:
        """Numbers (n,) of a column beyond the formula's, as it is."""
        return next(extra.column(name) for extra in self.extras if name in extra.names)


@dataclass(frozen=True)
class _Extra:
    """Columns beyond the formula's, in the rows that are kept: codes (n,) or a matrix, moments, names."""

    part: Any
    codes: bool
    mean: np.ndarray
    sd: np.ndarray
    names: tuple[str, ...]

    def column(self, name: str) -> np.ndarray:
        """Numbers (n,) of one column."""
        j = self.names.index(name)
        if self.codes:
            return (self.part == j) * 1.0
        return self.part[:, j] if isinstance(self.part, np.ndarray) else self.part[:, [j]].toarray()[:, 0]


def lay_out_path(
    frame,
    family,
    data,
    *,
    alpha,
    factors,
    standardize,
    X=None,
    X_names=None,
    dummies=(),
    estimated=True,
    precision="double",
    bare=False,
) -> PathDesign:
    """Check the unpenalised columns, and lay out rows and columns.

    Parameters
    ----------
    frame : ModelFrame
    family : AbstractFamily
    data
        The table, for `dummies`.
    alpha, factors, standardize
        As in `ElasticNet`.
    X : (rows of the table, k) array or scipy.sparse matrix, optional
    X_names : sequence of str, optional
    dummies : sequence of str
        Columns of the table, each a categorical all of whose levels get a column.
    estimated : bool
        Whether the covariance of the random effects is.
    precision : {"double", "mixed"}
    bare : bool
        Whether the path ends without a penalty, where columns must be of full rank.

    Raises
    ------
    DataError, NotYetError
    """
    if len(frame.terms) > 1:
        raise NotYetError(
            f"paths take one grouping factor for now; the formula has {len(frame.terms)}: keep the one that matters "
            "most, join them as (1 | a:b), or fit one lambda at a time with jg.fit(penalty=)"
        )
    scaling, found = measure(frame)
    if X is None and X_names is not None:
        raise DataError(f"X_names names the columns of X, which is not given; found {told(X_names)}")
    extras = [_matrix(frame, X, X_names)] if X is not None else []
    extras += [_categorical(frame, data, name) for name in dummies]
    names = (*frame.names, *(name for extra in extras for name in extra.names))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"there are two columns {twice!r}: rename one (X_names=), or leave it out of the formula")
    f = column_factors(factors, names, scaling.intercept)
    first = len(frame.names)
    usable, rows = np.isfinite(f), np.count_nonzero(frame.weights)
    if bare and usable.sum() > rows:
        raise DataError(
            f"lambdas ends with 0, where {rows} rows cannot determine {usable.sum()} columns: leave the 0 out"
        )
    unpenalised = np.flatnonzero(usable[:first] if bare else f[:first] == 0)
    problem = lay_out_rows(frame, family, scaling, unpenalised, estimated=estimated, precision=precision)
    design, layout = problem.design, problem.layout
    assert design is not None and layout is not None
    mean = np.concatenate([found.mean, *(extra.mean for extra in extras)])
    sd = np.concatenate([np.sqrt(found.variance), *(extra.sd for extra in extras)])
    rms = sd if scaling.intercept is not None else np.sqrt(sd**2 + mean**2)
    scale = np.concatenate([scaling.scale, np.where(rms > 0, rms, 1.0)[first:]])
    center = np.concatenate([scaling.center, np.where(scaling.intercept is not None, mean, 0.0)[first:]])
    parts: list[Any] = [DensePart(design.X)]
    for extra in extras:
        mine = slice(first, first + len(extra.names))
        kind = IndexPart if extra.codes else MatrixPart
        parts.append(kind(extra.part, layout.slot, center[mine], scale[mine]))
        first = mine.stop
    columns = WideColumns(tuple(parts), layout.slot, layout.n_slots)
    weights = Weights(float(alpha), f, penalty_unit(scale, sd, standardize))
    whole = Scaling(center, scale, scaling.intercept, scaling.z_scale)
    return PathDesign(_without_columns(design), layout, columns, whole, weights, names, extras)


def measure(frame) -> tuple[Scaling, Moments]:
    """Scaling and moments of a frame's columns."""
    X = Columns(frame.columns, len(frame.y))
    found = frame.moments
    return column_scaling(X, frame.weights, frame.terms[0].z if len(frame.terms) == 1 else None, found), found


def lay_out_rows(
    frame, family, scaling, unpenalised, *, estimated: bool, informed: Collection[str] = (), precision="double"
) -> Problem:
    """Check the unpenalised columns (k,), and lay the rows out: in slots, or as they are for several factors.

    Standard deviations by the groups `informed` have a prior.

    Raises
    ------
    DataError, NotYetError
    """
    check_frame(frame, family, estimated=estimated, columns=unpenalised, informed=informed)
    if len(frame.terms) > 1:
        if precision != "double":
            raise NotYetError("precision='mixed' takes one grouping factor with penalty= or prior=: leave it out")
        return with_rows(Problem(frame, family, scaling))
    rows = {"weights": frame.weights, "offset": frame.offset}
    for term in frame.terms:
        rows |= {"codes": term.codes, "n_groups": len(term.levels), "z": term.z, "blocks": term.blocks}
    constant = family.constant(frame.y, frame.weights)
    X = Columns(frame.columns, len(frame.y))
    dtype = np.float64 if precision == "double" else np.float32
    design, layout = make_design(frame.y, X, scaling=scaling, constant=constant, dtype=dtype, **rows)
    design = replace(design, constant=np.asarray(constant, np.float64))
    # The arrays are aligned and nobody else's: JAX takes them over without a copy.
    return Problem(frame, family, scaling, jax.device_put(design, may_alias=True), layout)


def penalty_unit(scale, sd, standardize: bool) -> np.ndarray:
    """What a scaled coefficient is divided by to give the one that is penalised, (p,)."""
    return np.where(sd > 0, scale / np.where(sd > 0, sd, 1.0), 1.0) if standardize else scale


def _without_columns(design):
    import equinox as eqx

    return eqx.tree_at(lambda d: d.X, design, jnp.zeros((design.y.shape[0], 0), design.X.dtype))


def _matrix(frame, X: Any, names) -> _Extra:
    from scipy import sparse

    if not sparse.issparse(X) and getattr(getattr(X, "dtype", None), "kind", None) not in ("i", "u", "f", "b"):
        numbers("X", X)
    if sparse.issparse(X):
        X = sparse.csc_matrix(X, dtype=float)
        found = X.data
    else:
        found = X = np.asarray(X, float)
        if X.ndim != 2:
            raise DataError(f"X must have two dimensions, a row for each row of the data; found shape {X.shape}")
    total = int(frame.rows[-1]) + 1 if len(frame.rows) else 0
    expected = frame.total
    if X.shape[0] != expected or X.shape[0] < total:
        raise DataError(f"X has {X.shape[0]} rows; expected {expected}, one for each row of the data")
    if not np.isfinite(found).all():
        raise DataError("X has entries that are missing or infinite: fill them in")
    names = tuple(f"X{j}" for j in range(X.shape[1])) if names is None else tuple(map(str, names))
    if len(names) != X.shape[1]:
        raise DataError(f"X_names has {len(names)} names for the {X.shape[1]} columns of X")
    if len(frame.rows) < frame.total:
        X = X[frame.rows] if isinstance(X, np.ndarray) else X.tocsr()[frame.rows].tocsc()
    return _Extra(X, False, *matrix_moments(X, frame.weights), names)


def _categorical(frame, data, name: str) -> _Extra:
    table = open_table(data)
    if name not in table.names:
        raise unknown_column(name, table.names, "dummies=")
    column = table.load((), [name])[0][name]
    grouping, codes = first_grouping((name,), {name: column.take(frame.rows)}, {})
    if (codes < 0).any():
        raise DataError(f"column {name!r} of dummies= has missing values: give them a level of their own, or drop them")
    names = tuple(f"{name}[{label}]" for label in grouping.labels)
    return _Extra(codes, True, *index_moments(codes, len(names), frame.weights), names)


def fold_labels(frame, cv, by: str, seed, total_rows: int) -> np.ndarray | None:
    """Fold (n,) of each row that is kept, from 0; None where there is no cross-validation.

    Parameters
    ----------
    cv : int, array or None
        Number of folds, or the fold of each row of the table.
    by : {"groups", "rows"}
    seed : int or numpy.random.Generator

    Raises
    ------
    DataError
    """
    if cv is None:
        return None
    n = len(frame.y)
    if by not in ("groups", "rows"):
        raise DataError(f"cv_by must be 'groups' or 'rows'; found {by!r}")
    if isinstance(cv, (int, np.integer)) and not isinstance(cv, bool):
        units = len(frame.terms[0].levels) if by == "groups" and frame.terms else n
        if not 2 <= cv <= units:
            raise DataError(f"cv must lie between 2 and the {units} {by} there are; found {cv}")
        order = np.random.default_rng(seed).permutation(units)
        fold = np.empty(units, int)
        fold[order] = np.arange(units) % cv
        return fold[frame.terms[0].codes] if units < n or (by == "groups" and frame.terms) else fold
    labels = np.asarray(cv)
    if not isinstance(cv, (Sequence, np.ndarray)) or labels.shape != (total_rows,):
        raise DataError(f"cv must be a number of folds, or the fold of each of the {total_rows} rows; found {cv!r:.60}")
    values, fold = np.unique(labels[frame.rows], return_inverse=True)
    if len(values) < 2:
        raise DataError(f"cv puts all rows into one fold ({values[0]!r}): at least two are needed")
    return fold
