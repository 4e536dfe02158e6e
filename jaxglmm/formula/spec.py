"""What prediction needs of a formula: a `ModelSpec`, which makes the same columns from new data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from ..model.centring import centred
from ..ops.columns import Columns
from .columns import Column
from .fixed import Expression, Recipe, differs, evaluate, remake
from .grouping import Grouping
from .response import Response, read_response
from .table import Table, open_table
from .variables import Variable, check_finite, next_variable, take_complete


@dataclass(frozen=True)
class TermSpec:
    """The random effects of one grouping factor.

    Attributes
    ----------
    grouping
        Its levels.
    recipes
        The left sides of its bars, one a block of correlated effects.
    basis
        (S, S), of the fitted data: new rows' columns are centred alike; see `TermFrame`.
    """

    grouping: Grouping
    recipes: tuple[Recipe, ...]
    basis: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """(S,) names of the effects."""
        return tuple(name for recipe in self.recipes for name in recipe.names)

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Which effects are correlated."""
        ends = np.cumsum([len(recipe.names) for recipe in self.recipes])
        return tuple(tuple(range(end - len(r.names), end)) for r, end in zip(self.recipes, ends.tolist(), strict=True))


@dataclass(frozen=True)
class ModelSpec:
    """A formula and what was learned of the data that it was first applied to.

    Attributes
    ----------
    formula
        The user's text.
    family
        The family's name; says how a response is read.
    variables
        What each column was: number, boolean, or factor with its levels.
    response
        The left side; None if it was empty.
    fixed
        The fixed part.
    offsets
        `offset(...)` terms.
    offset_column, weights_column
        Columns that were named as offset and weights.
    offset_given
        Whether the offset came as an array, which new data cannot repeat.
    terms
        One a grouping factor.
    """

    formula: str
    family: str
    variables: dict[str, Variable]
    response: Response | None
    fixed: Recipe
    offsets: tuple[Expression, ...]
    offset_column: str | None
    offset_given: bool
    weights_column: str | None
    terms: tuple[TermSpec, ...]

    @property
    def response_text(self) -> str:
        """The left side as it was written."""
        return self.formula.split("~")[0].strip()

    def fixed_matrix(self, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """The fixed part's columns and the offset for new data.

        Parameters
        ----------
        data
            A table of any kind that `model_frame` takes.

        Returns
        -------
        X
            (m, p) float64, C order. A row with a missing value is NaN.
        offset
            (m,) from the formula and the offset column; an offset once given as an array is not in it.

        Raises
        ------
        DataError
            For a missing column, another type than at the fit, a level that a factor did not have, or a combination
            of levels that no row of the fit had and that has a coefficient of its own.
        """
        needed = [*self.fixed.variables, *self._offset_variables()]
        variables, kept, rows = self._read(data, needed)
        names = (*self.fixed.names, *self.fixed.dropped)
        made = dict(zip(names, remake(self.fixed, variables, len(kept)), strict=True)) if len(kept) else {}
        for name, column in made.items():
            check_finite(name, column, kept)
        self._check_estimable(made, kept)
        columns = [made[name] for name in self.fixed.names] if made else []
        if columns and len(kept) == rows:
            return Columns(columns, rows).matrix(), offset_of(self, variables, kept)
        X = np.full((rows, len(self.fixed.names)), np.nan)
        offset = np.full(rows, np.nan)
        if len(kept):
            X[kept], offset[kept] = Columns(columns, len(kept)).matrix(), offset_of(self, variables, kept)
        return X, offset

    def effect_columns(self, term: int, data: Any) -> np.ndarray:
        """The random effects' columns of one term for new data, (S, m) float64, which need no group.

        They are centred as in the fit. A row with a missing value in them is NaN.
        """
        spec = self.terms[term]
        needed = list(dict.fromkeys(name for recipe in spec.recipes for name in recipe.variables))
        variables, kept, rows = self._read(data, needed)
        z = np.full((len(spec.names), rows), np.nan)
        if len(kept):
            made = [column for recipe in spec.recipes for column in remake(recipe, variables, len(kept))]
            for row, name, column in zip(z, spec.names, made, strict=True):
                check_finite(name, column, kept)
                row[kept if len(kept) < rows else slice(None)] = column
        return centred(z, spec.basis)

    def effect_matrix(self, term: int, data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The random effects' columns and groups of one term for new data.

        Returns
        -------
        z
            (S, m) float64, centred as in the fit. A row with a missing value in them is NaN.
        labels
            (m,) label of the group, None where missing.
        codes
            (m,) int32 level of the group, -1 where it is missing or was not seen at the fit.
        """
        labels, missing, codes = self.groups(term, data)
        if missing.any():
            labels = labels.astype(object)
            labels[missing] = None
        return self.effect_columns(term, data), labels, codes

    def groups(self, term: int, data: Any, *, raw: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The groups of one term in new data: labels (m,), which are missing (m,), levels at the fit (m,), -1 for none.

        `raw` leaves labels as the text of a file, see `levels.labels_of_rows`.
        """
        grouping = self.terms[term].grouping
        columns, _ = open_table(data).load((), grouping.columns)
        return *grouping.row_labels(columns, raw), grouping.codes(columns)

    def read(self, data: Any, *, groups: bool = True, slopes: bool = True, response: bool = False) -> Table:
        """New data as a table of which each column that is needed has been read, once.

        Parameters
        ----------
        groups
            Whether the grouping columns are needed.
        slopes
            Whether the columns of random effects are.
        response
            Whether the response and the weights are.

        Raises
        ------
        DataError
            For a missing column, or a file that cannot be read.
        """
        return open_table(data).holding(*self.columns(groups=groups, slopes=slopes, response=response))

    def columns(
        self, *, groups: bool = True, slopes: bool = True, response: bool = False
    ) -> tuple[list[str], list[str]]:
        """Names of the columns that new data need (see `read`): those of values, and those of labels."""
        names = [*self.fixed.variables, *self._offset_variables()]
        if slopes:
            names += [name for term in self.terms for recipe in term.recipes for name in recipe.variables]
        if response:
            names += self.response.variables if self.response else ()
            names += [self.weights_column] if self.weights_column else []
        labels = [name for term in self.terms for name in term.grouping.columns] if groups else []
        values, more = self._apart(names)
        return values, list(dict.fromkeys([*labels, *more]))

    def _apart(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Columns of numbers, and factors."""
        names = list(dict.fromkeys(names))
        factors = [name for name in names if name in self.variables and self.variables[name].levels is not None]
        return [name for name in names if name not in factors], factors

    def response_values(self, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """The response of new data, read as at the fit: (y (m,), trials (m,)); NaN where missing.

        `trials` is 1 but for `cbind(successes, failures)`.
        """
        if self.response is None:
            raise DataError(f"the formula {self.formula!r} has no response.")
        variables, kept, rows = self._read(data, self.response.variables)
        y, trials = np.full(rows, np.nan), np.full(rows, np.nan)
        if len(kept):
            _, y[kept], counts = read_response(self.response, variables, kept, self.family)
            trials[kept] = 1.0 if counts is None else counts
        return y, trials

    def weight_values(self, data: Any) -> np.ndarray:
        """The weights of new data from the column that the fit took them from, (m,); NaN where missing, 1 for none.

        Raises
        ------
        DataError
            For text, and for negative or infinite weights.
        """
        name = self.weights_column
        if name is None:
            return np.ones(open_table(data).load(())[1])
        variables, kept, rows = self._read(data, [name])
        weights = np.full(rows, np.nan)
        weights[kept] = variables[name]
        if (weights < 0).any():
            first = int(np.argmax(weights < 0))
            raise DataError(f"weights={name!r} is {weights[first]:g} in row {first} (counting from 0); expected at "
                            "least 0.")  # fmt: skip
        return weights

    def _check_estimable(self, made: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        """Refuse rows in which a column that was dropped is not what it was at the fit."""
        for name, combination in self.fixed.dropped.items() if made else ():
            other = differs(made[name], combination, made)
            if other.any():
                more = f" and {int(other.sum()) - 1} more" if other.sum() > 1 else ""
                raise DataError(
                    f"row {int(rows[np.argmax(other)])} (counting from 0){more} has a combination of levels that no "
                    f"row of the fit has: there is no estimate for {name!r}. Drop such rows, or recode them."
                )

    def _offset_variables(self) -> list[str]:
        names = [name for expression in self.offsets for name in expression.variables]
        return names + ([self.offset_column] if self.offset_column else [])

    def _read(self, data: Any, needed: Iterable[str]) -> tuple[dict[str, pd.Series], np.ndarray, int]:
        columns, rows = open_table(data).load(*self._apart(needed))
        return self._complete(columns, rows)

    def _complete(self, columns: Mapping[str, Column], rows: int) -> tuple[dict[str, pd.Series], np.ndarray, int]:
        """Variables of the rows without a missing value, the positions of those rows, and all rows' number."""
        complete, kept, _ = take_complete(columns, rows)
        variables = {}
        for name, column in complete.items():
            variables[name] = next_variable(self.variables[name], column) if len(kept) else pd.Series(dtype=float)
            check_finite(name, variables[name], kept)
        return variables, kept, rows


def offset_of(spec: ModelSpec, variables: Mapping[str, pd.Series], rows: np.ndarray) -> np.ndarray:
    """The sum of the `offset(...)` terms and the offset column, (n,)."""
    if not spec.offsets and spec.offset_column is None:
        return np.broadcast_to(0.0, len(rows))
    total = np.zeros(len(rows))
    for expression in spec.offsets:
        value = np.asarray(evaluate(expression, variables))
        if value.dtype.kind not in "iufb":
            raise DataError(f"offset({expression.user_text}) is of type {value.dtype}; expected numbers.")
        check_finite(f"offset({expression.user_text})", np.broadcast_to(value, total.shape), rows)
        total += value
    if spec.offset_column is not None:
        total += np.asarray(variables[spec.offset_column], dtype=float)
    return total
