"""Grouping factors: a column, or the combinations of several, as int32 codes and a level table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import DataError, NotYetError
from .columns import Column
from .levels import factorize, labels_of_rows, match


@dataclass(frozen=True)
class Grouping:
    """The levels of one grouping factor.

    Attributes
    ----------
    columns
        The columns it is made of; several for an interaction.
    levels
        The labels of each column, in order.
    cells
        For an interaction, the combinations that occur: sorted numbers in which the last column's code
        runs fastest. None for a single column.
    """

    columns: tuple[str, ...]
    levels: tuple[np.ndarray, ...]
    cells: np.ndarray | None = None

    @property
    def name(self) -> str:
        """ "g", or "a:b" for an interaction."""
        return ":".join(self.columns)

    @property
    def labels(self) -> np.ndarray:
        """(G,) label of every level; "x:y" for an interaction."""
        if self.cells is None:
            return self.levels[0]
        places = np.unravel_index(self.cells, [len(v) for v in self.levels])
        return _joined([levels[at] for levels, at in zip(self.levels, places, strict=True)])

    def codes(self, columns: Mapping[str, Column]) -> np.ndarray:
        """(m,) int32 code of every row of new data; -1 where the level is missing or was not seen."""
        parts = [match(columns[name], levels) for name, levels in zip(self.columns, self.levels, strict=True)]
        if self.cells is None:
            return parts[0]
        unseen = np.logical_or.reduce([part < 0 for part in parts])
        cell = _cells([np.where(unseen, 0, part) for part in parts], [len(v) for v in self.levels])
        at = np.minimum(np.searchsorted(self.cells, cell), len(self.cells) - 1)
        return np.where(unseen | (self.cells[at] != cell), -1, at).astype(np.int32)

    def extended(self, labels: np.ndarray) -> Grouping:
        """With further levels behind the others.

        Raises
        ------
        NotYetError
            For an interaction.
        DataError
            For labels of another type.
        """
        if self.cells is not None:
            raise NotYetError(
                f"{self.name!r} gets no new combinations yet, such as {str(labels[0])!r}: give the combinations as "
                "a column of their own, or leave these rows out"
            )
        old = self.levels[0]
        more = labels.astype(object) if old.dtype == object else labels
        kinds = {old.dtype.kind, more.dtype.kind}
        if kinds == {"i", "u"} and min(old.min(), more.min()) >= 0:
            old, more = old.astype(np.uint64), more.astype(np.uint64)
        elif old.dtype.kind == "f" and more.dtype.kind in "iu" and int(np.abs(more).max()) <= 2**53:
            more = more.astype(np.float64)
        elif len(kinds) > 1:
            raise DataError(
                f"column {self.name!r} has new levels such as {more.tolist()[0]!r}, and those of the model are of "
                f"another type ({old.tolist()[0]!r}): convert the column to the type that it had"
            )
        return replace(self, levels=(np.concatenate([old, more]),))

    def row_labels(self, columns: Mapping[str, Column], raw: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Labels (m,) of the rows of new data, and which (m,) are missing; `raw` as for `levels.labels_of_rows`."""
        own = [columns[name].as_labels for name in self.columns]
        parts = [labels_of_rows(column, levels, raw) for column, levels in zip(own, self.levels, strict=True)]
        missing = np.zeros(len(parts[0]), bool)
        for column in own:
            if column.missing is not None:
                missing |= column.missing
        return parts[0] if self.cells is None else _joined(parts), missing


def first_grouping(
    names: Sequence[str], columns: Mapping[str, Column], wanted: Mapping[str, Sequence[Any] | None]
) -> tuple[Grouping, np.ndarray]:
    """Find the levels of a grouping factor in the fitted data: (grouping, codes (n,) int32).

    Level order is the columns' own (see `levels.factorize`); combinations that do not occur are left out.
    """
    parts = [factorize(columns[name], wanted.get(name)) for name in names]
    levels = tuple(part[1] for part in parts)
    if len(parts) == 1:
        return Grouping(tuple(names), levels), parts[0][0]
    cell = _cells([part[0] for part in parts], [len(v) for v in levels])
    codes, cells = factorize(Column(":".join(names), "number", cell))
    return Grouping(tuple(names), levels, cells), codes


def _cells(codes: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    if np.prod([float(s) for s in sizes]) > 2**62:
        raise DataError(f"a grouping factor of {' x '.join(map(str, sizes))} combinations is too large; join fewer.")
    cell = codes[0].astype(np.int64)
    for code, size in zip(codes[1:], sizes[1:], strict=True):
        cell *= size
        cell += code
    return cell


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    text = parts[0].astype(str)
    for part in parts[1:]:
        text = np.strings.add(np.strings.add(text, ":"), part.astype(str))
    return text.astype(object)
