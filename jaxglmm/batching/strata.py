"""One model for many strata: the table taken apart, its rows sorted by stratum and group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.formula.frame import ModelFrame, model_frame
from jaxglmm.formula.levels import factorize
from jaxglmm.formula.table import open_table


@dataclass(frozen=True)
class Strata:
    """A model frame and the stratum of each of its rows.

    Attributes
    ----------
    frame : ModelFrame
        Of all rows.
    labels : (B,)
    code : int (n,)
        Stratum of each row.
    incomplete : dict of int to str
        Strata that had rows with missing values, and which.
    """

    frame: ModelFrame
    labels: np.ndarray
    code: np.ndarray
    incomplete: dict[int, str]

    @classmethod
    def read(cls, formula, data, by: str, family, **options) -> Strata:
        """Apply the formula to the whole table, whatever its responses are; strata are checked one by one.

        Raises
        ------
        FormulaError, DataError
        """
        lenient = SimpleNamespace(name=family.name, check_response=lambda *_: None)
        table = open_table(data)
        frame = model_frame(formula, table, family=lenient, **options)
        if frame.y is None:
            raise DataError("the formula has no response: write it as 'y ~ ...'")
        columns, total = table.load((), [by])
        column = columns[by]
        if column.missing is not None:
            raise DataError(
                f"by={by!r} is missing in row {int(np.argmax(column.missing))} (counting from 0): every row belongs to "
                "a stratum; drop such rows"
            )
        codes, labels = factorize(column)
        dropped = np.zeros(0, int)
        if len(frame.rows) < total:
            left = np.concatenate([frame.rows, frame.weightless])
            dropped = np.setdiff1d(np.arange(total), left, assume_unique=True)
        found, first = np.unique(codes[dropped], return_index=True)
        names = ", ".join(repr(name) for name in frame.dropped_by)
        incomplete = {
            int(i): f"row {int(dropped[at])} (counting from 0) has a missing value; columns with such: {names}"
            for i, at in zip(found, first, strict=True)
        }
        for i in np.setdiff1d(codes[frame.weightless], codes[frame.rows]):
            incomplete.setdefault(int(i), "all of its rows have weight zero")
        return cls(frame, labels, codes[frame.rows], incomplete)

    @cached_property
    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows stratum by stratum (n,), and where each stratum begins (B + 1,)."""
        counts = np.bincount(self.code, minlength=len(self.labels))
        return np.argsort(self.code, kind="stable"), np.append(0, np.cumsum(counts))

    def frame_of(self, i: int) -> ModelFrame:
        """The frame of one stratum, with the levels that occur there."""
        order, begin = self.sorted
        frame, rows = self.frame, order[begin[i] : begin[i + 1]]
        terms, specs = [], []
        for term, spec in zip(frame.terms, frame.spec.terms, strict=True):
            present, codes = np.unique(term.codes[rows], return_inverse=True)
            terms.append(replace(term, levels=term.levels[present], codes=codes.astype(np.int32), z=term.z[:, rows]))
            grouping = spec.grouping
            if grouping.cells is None:
                grouping = replace(grouping, levels=(grouping.levels[0][present],))
            else:
                grouping = replace(grouping, cells=grouping.cells[present])
            specs.append(replace(spec, grouping=grouping))
        return replace(
            frame, y=frame.y[rows], weights=frame.weights[rows], offset=frame.offset[rows],
            columns=tuple(column[rows] for column in frame.columns),
            terms=tuple(terms), rows=frame.rows[rows], n_dropped=0, dropped_by={}, unweighted=None,
            spec=replace(frame.spec, terms=tuple(specs)),
        )  # fmt: skip

    def only(self, strata: np.ndarray, columns: list[int]) -> Strata:
        """Some of the strata, with some of the columns."""
        order, begin = self.sorted
        rows = np.concatenate([order[begin[i] : begin[i + 1]] for i in strata])
        code = np.repeat(np.arange(len(strata)), np.diff(begin)[strata])
        frame = self.frame.with_columns(columns)
        frame = replace(
            frame, y=frame.y[rows], weights=frame.weights[rows], offset=frame.offset[rows],
            columns=tuple(column[rows] for column in frame.columns), rows=frame.rows[rows], unweighted=None,
            terms=tuple(replace(term, codes=term.codes[rows], z=term.z[:, rows]) for term in frame.terms),
        )  # fmt: skip
        incomplete = {k: self.incomplete[int(i)] for k, i in enumerate(strata) if int(i) in self.incomplete}
        return Strata(frame, self.labels[strata], code, incomplete)
