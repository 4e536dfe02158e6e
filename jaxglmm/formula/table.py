"""The caller's table behind one small interface: names first, then only the columns that are asked for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import narwhals as nw
import numpy as np

from ..errors import DataError
from ..ops.traced import refuse_traced
from .columns import Column, read_columns


if TYPE_CHECKING:
    from .files import CsvFile, ParquetFile


@dataclass(frozen=True)
class Table:
    """Names of the columns, the kind of table, and how to read some columns.

    Attributes
    ----------
    names
        The column names, in order.
    native
        "pandas", "polars", "pyarrow" or "dict"; a file counts as pandas.
    path
        Of a file.
    """

    names: tuple[str, ...]
    native: str
    _read: Callable[[list[str]], dict[str, Any]]
    rows: int | None  # known without reading a column, or None
    path: str | None = None
    file: CsvFile | ParquetFile | None = None
    _held: Mapping[str, Column] = field(default_factory=dict)

    def load(self, names: Iterable[str], labels: Iterable[str] = ()) -> tuple[dict[str, Column], int]:
        """Read columns: ({name: Column}, number of rows).

        Parameters
        ----------
        names
            Columns to read as what they are: numbers, text, dates.
        labels
            Columns that group rows or are factors: those of a file of text keep its text (`Column.as_labels`). A name
            may be in both.

        Raises
        ------
        DataError
            For a name that the table lacks or has twice, and for columns of unequal length.
        """
        names, labels = list(dict.fromkeys(names)), list(dict.fromkeys(labels))
        wanted = list(dict.fromkeys([*names, *labels]))
        self._check_names(wanted)
        rest = [name for name in wanted if name not in self._held]
        columns = self._loaded([n for n in names if n in rest], [n for n in labels if n in rest]) if rest else {}
        columns = {name: columns[name] if name in columns else self._held[name] for name in wanted}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns differ in length: {lengths}; every column needs one value a row.")
        rows = next(iter(lengths.values())) if lengths else self.rows
        if rows is None:  # nothing asked for, and only a column can tell
            rows = len(next(iter(self.load(self.names[:1])[0].values()))) if self.names else 0
        return columns, rows

    def chunks(self, names: Iterable[str], labels: Iterable[str], rows: int) -> Iterator[Table]:
        """Some columns of a file, so many rows at a time, as tables that hold them; errors as `load`."""
        names, labels = list(dict.fromkeys(names)), list(dict.fromkeys(labels))
        assert self.file is not None
        self._check_names([*names, *labels])
        for values, texts in self.file.chunks(names, labels, rows):
            held = _columns_of(values, texts)
            yield replace(self, rows=len(next(iter(held.values()))), _held=held)

    def _loaded(self, names: list[str], labels: list[str]) -> dict[str, Column]:
        if self.file is None:
            return read_columns(self._read(list(dict.fromkeys([*names, *labels]))))
        [(values, texts)] = self.file.chunks(names, labels, None)
        return _columns_of(values, texts)

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            count = self.names.count(name)
            if count == 0:
                file = None if self.path is None else f"{self.path!r} has no column {name!r}: the formula"
                raise unknown_column(name, self.names, file or "the formula")
            if count > 1:
                found = "the table" if self.path is None else repr(self.path)
                raise DataError(f"{found} has {count} columns named {name!r}; rename them, so that one is meant.")

    def holding(self, names: Iterable[str], labels: Iterable[str]) -> Table:
        """The same table with some columns read, which are not read again."""
        columns, rows = self.load(names, labels)
        return replace(self, rows=rows, _held={**self._held, **columns})

    def joined(self, further: Mapping[str, np.ndarray]) -> Table:
        """The same table with further columns, which go before its own of the same name."""
        names = (*(name for name in self.names if name not in further), *further)
        return replace(self, names=names, path=None, _held={**self._held, **read_columns(dict(further))})


def _columns_of(values: dict[str, Any], labels: Mapping[str, Column]) -> dict[str, Column]:
    """Columns, those of labels beside the same ones of values."""
    columns = read_columns(values)
    for name, column in labels.items():
        columns[name] = replace(columns[name], exact=column) if name in columns else column
    return columns


def unknown_column(name: str, names: Iterable[str], asked: str = "the formula") -> DataError:
    """The error for a column that is not there, with a near match and the list of columns."""
    names = [str(n) for n in names]
    close = difflib.get_close_matches(name, names, n=1) or [n for n in names if n.lower() == name.lower()]
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    return DataError(f"{asked} uses {name!r}, which is not a column of the data.{hint} Columns: {listed or 'none'}.")


def open_table(data: Any) -> Table:
    """Make a `Table` of a data frame, a mapping of arrays, or a path to a CSV or Parquet file.

    Raises
    ------
    DataError
        When `data` is nothing of the kind.
    """
    if isinstance(data, Table):
        return data
    refuse_traced(data=data)
    if isinstance(data, str | os.PathLike):
        from .files import open_file

        file = open_file(os.fspath(data))
        return Table(file.names, "pandas", lambda names: {}, file.rows, os.fspath(data), file)
    if isinstance(data, Mapping):
        for name in data:
            if not isinstance(name, str):
                raise DataError(f"data has the key {name!r:.80}; expected the names of its columns as text.")
        return Table(tuple(data), "dict", lambda names: {n: data[n] for n in names}, 0 if not data else None)
    if isinstance(data, np.ndarray) and data.dtype.names:
        return Table(data.dtype.names, "dict", lambda names: {n: data[n] for n in names}, len(data))
    return _open_frame(data)


def _open_frame(data: Any) -> Table:
    module = type(data).__module__.partition(".")[0]
    if module == "pandas" and hasattr(data, "columns"):
        # read through pandas, because narwhals refuses a table with any repeated name
        labels = {(c if isinstance(c, str) else str(c)): c for c in data.columns}
        names = tuple(c if isinstance(c, str) else str(c) for c in data.columns)
        if data.columns.nlevels > 1:
            raise DataError("the data frame's columns have several levels; flatten them to plain names first.")
        return Table(names, "pandas", lambda want: {n: data[labels[n]] for n in want}, len(data))
    if module == "pyarrow" and hasattr(data, "column_names"):
        return Table(tuple(data.column_names), "pyarrow", lambda want: {n: data.column(n) for n in want}, data.num_rows)
    try:
        frame = nw.from_native(data)
    except TypeError:
        raise DataError(
            f"data is of type {type(data).__name__}; expected a pandas, polars or pyarrow table, a mapping of "
            "arrays, or a path to a .csv, .csv.gz or .parquet file."
        ) from None
    lazy = isinstance(frame, nw.LazyFrame)
    kind = frame.implementation
    native = "polars" if kind.is_polars() else "pyarrow" if kind.is_pyarrow() else "pandas"

    def read(want: list[str]) -> dict[str, Any]:
        part = frame.select(want)
        if isinstance(part, nw.LazyFrame):
            part = part.collect()
        return {n: part.get_column(n).to_native() for n in want}

    return Table(tuple(frame.collect_schema().names()), native, read, None if lazy else frame.shape[0])
