"""Columns of numbers that stay in their Parquet file: of a large table only the laid-out copy is ever in memory.

The file is read twice, some rows at a time: once for what the checks and the standardisation need to know of each
column, once for the values on their way to where they are used.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from ..ops.columns import StoredColumn
from ..ops.measure import Moments, join_sums, no_sums, of_sums, sums
from .files import bad_parquet, plain_sizes
from .table import Table
from .variables import check_finite


LARGE = 1 << 30  # bytes of plain columns from which they stay in the file
BATCH = 1 << 18  # rows in memory at a time
SAMPLE = 1 << 10  # rows of a batch, at most, that are kept for a look at how columns go together


def find_stored(table: Table, names: Collection[str]) -> StoredColumns | None:
    """Those of these columns that are numbers and best stay in a large file; None where there is none such."""
    if table.path is None or not table.rows or len(set(table.names)) < len(table.names):
        return None
    sizes = plain_sizes(table.path)
    plain = [name for name in names if name in sizes]
    if table.rows * sum(sizes[name] for name in plain) < LARGE:
        return None
    return StoredColumns(table.path, plain, table.rows)


class StoredColumns:
    """Plain columns of one file, less the rows that are left out.

    Attributes
    ----------
    names
        Of the columns.
    missing
        (rows of the file,) bool after `measure`: rows with a missing value, here or in the other columns; None for
        none.
    counts
        {name: missing values}, of those that have some.
    moments
        {name: moments of one column}, over the rows without a missing value.
    sample
        [(numbers of rows, {name: values})] of some rows a batch.
    """

    def __init__(self, path: str, names: Sequence[str], rows: int):
        self.path, self.names, self.rows = path, tuple(names), rows
        self._stamp = self._now()
        self.missing: np.ndarray | None = None
        self.counts: dict[str, int] = {}
        self.moments: dict[str, Moments] = {}
        self.sample: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []

    def measure(self, missing: np.ndarray | None) -> None:
        """Read everything once.

        Parameters
        ----------
        missing
            (rows of the file,) bool: rows that are left out whatever is here; None for none.

        Raises
        ------
        DataError
            For values that are not finite.
        """
        total = no_sums(len(self.names))
        found_missing = None if missing is None else missing.copy()
        done, every = 0, max(1, -(-min(self.rows, BATCH) // SAMPLE))
        for begin, arrays in self._batches(self.names):
            rows = slice(begin, begin + len(arrays[0]))
            gone = None if missing is None else missing[rows]
            here = sums(arrays, len(arrays[0]))
            for name, array, mean in zip(self.names, arrays, here[:, 3], strict=True):
                if np.isnan(mean):
                    nan = np.isnan(array)
                    if nan.any():
                        self.counts[name] = self.counts.get(name, 0) + int(nan.sum())
                        gone = nan if gone is None else gone | nan
            if gone is not None and gone.any():
                if found_missing is None:
                    found_missing = np.zeros(self.rows, bool)
                found_missing[rows] = gone
                arrays = [array[~gone] for array in arrays]
                here = sums(arrays, len(arrays[0]))
            for name, array, mean in zip(self.names, arrays, here[:, 3], strict=True):
                if not np.isfinite(mean):
                    places = np.arange(begin, rows.stop)
                    check_finite(name, array, places if gone is None else places[~gone])
            total = join_sums(total, here)
            picked = {name: array[::every].copy() for name, array in zip(self.names, arrays, strict=True)}
            self.sample.append((np.arange(done, done + len(arrays[0]), every), picked))
            done += len(arrays[0])
        self.missing = found_missing
        moments = of_sums(total)
        self.moments = {name: moments.take([k]) for k, name in enumerate(self.names)}

    def column(self, name: str) -> StoredColumn:
        """One of them, as a column of a design."""
        left_out = 0 if self.missing is None else int(self.missing.sum())
        return StoredColumn(self, name, self.rows - left_out)

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Some columns from the first row to the last, some rows at a time: (number of the first, arrays)."""
        if self._now() != self._stamp:
            raise DataError(f"{self.path!r} has changed since the model was fitted to it; fit again.")
        done = 0
        for begin, arrays in self._batches(names):
            if self.missing is not None:
                kept = ~self.missing[begin : begin + len(arrays[0])]
                arrays = arrays if kept.all() else [array[kept] for array in arrays]
            yield done, arrays
            done += len(arrays[0])

    def _batches(self, names: Sequence[str]) -> Iterator[tuple[int, list[np.ndarray]]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        begin = 0
        try:
            with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20) as file:
                for batch in file.iter_batches(BATCH, columns=list(dict.fromkeys(names))):
                    found = {name: _array(batch.column(name)) for name in batch.schema.names}
                    yield begin, [found[name] for name in names]
                    begin += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise bad_parquet(self.path, error) from error

    def _now(self) -> tuple[int, int]:
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise DataError(
                f"{self.path!r}, which the model was fitted to, cannot be read again ({error.strerror}): its columns "
                "stayed there. Put it back, or fit again."
            ) from error
        return status.st_size, status.st_mtime_ns


def _array(column: Any) -> np.ndarray:
    """Floats have NaN where nothing is; so have integers, which become floats there."""
    return column.to_numpy(zero_copy_only=False)
