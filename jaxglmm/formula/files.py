"""CSV and Parquet files: the header first, then only the columns that are used, at once or some rows at a time.

Every verb reads here, so that every verb refuses the same: a line with more or fewer fields than the header, what is
cut short or damaged, text that is not UTF-8.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from ..errors import DataError
from .columns import Column, text_labels
from .spelling import whole_numbers


# R's word, what pandas, numpy and SQL write, and nothing; pandas' own list also has "None", "n/a" and "null", which are
# good labels in many tables, and labels to R
MISSING_WORDS = ("", "NA", "NaN", "nan", "NULL", "<NA>")

_PARQUET = (".parquet", ".pq")
_BLOCK = 1 << 23  # bytes of a CSV file in memory at a time, and the longest row


def plain_sizes(path: str) -> dict[str, int]:
    """Bytes a row of each column of numbers that could be read some rows at a time as it is; none but of Parquet."""
    if not path.lower().endswith(_PARQUET):
        return {}
    plain = (
        pa.float64(),
        pa.float32(),
        pa.int64(),
        pa.int32(),
        pa.int16(),
        pa.int8(),
        pa.uint32(),
        pa.uint16(),
        pa.uint8(),
    )
    return {f.name: f.type.bit_width // 8 for f in pq.read_schema(path) if f.type in plain}


# What is read of a file at a time: columns as the caller's library has them, and columns of labels.
Chunk = tuple[dict[str, Any], dict[str, Column]]


def open_file(path: str) -> CsvFile | ParquetFile:
    """Open a CSV or Parquet file, of which the header alone is read.

    Raises
    ------
    DataError
        For a missing, damaged, empty or unsupported file.
    """
    if not os.path.exists(path):
        raise DataError(f"there is no file {path!r}; check the path (the working directory is {os.getcwd()!r}).")
    if os.path.isdir(path):
        raise DataError(f"{path!r} is a directory; expected a .csv, .csv.gz or .parquet file.")
    lower = path.lower()
    if lower.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
        return CsvFile.open(path)
    if lower.endswith(_PARQUET):
        return ParquetFile.open(path)
    raise DataError(
        f"{path!r} has an ending that is not supported; expected .csv, .csv.gz, .tsv, .tsv.gz, .parquet or .pq. "
        "Other formats can be read into a data frame first."
    )


def whole_table(path: str) -> Any:
    """All of a file as a pandas table to which columns may be added: values of a CSV file as they are written there.

    Raises
    ------
    DataError
        As `open_file`.
    """
    import pandas as pd

    file = open_file(path)
    if isinstance(file, CsvFile):
        with file.guarded():
            return pd.read_csv(path, sep=file.separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    with _guarded_parquet(path):
        return pd.read_parquet(path, dtype_backend="pyarrow")  # whole numbers stay such beside missing ones


# --- CSV ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CsvFile:
    """A file of text, maybe compressed.

    pandas reads the values. Arrow reads the labels, beside it, and counts the fields of every line, which pandas would
    cut or fill up without a word; it takes a fraction of the time and holds one block of the file.
    """

    path: str
    names: tuple[str, ...]
    separator: str
    compressed: bool
    rows: int | None = None

    @classmethod
    def open(cls, path: str) -> CsvFile:
        lower = path.lower()
        file = cls(path, (), "\t" if ".tsv" in lower[-7:] else ",", lower.endswith(".gz"))
        with file.guarded(), file._text() as text:
            names = tuple(next(csv.reader(text, delimiter=file.separator), ()))
        if not names:
            raise DataError(f"{path!r} is empty, or its first line is; expected a header line with column names.")
        return cls(path, names, file.separator, file.compressed)

    def chunks(self, values: Sequence[str], labels: Sequence[str], rows: int | None) -> Iterator[Chunk]:
        """Some columns, so many rows at a time; all at once for None.

        Parameters
        ----------
        values
            Names of the columns to read as what they are.
        labels
            Of those that keep their text (see `spelling`). A name may be in both.

        Raises
        ------
        DataError
            Naming the file, what is wrong with it, and where.
        """
        with self.guarded():
            lines = _Lines(self, labels)
            for frame in self._frames(values, rows, lines):
                if len(values) and len(frame) > lines.have(len(frame)):
                    raise self._uneven()
                found = lines.take(len(frame))
                yield {name: frame[name] for name in values}, found
            if lines.have(1):
                raise self._uneven()

    def _frames(self, values: Sequence[str], rows: int | None, lines: _Lines) -> Iterator[Any]:
        """pandas' tables, once the lines that they are made of have been checked."""
        import pandas as pd

        if not len(values):
            while (count := lines.have(rows)) or rows is None:
                yield range(count if rows is None else min(count, rows))
                if rows is None:
                    return
            return
        options: dict[str, Any] = {
            "sep": self.separator, "usecols": list(values), "encoding": "utf-8-sig", "keep_default_na": False,
            "na_values": list(MISSING_WORDS), "low_memory": False,  # one type a column, not one a block
        } | _exact()  # fmt: skip
        lines.have(rows)
        if rows is None:
            yield pd.read_csv(self.path, **options)
            return
        frames: Any = pd.read_csv(self.path, chunksize=rows, **options)
        with frames:
            for frame in frames:
                yield frame
                lines.have(rows)

    def batches(self, labels: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Columns of labels as text, blocks of lines that have as many fields as the header."""
        wrong = []

        def judge(row: Any) -> str:
            if not row.text.strip():  # a line of blanks, which is no row
                return "skip"
            wrong.append(row)
            return "error"

        # The names are not Arrow's business: columns that are not asked for may have the same one twice.
        places = [f"f{self.names.index(name)}" for name in labels]
        types = dict.fromkeys(places, pa.string())
        convert = arrow_csv.ConvertOptions(
            include_columns=places or ["f0"], column_types=types or {"f0": pa.binary()},
            null_values=list(MISSING_WORDS), strings_can_be_null=True,
        )  # fmt: skip
        header = 1
        try:
            with arrow_csv.open_csv(
                _Bytes(self),
                read_options=arrow_csv.ReadOptions(block_size=_BLOCK, autogenerate_column_names=True),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=self.separator, newlines_in_values=True, invalid_row_handler=judge
                ),
                convert_options=convert,
            ) as blocks:
                for block in blocks:
                    yield block.slice(header)
                    header = 0 if len(block) else header
        except pa.ArrowInvalid as error:
            if wrong:
                raise self._wrong_fields(wrong[0].actual_columns) from None
            raise self._unreadable(error) from error

    def _wrong_fields(self, found: int) -> DataError:
        line = ""
        with self._text() as text:  # Arrow counts rows, an editor lines
            reader = csv.reader(text, delimiter=self.separator)
            with contextlib.suppress(csv.Error):
                for fields in reader:
                    if len(fields) != len(self.names) and "".join(fields).strip():
                        found, line = len(fields), f" {reader.line_num}"
                        break
        return DataError(
            f"{self.path!r} has {found} fields in line{line}, and its header names {len(self.names)} columns: correct "
            "that line (a value that holds the separator needs quotes, row names need a name in the header)."
        )

    def _uneven(self) -> DataError:
        return DataError(
            f"{self.path!r} cannot be read as a table: it is not clear where its rows end. Look for a quote that is "
            "never closed, or save the file again."
        )

    def _not_utf8(self, error: Exception) -> DataError:
        opener: Any = gzip.open if self.compressed else open
        line = ""
        with contextlib.suppress(OSError, EOFError, zlib.error), opener(self.path, "rb") as file:
            for number, text in enumerate(file, 1):
                try:
                    text.decode()
                except UnicodeDecodeError:
                    line = f" in line {number}"
                    break
        return DataError(f"{self.path!r} is not UTF-8 text{line} ({error}); save it as UTF-8.")

    def _unreadable(self, error: Exception) -> DataError:
        text = str(error)
        if "UTF8" in text:
            return self._not_utf8(error)
        if opened := re.search(r"EOF inside string starting at row (\d+)", text):
            text = f"the quote that is opened in line {int(opened.group(1)) + 1}, or behind it, is never closed"
        if "straddl" in text:
            text = f"a row is longer than {_BLOCK >> 20} MB, mostly because a quote is never closed ({text})"
        return DataError(f"{self.path!r} cannot be read as a table: {text.rstrip('.')}.")

    def _text(self) -> Any:
        opener: Any = gzip.open if self.compressed else open
        return opener(self.path, "rt", encoding="utf-8-sig", newline="")

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn what reading may raise into errors that name the file."""
        import pandas as pd

        try:
            yield
        except UnicodeDecodeError as error:
            raise self._not_utf8(error) from error
        except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
            raise self._unreadable(error) from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._damaged(error) from error
        except OSError as error:
            if error.errno is None:  # Arrow's, of what it unpacks
                raise self._damaged(error) from error
            raise DataError(f"{self.path!r} cannot be read: {error.strerror or error}.") from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self.path!r} is damaged or cut short ({error}); make or fetch the file again.")


class _Bytes:
    """The bytes of a CSV file on their way to Arrow, in which none is NUL: pandas would end a field there."""

    closed = False

    def __init__(self, file: CsvFile):
        self.file = file
        self._source = pa.input_stream(file.path, compression="gzip" if file.compressed else None)

    def read(self, size: int = -1) -> bytes:
        block = self._source.read(size)
        if b"\0" in block:
            raise DataError(
                f"{self.file.path!r} has a NUL byte, which no text has: it is damaged, or not UTF-8 (UTF-16 has many); "
                "save it as UTF-8."
            )
        return block

    def close(self) -> None:
        self._source.close()
        self.closed = True


class _Lines:
    """The labels of a CSV file's rows, read as far ahead as they are asked for."""

    def __init__(self, file: CsvFile, labels: Sequence[str]):
        self.labels, self._batches = labels, file.batches(labels)
        self._parts: list[list[pa.Array]] = []
        self._count = 0

    def have(self, rows: int | None) -> int:
        """Rows that lie ready, once there are so many, or all that there are; None for all."""
        while rows is None or self._count < rows:
            batch = next(self._batches, None)
            if batch is None:
                break
            if not len(self.labels):
                self._count += len(batch)
            elif len(batch):
                self._count += len(batch)
                self._parts.append([_compact(column) for column in batch.columns])
        return self._count

    def take(self, rows: int) -> dict[str, Column]:
        """The labels of the next rows."""
        self._count -= rows
        if not len(self.labels):
            return {}
        mine: list[list[pa.Array]] = [[] for _ in self.labels]
        while rows > 0:
            part = self._parts.pop(0)
            size = len(part[0])
            for column, pieces in zip(part, mine, strict=True):
                pieces.append(column.slice(0, rows))
            if size > rows:
                self._parts.insert(0, [column.slice(rows) for column in part])
            rows -= size
        return {name: text_labels(name, pieces) for name, pieces in zip(self.labels, mine, strict=True)}


def _compact(texts: pa.Array) -> pa.Array:
    """A block's labels: as int64 where they are whole numbers as these are written, else as text."""
    numbers = whole_numbers(texts)
    return texts if numbers is None else numbers


def _exact() -> dict[str, Any]:
    """Options with which pandas reads decimal numbers as written."""
    import pandas as pd

    # before 3.1 pandas' default was fast and off by an ulp; since then it is exact and the option is gone
    version = tuple(int(part) for part in pd.__version__.split(".")[:2])
    return {} if version >= (3, 1) else {"float_precision": "round_trip"}


# --- Parquet -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file, whose columns have their types."""

    path: str
    names: tuple[str, ...]
    rows: int | None

    @classmethod
    def open(cls, path: str) -> ParquetFile:
        with _guarded_parquet(path):
            meta = pq.read_metadata(path)
            return cls(path, tuple(meta.schema.to_arrow_schema().names), meta.num_rows)

    def chunks(self, values: Sequence[str], labels: Sequence[str], rows: int | None) -> Iterator[Chunk]:
        """As of a `CsvFile`; labels are what they are."""
        columns = list(dict.fromkeys([*values, *labels]))
        with _guarded_parquet(self.path):
            if rows is None:
                table = pq.read_table(self.path, columns=columns)
                yield {name: table.column(name) for name in columns}, {}
                return
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(rows, columns=columns):
                    yield {name: batch.column(name) for name in columns}, {}


@contextlib.contextmanager
def _guarded_parquet(path: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise bad_parquet(path, error) from error


def bad_parquet(path: str, error: Exception) -> DataError:
    """The error for a Parquet file that cannot be read."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(f"{path!r} is damaged, cut short or not a Parquet file ({text}); make or fetch the file again.")
