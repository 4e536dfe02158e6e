"""Formula text -> columns of numbers, through formulaic. No other file touches formulaic.

A `Recipe` is what a set of columns needs to be made again for new data: the formula, the state of its
transforms (spline knots, means, polynomial coefficients) and the levels of its factors, all plain values.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec
from formulaic.errors import FormulaicError
from formulaic.materializers import FormulaMaterializer, PandasMaterializer
from formulaic.materializers.types import FactorValues
from formulaic.parser.types import Factor
from formulaic.utils.layered_mapping import LayeredMapping
from formulaic.utils.stateful_transforms import stateful_eval
from interface_meta import override

from ..errors import DataError, FormulaError
from .expressions import check_expression, names_used, rewrite
from .functions import FUNCTIONS
from .table import unknown_column


@dataclass(frozen=True)
class Recipe:
    """How to make some columns of numbers from a table.

    Attributes
    ----------
    formula
        One-sided formula in Python's spelling.
    variables
        Columns of the table that it needs.
    display, aliases
        See `expressions.Rewritten`.
    full_rank
        Whether one level of a factor is left out where it would be redundant.
    names
        Names of the resulting columns; empty until they have been made once.
    transforms, factors
        State of the transforms by expression; levels by factor expression.
    of_factors
        The columns of terms in which there is a factor.
    dropped
        Columns that were left out, as what combination of `names` they are: {column: {name: coefficient}}.
    """

    formula: str
    variables: tuple[str, ...]
    display: dict[str, str]
    aliases: dict[str, str]
    full_rank: bool = True
    names: tuple[str, ...] = ()
    transforms: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, Any] = field(default_factory=dict)
    of_factors: tuple[str, ...] = ()
    dropped: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Expression:
    """One expression to be evaluated on a table: a response or an offset."""

    text: str
    user_text: str
    variables: tuple[str, ...]
    aliases: dict[str, str]
    transforms: dict[str, Any] = field(default_factory=dict)


def plan(text: str, columns: Collection[str], full_rank: bool = True) -> Recipe:
    """Read a formula's text without touching the data.

    Raises
    ------
    FormulaError
        When it cannot be read or calls an unknown function.
    DataError
        When it uses a column that is not there.
    """
    return _planned(text, tuple(columns), full_rank)


@functools.lru_cache(64)
def _planned(text: str, columns: tuple[str, ...], full_rank: bool) -> Recipe:
    rewritten = rewrite(text, columns)
    needed = _needed(_terms(rewritten.text, text), rewritten.aliases, columns)
    return Recipe(rewritten.text, needed, rewritten.display, rewritten.aliases, full_rank)


def _needed(terms: Iterable[Any], aliases: dict[str, str], columns: Collection[str]) -> tuple[str, ...]:
    """The columns that terms need, once every expression in them has been checked."""
    needed: list[str] = []
    for factor in (factor for term in terms for factor in term.factors):
        if factor.eval_method is Factor.EvalMethod.PYTHON:
            needed += check_expression(factor.expr, aliases, columns, FUNCTIONS)
        elif factor.eval_method is Factor.EvalMethod.LOOKUP:
            if factor.expr not in columns:
                raise unknown_column(factor.expr, columns)
            needed.append(factor.expr)
    return tuple(dict.fromkeys(needed))


def plan_expression(text: str, columns: Collection[str]) -> Expression:
    """Read one expression without touching the data; errors as `plan`."""
    return replace(_planned_expression(text, tuple(columns)), transforms={})


@functools.lru_cache(64)
def _planned_expression(text: str, columns: tuple[str, ...]) -> Expression:
    rewritten = rewrite(text, columns, whole=True)
    if len(text) > 2 and text[0] == text[-1] == "`" and text[1:-1] in columns:  # `my column`
        return Expression(next(iter(rewritten.aliases), text[1:-1]), text, (text[1:-1],), rewritten.aliases)
    needed = check_expression(rewritten.text, rewritten.aliases, columns, FUNCTIONS)
    return Expression(rewritten.text, text, tuple(needed), rewritten.aliases)


def computed_with(recipe: Recipe) -> set[str]:
    """The columns that a recipe does more with than to take them as they are."""
    found: set[str] = set()
    for term in _terms(recipe.formula, recipe.formula):
        if len(term.factors) > 1 or any(f.eval_method is not Factor.EvalMethod.LOOKUP for f in term.factors):
            found.update(_needed([term], recipe.aliases, recipe.variables))
    return {recipe.aliases.get(name, name) for name in found}


def uses_of(recipe: Recipe) -> list[tuple[str, bool]]:
    """The columns of a recipe as often as they are used, and whether that is as a factor, as in `C(x)`."""
    found = []
    for factor in {f.expr: f for term in _terms(recipe.formula, recipe.formula) for f in term.factors}.values():
        if factor.eval_method is Factor.EvalMethod.PYTHON:
            found += [(recipe.aliases.get(name, name), as_factor) for name, as_factor in names_used(factor.expr)]
        elif factor.eval_method is Factor.EvalMethod.LOOKUP:
            found.append((recipe.aliases.get(factor.expr, factor.expr), False))
    return found


def uses_in(expression: Expression) -> list[tuple[str, bool]]:
    """The same of one expression."""
    return [(expression.aliases.get(name, name), as_factor) for name, as_factor in names_used(expression.text)]


def separate_terms(text: str, columns: Collection[str]) -> list[str]:
    """The terms of a formula as formulas of their own, "1" first if it has an intercept.

    This is what `||` needs: `(x + f || g)` is `(1 | g) + (0 + x | g) + (0 + f | g)`, so the effects of
    one factor's levels stay correlated, as in lme4.
    """
    rewritten = rewrite(text, columns)
    terms = [str(term) for term in _terms(rewritten.text, text)]
    return [term if term == "1" else f"0 + {term}" for term in terms]


@functools.lru_cache(256)
def _parsed(text: str) -> Any:
    """Reading a text takes formulaic as long as a small fit, and each text is read several times."""
    return Formula.from_spec(text)


def _terms(text: str, user_text: str) -> list[Any]:
    try:
        formula = _parsed(text)
    except (FormulaicError, SyntaxError, ValueError) as error:
        raise FormulaError(f"the formula part {user_text!r} cannot be read: {_first_line(error)}") from None
    return list(formula)


def _formula(recipe: Recipe) -> Any:
    formula = _parsed(recipe.formula)
    _needed(formula, recipe.aliases, recipe.variables)  # a recipe may come from a file: check it again
    return formula


def make(recipe: Recipe, variables: Mapping[str, pd.Series], rows: int) -> tuple[Recipe, list[np.ndarray]]:
    """Make the columns of a recipe for the first time.

    Parameters
    ----------
    recipe
        From `plan`.
    variables
        The needed columns without missing values: float64 or bool numbers, or pandas categoricals.
    rows
        Number of rows, for formulas without a variable.

    Returns
    -------
    recipe
        The same with names and state.
    columns
        One array (rows,) a name, of any number type.
    """
    spec = ModelSpec(formula=_formula(recipe), ensure_full_rank=recipe.full_rank, na_action="ignore")
    spec, named = _materialise(spec, recipe, variables, rows)
    factors = {
        expression: {"kind": kind.value, "levels": list(state["categories"])}
        for expression, (kind, state) in spec.encoder_state.items()
        if "categories" in state
    }
    of_factors = tuple(
        name
        for term, _, columns in spec.structure or ()
        if any(factor.expr in factors for factor in term.factors)
        for name in columns
    )
    state = {"transforms": spec.transform_state, "factors": factors, "of_factors": of_factors}
    return replace(recipe, names=tuple(named), **state), list(named.values())


def remake(recipe: Recipe, variables: Mapping[str, pd.Series], rows: int) -> list[np.ndarray]:
    """Make the columns of a recipe for new data, with the state that `make` left in it; behind them those dropped.

    Raises
    ------
    DataError
        For a level that the factor did not have when the recipe was made.
    """
    spec = ModelSpec(
        formula=_formula(recipe),
        ensure_full_rank=recipe.full_rank,
        na_action="ignore",
        transform_state=recipe.transforms,
        encoder_state={
            expression: (Factor.Kind(state["kind"]), {"categories": list(state["levels"])})
            for expression, state in recipe.factors.items()
        },
    )
    _, named = _materialise(spec, recipe, variables, rows)
    return [named[name] for name in (*recipe.names, *recipe.dropped)]


def differs(column: np.ndarray, combination, columns) -> np.ndarray:
    """Rows (m,) in which a column is not this combination of others, {key of `columns`: coefficient}."""
    total, scale = np.zeros(len(column)), np.abs(np.asarray(column, float))
    for key, value in combination.items():
        part = value * np.asarray(columns[key], float)
        total += part
        scale = np.maximum(scale, np.abs(part))
    return np.abs(column - total) > 1e-6 * scale


def evaluate(expression: Expression, variables: Mapping[str, pd.Series]) -> Any:
    """The value of one expression: a Series, array or number. Its transforms' state is kept in it."""
    check_expression(expression.text, expression.aliases, expression.variables, FUNCTIONS)  # may come from a file
    data = dict(variables) | {alias: variables[name] for alias, name in expression.aliases.items()}
    if expression.text in data:
        return data[expression.text]
    try:
        with np.errstate(all="ignore"):
            value = stateful_eval(
                expression.text, LayeredMapping(data, FUNCTIONS), {}, expression.transforms, ModelSpec(formula=[])
            )
    except Exception as error:  # whatever the called functions raise
        raise _unevaluated(expression.user_text, error) from error
    return getattr(value, "__wrapped__", value)


class _Materialiser(PandasMaterializer):
    """formulaic's pandas materialiser, with booleans as factors (as in R), strict levels and no copies."""

    def __init__(self, recipe: Recipe, columns: Mapping[str, Any], rows: int):
        self.recipe, self.rows = recipe, rows
        super().__init__(columns, context=FUNCTIONS)

    @override
    def _init(self) -> None:
        """The columns stay a mapping."""

    @override
    @property
    def nrows(self) -> int:
        return self.rows

    @override
    def _is_categorical(self, values: Any) -> bool:
        return _is_boolean(values) or super()._is_categorical(values)

    @override
    def _encode_constant(self, value, metadata, encoder_state, spec, drop_rows):  # type: ignore[no-untyped-def]
        """One number, which `_vector` makes a column that is stored once."""
        return float(value)

    @override
    def _encode_categorical(self, values, metadata, encoder_state, spec, drop_rows, reduced_rank=False):  # type: ignore[no-untyped-def]
        """Treatment contrasts, as formulaic's own, straight from the codes: a dummy is only a comparison."""
        values = pd.Series(getattr(values, "__wrapped__", values))
        if _is_boolean(values):
            values = values.astype(pd.CategoricalDtype([False, True]))
        elif not isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype("category")
        if "categories" in encoder_state:
            values = values.cat.set_categories(encoder_state["categories"])
        codes, levels = values.cat.codes.to_numpy(), list(values.cat.categories)
        encoder_state["categories"] = levels
        return FactorValues(
            {level: codes == code for code, level in enumerate(levels)},
            kind=Factor.Kind.CATEGORICAL,
            column_names=tuple(levels),
            spans_intercept=True,
            drop_field=levels[0] if levels else None,
            format_reduced="{name}[T.{field}]",
            encoded=True,
        )

    @override
    def _encode_evaled_factor(self, factor, spec, drop_rows, reduced_rank=False):  # type: ignore[no-untyped-def]
        categorical = factor.metadata.kind is Factor.Kind.CATEGORICAL
        known = spec.encoder_state.get(factor.expr)
        if categorical and known and "categories" in known[1]:
            self._check_levels(factor, known[1]["categories"])
        encoded = super()._encode_evaled_factor(factor, spec, drop_rows, reduced_rank)
        if categorical:
            levels = spec.encoder_state[factor.expr][1]["categories"]
            if not known:
                self._check_levels(factor, levels)
            if len(levels) < 2 and reduced_rank:
                only = f"only the level {levels[0]!r}" if levels else "no level"
                raise DataError(f"the factor {self._shown(factor.expr)!r} has {only}; take it out of the formula.")
        return encoded

    def _check_levels(self, factor: Any, levels: Sequence[Any]) -> None:
        values = factor.values.__wrapped__
        seen = values.cat.categories if hasattr(values, "cat") else pd.unique(values)
        unseen = [v for v in seen if v not in set(levels)]
        if unseen:
            raise unseen_levels(self._shown(factor.expr), unseen, levels)

    def _shown(self, expression: str) -> str:
        return self.recipe.display.get(expression, expression)

    @override
    def _flatten_encoded_evaled_factor(self, name, values):  # type: ignore[no-untyped-def]
        return super()._flatten_encoded_evaled_factor(self._shown(name), values)

    @override
    def _get_columns_for_term(self, factors, spec, scale=1):  # type: ignore[no-untyped-def]
        if len(factors) == 1 and scale == 1:
            return factors[0]
        return super()._get_columns_for_term(factors, spec, scale)

    @override
    def _combine_columns(self, cols, spec, drop_rows):  # type: ignore[no-untyped-def]
        return dict(cols)


def _is_boolean(values: Any) -> bool:
    return getattr(values, "dtype", None) == np.dtype(bool)


def _materialise(
    spec: ModelSpec, recipe: Recipe, variables: Mapping[str, pd.Series], rows: int
) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    data = {name: variables[name] for name in recipe.variables}
    data |= {alias: variables[name] for alias, name in recipe.aliases.items()}
    materialiser: FormulaMaterializer = _Materialiser(recipe, data, rows)
    try:
        with np.errstate(all="ignore"):
            matrix = materialiser.get_model_matrix(spec, output="numpy")
    except (DataError, FormulaError):
        raise
    except Exception as error:  # whatever the called functions raise
        raise _unevaluated(recipe.formula, error) from error
    named = {name: _vector(name, column, rows) for name, column in matrix.__wrapped__.items()}  # type: ignore[union-attr]
    return matrix.model_spec, named  # type: ignore[union-attr]


def _vector(name: str, column: Any, rows: int) -> np.ndarray:
    array = np.asarray(column)
    if array.dtype.kind not in "iufb":
        raise DataError(f"{name!r} gives values of type {array.dtype}, not numbers; convert its columns first.")
    return np.broadcast_to(array, (rows,))


def unseen_levels(name: str, unseen: Sequence[Any], levels: Sequence[Any]) -> DataError:
    """The error for levels that a factor does not have."""
    more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
    known = ", ".join(repr(_plain(v)) for v in list(levels)[:20])
    return DataError(
        f"{name!r} has the level {', '.join(repr(_plain(v)) for v in unseen[:5])}{more}, for which there is no "
        f"coefficient (levels: {known}). Drop those rows or recode them."
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _unevaluated(text: str, error: Exception) -> FormulaError | DataError:
    message = _first_line(error)
    cause = error.__cause__
    if "beyond upper and/or lower bounds" in str(error):
        return DataError(
            f"{message.partition('. [')[0]}: values lie outside of the range that the spline was made for. Add "
            "extrapolation='extend' or 'clip' to the spline, or drop those rows."
        )
    if isinstance(error, FormulaicError) and message.startswith("Unable to evaluate"):
        return FormulaError(f"{message} (in {text!r})")
    return FormulaError(f"{text!r} cannot be evaluated: {message}" + (f" ({cause})" if cause else ""))
