"""Very many responses of one model, read in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import DataError
from .columns import Column
from .response import plan_response, read_response
from .spec import ModelSpec
from .table import Table, open_table, unknown_column
from .variables import first_variable


@dataclass(frozen=True)
class Responses:
    """Where the responses are.

    Attributes
    ----------
    labels
        (B,) their names; their numbers for an array.
    rows
        (n,) the rows of the design in the caller's table.
    source
        A table, or an array (all rows, B).
    """

    labels: np.ndarray
    rows: np.ndarray
    source: Table | np.ndarray

    def read(self, which: np.ndarray, family: Any) -> tuple[np.ndarray, list[str | None]]:
        """Some responses: (Y (k, n), and why one cannot be used)."""
        Y, reasons = np.zeros((len(which), len(self.rows))), []
        if isinstance(self.source, Table):
            columns, total = self.source.load(self.labels[which].tolist())
            self._check_rows(total)
        for k, j in enumerate(which):
            try:
                if isinstance(self.source, Table):
                    values, missing = self._values(columns[self.labels[j]], family)
                else:
                    values = self.source[self.rows, j]
                    missing = ~np.isfinite(values)
                if missing.any():
                    first = int(self.rows[np.argmax(missing)])
                    count = f" and {missing.sum() - 1} more" if missing.sum() > 1 else ""
                    name = self.labels[j : j + 1].tolist()[0]
                    raise DataError(
                        f"the response {name!r} is missing or infinite in row {first} (counting from 0){count}: fill "
                        "it in, or fit it apart without these rows"
                    )
                Y[k] = values
                reasons.append(None)
            except DataError as error:
                reasons.append(str(error))
        return Y, reasons

    def _values(self, column: Column, family) -> tuple[np.ndarray, np.ndarray]:
        column = column.take(self.rows)
        missing = np.zeros(len(self.rows), bool) if column.missing is None else column.missing
        if missing.any() or column.kind in ("number", "boolean"):
            plain = column.kind in ("number", "boolean")
            values = column.values.astype(float) if plain else np.zeros(len(self.rows))
            return values, missing | ~np.isfinite(values)
        response = plan_response(f"`{column.name}`", {column.name})
        variable = {column.name: first_variable(column, None)[1]}
        return read_response(response, variable, self.rows, family.name)[1], missing

    def _check_rows(self, total):
        if len(self.rows) and self.rows[-1] >= total:
            raise DataError(f"the responses have {total} rows, and the data more: expected one value for each row.")

    def spec_of(self, spec: ModelSpec, j: int) -> ModelSpec:
        """The specification of the model of one response."""
        return replace(spec, formula=f"{self.labels[j]} {spec.formula.strip()}")


def open_responses(responses: Sequence[str] | Any, data: Any, rows: np.ndarray) -> Responses:
    """Find the responses: columns of `data`, or the columns of a table or array of their own.

    Raises
    ------
    DataError
        For an unknown column, a name given twice, no responses, or an array of another shape.
    """
    if isinstance(responses, str):
        responses = [responses]
    if isinstance(responses, list | tuple):
        table = open_table(data)
        for name in responses:
            if not isinstance(name, str):
                raise DataError(f"responses= has {name!r:.80}; expected names of columns.")
            if name not in table.names:
                raise unknown_column(name, table.names, "responses=")
        if len(set(responses)) < len(responses):
            twice = next(name for name in responses if responses.count(name) > 1)
            raise DataError(f"responses= names {twice!r} twice; each response is fitted once.")
        labels, source = np.array(responses, object), table
    elif isinstance(responses, np.ndarray) and responses.dtype.names is None:
        if responses.ndim != 2 or responses.dtype.kind not in "iufb":
            raise DataError(
                f"responses is an array of shape {responses.shape} and type {responses.dtype}; expected numbers (rows, "
                "B), one column for each response."
            )
        labels, source = np.arange(responses.shape[1]), responses
        if len(rows) and rows[-1] >= len(responses):
            raise DataError(f"responses has {len(responses)} rows, and the data more: expected a value for each row.")
    else:
        source = open_table(responses)
        labels = np.array(source.names, object)
    if not len(labels):
        raise DataError("responses= names no response; expected at least one.")
    return Responses(labels, rows, source)
