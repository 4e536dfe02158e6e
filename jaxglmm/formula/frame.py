"""Formula and table -> `ModelFrame`: every array that a fit needs, and what prediction needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from jaxglmm.arguments import flag, mapping, optional, takes

from ..errors import DataError, FormulaError
from ..model.centring import centred, centring
from ..ops.columns import Columns
from ..ops.measure import Moments, all_ones, moments
from ..ops.traced import refuse_traced
from .bars import Bar, parse_formula
from .columns import Column
from .fixed import Expression, Recipe, computed_with, make, plan, plan_expression, separate_terms, uses_in, uses_of
from .grouping import first_grouping
from .levels import describe
from .quoting import told_of_backticks
from .response import plan_response, read_response
from .spec import ModelSpec, TermSpec, offset_of
from .stored import find_stored
from .table import Table, open_table, unknown_column
from .variables import Variable, check_finite, first_variable, order_of, take_complete


@dataclass(frozen=True)
class TermFrame:
    """One grouping factor with the effects of all its bars.

    Attributes
    ----------
    group
        "g", or "a:b" for the combinations of two columns.
    levels
        (G,) labels in level order, only those that occur.
    codes
        (n,) int32 level of every row.
    names
        (S,) names of the effects, in formula order.
    z
        (S, n) float64, the effects' columns as rows; those that covary with a constant one are centred.
    blocks
        Which effects are correlated: ((0, 1),) for `(1 + x | g)`, ((0,), (1,)) for `(x || g)`.
    basis
        (S, S) T with b = T b', b' the effects of `z` and b those of the columns as they were written; see
        `model.centring`.
    """

    group: str
    levels: np.ndarray
    codes: np.ndarray
    names: tuple[str, ...]
    z: np.ndarray
    blocks: tuple[tuple[int, ...], ...]
    basis: np.ndarray


@dataclass(frozen=True)
class ModelFrame:
    """A formula applied to a table.

    Attributes
    ----------
    y
        (n,) float64 response, None for an empty left side. Binomial: a proportion.
    weights
        (n,) prior weights; for binomial counts the trials.
    offset
        (n,) sum of all offsets.
    columns
        p arrays (n,) of numbers of any kind: the fixed effects' columns, the caller's own where that is possible; of
        a large file `StoredColumn`s, which are there when they are asked for.
    names
        (p,) their names.
    terms
        One a grouping factor.
    rows
        (n,) int64 positions in the caller's table of the rows that were kept.
    n_dropped, dropped_by
        Rows dropped for missing values; missing values by column.
    weightless
        Positions in the caller's table of the rows with weight zero, or without a trial, which count nowhere.
    spec
        Makes the same columns from new data.
    modelled
        "P(outcome = yes)" for two-level outcomes and counts, else None.
    native
        The caller's kind of table: "pandas", "polars", "pyarrow" or "dict".
    unweighted
        Moments of the columns over all rows, where they have been measured.
    """

    y: Any  # np.ndarray | None; most callers know that there is one
    weights: np.ndarray
    offset: np.ndarray
    columns: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    terms: tuple[TermFrame, ...]
    rows: np.ndarray
    n_dropped: int
    dropped_by: dict[str, int]
    spec: ModelSpec
    modelled: str | None
    native: str
    unweighted: Moments | None = None
    weightless: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def total(self) -> int:
        """Rows of the caller's table."""
        return len(self.rows) + self.n_dropped + len(self.weightless)

    def with_columns(self, kept: Sequence[int]) -> ModelFrame:
        """The frame with some of its columns; the recipe that makes them stays as it is."""
        return replace(
            self, names=tuple(self.names[j] for j in kept), columns=tuple(self.columns[j] for j in kept),
            unweighted=None if self.unweighted is None else self.unweighted.take(kept),
        )  # fmt: skip

    @cached_property
    def moments(self) -> Moments:
        """Of the columns over rows of positive weight."""
        if self.unweighted is not None and all_ones(self.weights):
            return self.unweighted
        return moments(Columns(self.columns, len(self.rows)), self.weights)

    @cached_property
    def X(self) -> np.ndarray:
        """The columns as one matrix (n, p), float64, C order; a copy, made when it is first asked for."""
        return Columns(self.columns, len(self.rows)).matrix()


@takes(levels=optional(mapping), full_rank=flag)
def model_frame(
    formula: str,
    data: Any,
    *,
    family: Any,
    weights: str | Any | None = None,
    offset: str | Any | None = None,
    levels: Mapping[str, str | Sequence[Any]] | None = None,
    full_rank: bool = True,
    weightless: np.ndarray | None = None,
) -> ModelFrame:
    """Apply a formula to a table. Only the columns that the formula uses are read.

    Rows of weight zero are left out as if the table did not have them: their levels, missing values and numbers count
    nowhere.

    Parameters
    ----------
    formula
        lme4's syntax: `y ~ x + offset(log(t)) + (1 + x | g)`. `||` takes the terms apart: `(x + f || g)`
        is `(1 | g) + (0 + x | g) + (0 + f | g)`, so the effects of one factor's levels stay correlated.
    data
        pandas, polars or pyarrow table, mapping of arrays, or a path to CSV(.gz) or Parquet.
    family
        Has `name` and `check_response(y, weights, column, rows)`.
    weights, offset
        A column's name, or one number a row of the table.
    levels
        {column: list of levels in order, or "categorical"}.
    full_rank
        False keeps every dummy of the fixed part's factors.
    weightless
        Positions of further rows to leave out so: those that turned out to have no trial.

    Raises
    ------
    FormulaError
        When the formula cannot be read.
    DataError
        When the data do not fit it; the message names the column and row.
    """
    table = open_table(data)
    levels = dict(levels or {})
    for name in levels:
        if name not in table.names:
            raise unknown_column(name, table.names, "levels=")
        order_of(name, levels[name])

    refuse_traced(weights=weights, offset=offset)
    columns = set(table.names)
    groups: dict[tuple[str, ...], list[Recipe]] = {}
    with told_of_backticks(formula, table.names, table.path):
        parsed = parse_formula(formula)
        fixed = plan(parsed.fixed, table.names, full_rank)
        offsets = tuple(plan_expression(text, table.names) for text in parsed.offsets)
        response = plan_response(parsed.response, table.names) if parsed.response else None
        for bar in parsed.bars:
            groups.setdefault(bar.group, []).extend(_effects(bar, columns, table))
    given = {"weights": weights, "offset": offset}
    named = {what: value for what, value in given.items() if isinstance(value, str)}
    for what, name in named.items():
        if name not in columns:
            raise unknown_column(name, table.names, f"{what}=")

    effects = [recipe for recipes in groups.values() for recipe in recipes]
    worked = _computed_with(fixed, effects, [*offsets, *(response.expressions if response else ())])
    as_variables = dict.fromkeys(
        name for part in (response, fixed, *offsets, *effects) if part is not None for name in part.variables
    )
    grouping_columns = dict.fromkeys(name for group in groups for name in group)
    whole = {*worked, *levels, *grouping_columns, *named.values(), *(v for e in effects for v in e.variables)}
    whole.update(name for part in (response, *offsets) if part is not None for name in part.variables)
    stored = find_stored(table, [name for name in fixed.variables if name not in whole])
    in_file = () if stored is None else stored.names
    wanted = dict.fromkeys([*as_variables, *named.values()])
    labelled = _factors([fixed, *effects], [*offsets, *(response.expressions if response else ())]) | set(levels)
    labelled -= set(named.values())
    loaded, total = table.load(
        [name for name in wanted if name not in in_file and name not in labelled],
        [*grouping_columns, *(name for name in wanted if name in labelled)],
    )
    if not total:
        found = "the data have" if table.path is None else f"{table.path!r} has"
        raise DataError(f"{found} no rows; a fit needs at least one.")
    apart = _weightless(weights, loaded, total, weightless)
    complete, rows, dropped_by = take_complete(loaded, total, stored, apart)
    del loaded
    if not len(rows):
        raise DataError(f"no row is complete; missing values by column: {dropped_by}. Leave such a column out.")

    # Of columns in a file formulaic sees their names; their values are read when and where they are used.
    complete |= {
        name: Column(name, "number", np.broadcast_to(np.nan, len(rows)), moments=stored.moments[name])
        for name in in_file
        if stored is not None
    }
    variables: dict[str, pd.Series] = {}
    kinds: dict[str, Variable] = {}
    for name in as_variables:
        order = levels.get(name)
        if order is None and name in labelled and _loses_labels(complete[name]):
            order = "categorical"
        kinds[name], variables[name] = first_variable(complete[name], order, name not in worked)
        if not _known_finite(complete[name]):
            check_finite(name, variables[name], rows)
    for what, name in named.items():
        kinds.setdefault(name, Variable(name, "number"))
        variables[name] = _number_column(what, complete[name], rows)

    n = len(rows)
    fixed, X_columns = make(fixed, variables, n)
    X_columns = [
        stored.column(name) if stored is not None and name in in_file else made
        for name, made in zip(fixed.names, X_columns, strict=True)
    ]
    measured = _measured(fixed, X_columns, {name: complete[name] for name in kinds}, rows)
    orders = {name: order_of(name, levels.get(name)) for name in grouping_columns}
    prior = _weights(weights, variables, rows, total)
    y = None
    if response is not None:
        response, y, trials = read_response(response, variables, rows, family.name)
        if trials is not None:
            prior = prior * trials
            if not prior.all() and prior.any():
                given = {"weights": weights, "offset": offset, "levels": levels, "full_rank": full_rank}
                return model_frame(formula, data, family=family, weightless=rows[prior == 0], **given)
        family.check_response(y, prior, " ".join(response.text.split()), rows)
    terms, term_specs = [], []
    for group, recipes in groups.items():
        term, term_spec = _term(group, recipes, complete, variables, orders, rows, prior)
        terms.append(term)
        term_specs.append(term_spec)
    spec = ModelSpec(
        formula=formula,
        family=family.name,
        variables=kinds,
        response=response,
        fixed=fixed,
        offsets=offsets,
        offset_column=named.get("offset"),
        offset_given=offset is not None and "offset" not in named,
        weights_column=named.get("weights"),
        terms=tuple(term_specs),
    )
    total_offset = offset_of(spec, variables, rows)
    if spec.offset_given:
        total_offset = total_offset + _row_array("offset", offset, rows, total)
    return ModelFrame(
        y=y,
        weights=prior,
        offset=total_offset,
        columns=tuple(X_columns),
        names=fixed.names,
        terms=tuple(terms),
        rows=rows,
        n_dropped=total - n - (0 if apart is None else int(apart.sum())),
        dropped_by=dropped_by,
        spec=spec,
        modelled=response.modelled if response is not None else None,
        native=table.native,
        unweighted=measured,
        **({} if apart is None else {"weightless": np.flatnonzero(apart)}),
    )


def _computed_with(fixed: Recipe, effects: Sequence[Recipe], expressions: Sequence[Expression]) -> set[str]:
    """Columns of which something is computed, and that must not do so in a narrow type."""
    found = set().union(*(computed_with(recipe) for recipe in (fixed, *effects)))
    for expression in expressions:
        if expression.text not in expression.variables and expression.text not in expression.aliases:
            found.update(expression.variables)
    return found


def _factors(recipes: Sequence[Recipe], expressions: Sequence[Expression]) -> set[str]:
    """Columns that stand for themselves nowhere but in `factor(x)` and its like."""
    uses = [use for recipe in recipes for use in uses_of(recipe)] + [use for e in expressions for use in uses_in(e)]
    return {name for name, factor in uses if factor} - {name for name, factor in uses if not factor}


def _loses_labels(column: Column) -> bool:
    """Whether two labels of a column, or the text of one, may be lost where it is taken as floats."""
    labels = column.as_labels
    if column.exact is not None or labels.kind != "number" or labels.values.dtype.kind != "i" or not len(column):
        return column.exact is not None
    return bool(max(abs(int(labels.values.min())), abs(int(labels.values.max()))) > 2**53)


def _known_finite(column: Column) -> bool:
    return column.moments is not None and bool(np.isfinite(column.moments.mean[0]))


def _measured(recipe: Recipe, made: Sequence[np.ndarray], columns: Mapping[str, Column], rows: np.ndarray) -> Moments:
    """Moments of the fixed part's columns, which must be finite; those of the table have theirs from being read."""
    known = [name in columns and name in recipe.variables and _known_finite(columns[name]) for name in recipe.names]
    rest = moments(Columns([column for column, done in zip(made, known, strict=True) if not done], len(rows)))
    parts, k = [], 0
    for name, column, done in zip(recipe.names, made, known, strict=True):
        if done:
            parts.append(columns[name].moments)
            continue
        if not np.isfinite(rest.mean[k]):
            check_finite(name, column, rows, _why(name, recipe))
        parts.append(rest.take([k]))
        k += 1
    return Moments.joined(parts)


def _effects(bar: Bar, columns: set[str], table: Table) -> list[Recipe]:
    for name in bar.group:
        if name not in columns:
            raise unknown_column(name, table.names)
    if bar.correlated:
        return [plan(bar.effects, table.names)]
    return [plan(term, table.names) for term in separate_terms(bar.effects, table.names)]


def _term(
    group: tuple[str, ...],
    recipes: list[Recipe],
    columns: Mapping[str, Column],
    variables: Mapping[str, pd.Series],
    orders: Mapping[str, Sequence[Any] | None],
    rows: np.ndarray,
    weights: np.ndarray,
) -> tuple[TermFrame, TermSpec]:
    grouping, codes = first_grouping(group, columns, orders)
    done = [make(recipe, variables, len(rows)) for recipe in recipes]
    made = [column for _, some in done for column in some]
    spec = TermSpec(grouping, tuple(recipe for recipe, _ in done), np.eye(len(made)))
    if not made:
        raise FormulaError(
            f"the bars of {grouping.name!r} give no effect; write (1 | {grouping.name}) for an intercept."
        )
    twice = [name for name in spec.names if spec.names.count(name) > 1]
    if twice:
        raise FormulaError(
            f"the bars of {grouping.name!r} give the effect {twice[0]!r} twice; write (0 + x | {grouping.name}) in one "
            "of them to leave its intercept out."
        )
    for name, column in zip(spec.names, made, strict=True):
        check_finite(name, column, rows)
    z = np.stack(made, dtype=np.float64, casting="unsafe") if len(made) > 1 else np.asarray(made[0], np.float64)[None]
    spec = replace(spec, basis=centring(z, spec.blocks, weights))
    z = centred(z, spec.basis)
    return TermFrame(grouping.name, grouping.labels, codes, spec.names, z, spec.blocks, spec.basis), spec


def _why(name: str, recipe: Recipe) -> str:
    return "" if name in recipe.variables else f", from {', '.join(recipe.variables)}" if recipe.variables else ""


def _number_column(what: str, column: Column, rows: np.ndarray) -> pd.Series:
    if column.kind not in ("number", "boolean"):
        raise DataError(f"{what}={column.name!r} is a column of {describe(column)}; expected numbers.")
    values = column.values.astype(np.float64)
    check_finite(column.name, values, rows)
    return pd.Series(values)


def _weightless(weights: Any, columns: Mapping[str, Column], total: int, further: np.ndarray | None):
    """bool (total,): rows that count nowhere; None for none. What is wrong with the weights is told later."""
    values = weights
    if isinstance(weights, str):
        values = columns[weights].values if columns[weights].kind in ("number", "boolean") else None
    apart = np.zeros(total, bool)
    try:
        values = np.ones(total) if values is None else np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.ones(total)
    if values.shape == (total,):
        apart = values == 0
        missing = columns[weights].missing if isinstance(weights, str) else None
        if missing is not None:
            apart &= ~missing
    if further is not None:
        apart[further] = True
    return apart if apart.any() and not apart.all() else None


def _weights(weights: Any, variables: Mapping[str, pd.Series], rows: np.ndarray, total: int) -> np.ndarray:
    if weights is None:
        return np.broadcast_to(1.0, len(rows))  # stored once
    if isinstance(weights, str):
        values = np.asarray(variables[weights], dtype=np.float64)
        label = f"weights={weights!r}"
    else:
        values, label = _row_array("weights", weights, rows, total), "weights"
    if (values < 0).any():
        first = int(np.argmax(values < 0))
        raise DataError(
            f"{label} is {values[first]:g} in row {int(rows[first])} (counting from 0); expected at least 0."
        )
    if not values.any():
        raise DataError(f"{label} is 0 in every row; at least one row must count.")
    return values


def _row_array(what: str, values: Any, rows: np.ndarray, total: int) -> np.ndarray:
    """An argument with one number for each row of the table, at the kept rows."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{what} is not numeric; expected a column's name or one number a row.") from None
    if array.shape != (total,):
        raise DataError(f"{what} has shape {array.shape}; expected ({total},), one number for each row of the data.")
    if np.isnan(array).any():
        raise DataError(f"{what} is missing in row {int(np.argmax(np.isnan(array)))} (counting from 0); fill it in.")
    array = array[rows] if len(rows) < total else array
    check_finite(what, array, rows)
    return array
