"""CSV and Parquet files: the header first, then only the columns that are used."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ..errors import DataError


# R's word, what pandas, numpy and SQL write, and nothing; pandas' own list also has "None", "n/a" and "null", which are
# good labels in many tables, and labels to R
MISSING_WORDS = ("", "NA", "NaN", "nan", "NULL", "<NA>")

_PARQUET = (".parquet", ".pq")

Reader = Callable[[list[str]], Mapping[str, Any]]


def plain_sizes(path: str) -> dict[str, int]:
    """Bytes a row of each column of numbers that could be read some rows at a time as it is; none but of Parquet."""
    if not path.lower().endswith(_PARQUET):
        return {}
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
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


def open_file(path: str) -> tuple[tuple[str, ...], Reader, int | None]:
    """Column names, a function that reads some columns, and the number of rows where that is known.

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
        return _open_csv(path, "\t" if ".tsv" in lower[-7:] else ",")
    if lower.endswith(_PARQUET):
        return _open_parquet(path)
    raise DataError(
        f"{path!r} has an ending that is not supported; expected .csv, .csv.gz, .tsv, .tsv.gz, .parquet or .pq. "
        "Other formats can be read into a data frame first."
    )


def _open_csv(path: str, separator: str) -> tuple[tuple[str, ...], Reader, int | None]:
    compressed = path.lower().endswith(".gz")
    opener = gzip.open if compressed else open

    def guarded(work: Callable[[], Any]) -> Any:
        import pandas as pd

        try:
            return work()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path!r} is damaged or cut short ({error}); make or fetch the file again.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path!r} is not UTF-8 text ({error}); save it as UTF-8.") from error
        except (pd.errors.ParserError, csv.Error) as error:
            raise DataError(f"{path!r} cannot be read as a table: {error}.") from error

    def header() -> tuple[str, ...]:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            return tuple(next(csv.reader(file, delimiter=separator), ()))

    names = guarded(header)
    if not names:
        raise DataError(f"{path!r} is empty; expected a header line with column names.")

    def read(want: list[str]) -> Mapping[str, Any]:
        import pandas as pd

        def load() -> Any:
            return pd.read_csv(
                path,
                sep=separator,
                usecols=want,
                encoding="utf-8-sig",
                keep_default_na=False,
                na_values=list(MISSING_WORDS),
                **_exact(),
                low_memory=False,  # one type a column, not one a chunk
            )

        _check_fields(path, separator, names, opener)
        frame = guarded(load)
        return {name: frame[name] for name in want}

    return names, read, None


def _check_fields(path: str, separator: str, names: tuple[str, ...], opener: Callable[..., Any]) -> None:
    """Refuse a line with more or fewer fields than the header, which pandas would cut or fill up without a word.

    Arrow's parser counts at a fraction of the time that pandas takes to read, and holds one block of the file.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    wrong = []

    def judge(row: Any) -> str:
        if not row.text.strip():  # a line of blanks, which is no row
            return "skip"
        wrong.append(row)
        return "error"

    try:
        with arrow.open_csv(
            pa.input_stream(path, compression="gzip" if opener is gzip.open else None),
            read_options=arrow.ReadOptions(block_size=1 << 23),
            parse_options=arrow.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=judge),
            convert_options=arrow.ConvertOptions(include_columns=names[:1], column_types={names[0]: pa.binary()}),
        ) as batches:
            for _ in batches:
                pass
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError):  # what is no matter of fields, the reading itself tells
        pass
    if wrong:
        found, line = wrong[0].actual_columns, ""
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:  # Arrow counts rows, an editor lines
            reader = csv.reader(file, delimiter=separator)
            for fields in reader:
                if len(fields) != len(names) and "".join(fields).strip():
                    found, line = len(fields), f" {reader.line_num}"
                    break
        raise DataError(
            f"{path!r} has {found} fields in line{line}, and its header names {len(names)} columns: correct that line "
            "(a value that holds the separator needs quotes, row names need a name in the header)."
        )


def read_chunks(path: str, want: list[str], rows: int, text: Collection[str] = ()) -> Iterator[Any]:
    """Columns of a file, so many rows at a time.

    Parameters
    ----------
    path
    want
        Names of the columns.
    rows
        In a chunk; the last one has fewer.
    text
        Columns to read as text whatever a chunk of a CSV file looks like.

    Raises
    ------
    DataError
        As `open_file`, and for a missing column.
    """
    names, _, _ = open_file(path)
    for name in want:
        if name not in names:
            raise DataError(f"{path!r} has no column {name!r}; its columns: {', '.join(map(repr, names[:20]))}.")
    if path.lower().endswith(_PARQUET):
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(rows, columns=want):
                yield pa.Table.from_batches([batch])
        return
    import pandas as pd

    separator = "\t" if ".tsv" in path.lower()[-7:] else ","
    types: Any = dict.fromkeys(text, str)
    chunks: Any = pd.read_csv(
        path, sep=separator, usecols=want, chunksize=rows, dtype=types, encoding="utf-8-sig", keep_default_na=False,
        na_values=list(MISSING_WORDS), **_exact(), low_memory=False,
    )  # fmt: skip
    with chunks:
        yield from chunks


def _exact() -> dict[str, Any]:
    """Options with which pandas reads decimal numbers as written."""
    import pandas as pd

    # before 3.1 pandas' default was fast and off by an ulp; since then it is exact and the option is gone
    version = tuple(int(part) for part in pd.__version__.split(".")[:2])
    return {} if version >= (3, 1) else {"float_precision": "round_trip"}


def _open_parquet(path: str) -> tuple[tuple[str, ...], Reader, int | None]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return _open_parquet_polars(path)

    def guarded(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (pa.ArrowInvalid, OSError) as error:
            raise bad_parquet(path, error) from error

    meta = guarded(lambda: pq.read_metadata(path))
    schema = meta.schema.to_arrow_schema()

    def read(want: list[str]) -> Mapping[str, Any]:
        table = guarded(lambda: pq.read_table(path, columns=want))
        return {name: table.column(name) for name in want}

    return tuple(schema.names), read, meta.num_rows


def _open_parquet_polars(path: str) -> tuple[tuple[str, ...], Reader, int | None]:
    try:
        import polars as pl
    except ImportError:
        raise DataError(
            f"reading {path!r} needs pyarrow or polars, and neither is installed; "
            "run `pip install pyarrow`, or pass a .csv file."
        ) from None
    try:
        names = tuple(pl.read_parquet_schema(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise bad_parquet(path, error) from error

    def read(want: list[str]) -> Mapping[str, Any]:
        try:
            frame = pl.read_parquet(path, columns=want)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise bad_parquet(path, error) from error
        return {name: frame.get_column(name) for name in want}

    return names, read, None


def bad_parquet(path: str, error: Exception) -> DataError:
    """The error for a Parquet file that cannot be read."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(f"{path!r} is damaged, cut short or not a Parquet file ({text}); make or fetch the file again.")
