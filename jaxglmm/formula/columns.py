"""One column of any table -> numpy: numbers, booleans, dates, or integer codes into a table of labels.

Text is never carried as text: it becomes codes and labels the moment it is read, by the fastest way that
its library has (pandas' hash table, polars' categoricals, Arrow's dictionaries).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import narwhals as nw
import numpy as np
import pandas as pd

from ..errors import DataError
from ..ops import native
from ..ops.codes import text_codes
from ..ops.columns import Columns
from ..ops.measure import Moments, moments
from ..ops.memory import TYPES, need_int32
from .spelling import pc


Kind = Literal["number", "boolean", "text", "category", "time"]

# what error messages call each kind
KIND_WORDS = {
    "number": "numbers",
    "boolean": "true/false values",
    "text": "text",
    "category": "categories",
    "time": "dates or times",
}


@dataclass(frozen=True)
class Column:
    """A column as numpy arrays.

    Attributes
    ----------
    name
        The column's name in the caller's table.
    kind
        "number" (integers or floats), "boolean", "time" (datetime64 or timedelta64), "text" (labels in
        no particular order) or "category" (labels in the category's own order).
    values
        (n,) the values; for text and categories int codes into `labels`, -1 where missing.
    missing
        (n,) bool, or None when nothing is missing. Values there are a filler.
    labels
        For text and categories, the labels that the codes point to; may hold labels that no row has.
    moments
        Of numbers of which none is missing, where they have been measured: (low, high, mean, variance) of one column.
    exact
        Of numbers that are not held to the last digit, or whose text says more (`00501`): the same column as labels.
    from_text
        Of labels that a file of text has: the whole numbers are the very text, and text may be that of numbers (see
        `spelling`).
    """

    name: str
    kind: Kind
    values: np.ndarray
    missing: np.ndarray | None = None
    labels: np.ndarray | None = None
    moments: Moments | None = None
    exact: Column | None = None
    from_text: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray | slice) -> Column:
        """The same column with only `rows`."""
        missing = None if self.missing is None else self.missing[rows]
        if missing is not None and not missing.any():
            missing = None
        exact = None if self.exact is None else self.exact.take(rows)
        return replace(self, values=self.values[rows], missing=missing, moments=None, exact=exact)

    @property
    def as_labels(self) -> Column:
        """The column as what groups rows: no two labels of it become one."""
        return self if self.exact is None else self.exact


def read_columns(values: dict[str, Any]) -> dict[str, Column]:
    """Convert columns of the caller's table, which are of one length: as `read_column`, numbers measured together.

    `values` is emptied on the way, so that none of a file's columns is held twice.
    """
    columns = {}
    for name in list(values):
        try:
            columns[name] = _converted(name, values.pop(name))
        except UnicodeDecodeError as error:
            raise DataError(
                f"column {name!r} holds text that is not UTF-8 ({error.reason}); write the table with text in UTF-8"
            ) from error
    numbers = [column for column in columns.values() if column.kind == "number"]
    if len({len(column) for column in columns.values()}) == 1:
        found = moments(Columns([column.values for column in numbers], len(numbers[0]))) if numbers else None
        for k, column in enumerate(numbers):
            columns[column.name] = _with_missing(column, found.take([k]))  # type: ignore[union-attr]
    return columns


def read_column(name: str, values: Any) -> Column:
    """Convert one column of the caller's table.

    Parameters
    ----------
    name
        Used in messages.
    values
        A pandas, polars or pyarrow column, or anything that `numpy.asarray` makes one-dimensional.

    Raises
    ------
    DataError
        When the column holds something that is neither a number, a label nor a date.
    """
    return read_columns({name: values})[name]


def _with_missing(column: Column, found: Moments) -> Column:
    """A column of numbers whose moments have been found: NaN is missing, and makes the mean none."""
    missing = column.missing
    if np.isnan(found.mean[0]):
        nan = np.isnan(column.values)
        missing = nan if missing is None else missing | nan
    if missing is not None and not missing.any():
        missing = None
    return replace(column, missing=missing, moments=found if missing is None else None)


def _converted(name: str, values: Any) -> Column:
    if isinstance(values, pd.Index | pd.Categorical):
        values = pd.Series(values)
    kind = getattr(values, "dtype", None)
    if isinstance(kind, pd.CategoricalDtype):
        return _coded(name, "category", values.cat.codes.to_numpy(), values.cat.categories.to_numpy())
    if isinstance(values, pd.Series) and isinstance(kind, np.dtype):  # most columns: no layer between is needed
        return _from_numpy(name, values.to_numpy())
    try:
        series = nw.from_native(values, series_only=True)
    except TypeError:
        return _from_numpy(name, _as_vector(name, values))
    dtype = series.dtype
    if dtype.is_float():
        return _number(name, series.to_numpy(), _nulls(series))
    if dtype in (nw.Int128, nw.UInt128):
        return _from_numpy(name, np.array(series.to_list(), object))
    if dtype.is_integer():
        missing = _nulls(series)
        return _number(name, (series if missing is None else series.fill_null(0)).to_numpy(), missing)
    if dtype.is_decimal():
        return _decimal(name, series.to_arrow(), _nulls(series))
    if dtype == nw.Boolean:
        missing = _nulls(series)
        filled = series if missing is None else series.fill_null(False)
        return Column(name, "boolean", filled.to_numpy().astype(bool), missing)
    if dtype.is_temporal():
        times = series.to_numpy()
        return _from_numpy(name, times) if times.dtype == object else _time(name, times, _nulls(series))
    if series.implementation.is_polars() and dtype in (nw.String, nw.Categorical, nw.Enum):
        return _from_polars(name, series.to_native())
    if series.implementation.is_pyarrow() and dtype in (nw.String, nw.Categorical):
        return _from_arrow(name, series.to_native())
    if dtype == nw.String:
        return _from_text(name, series.to_native())
    if dtype == nw.Object and not series.implementation.is_polars():
        return _from_numpy(name, series.to_numpy())
    raise _unusable(name, f"values of type {dtype}", dtype == nw.Binary)


def _as_vector(name: str, values: Any) -> np.ndarray:
    if isinstance(values, str | bytes) or np.isscalar(values):
        raise _unusable(name, f"the single value {values!r}")
    if isinstance(values, np.ma.MaskedArray):
        plain = np.array(values.data, object)
        plain[np.ma.getmaskarray(values)] = None
        values = plain
    try:
        array = np.asarray(values)
        # a list of texts with a None in it must stay objects, a mixed list must not turn into text
        if array.dtype.kind == "U" and not isinstance(values, np.ndarray):
            array = np.asarray(values, dtype=object)
        # NumPy makes floats of whole numbers that have no integer type in common
        if array.dtype == np.float64 and isinstance(values, list | tuple) and (np.abs(array) > 2**53).any():
            array = np.asarray(values, dtype=object)
    except ValueError:
        raise _unusable(name, "rows of unequal length") from None
    if array.ndim == 2 and 1 in array.shape[1:]:
        array = array[:, 0]
    if array.ndim != 1:
        raise _unusable(name, f"an array of shape {array.shape}")
    return array


def _from_numpy(name: str, array: np.ndarray) -> Column:
    kind = array.dtype.kind
    if kind in "iuf":
        return _number(name, array, None)
    if kind == "b":
        return Column(name, "boolean", array)
    if kind in "mM":
        return _time(name, array, None)
    if kind in "UT":
        return _from_text(name, array.astype(object))
    if kind != "O":
        raise _unusable(name, f"values of type {array.dtype}", kind == "S")
    inferred = pd.api.types.infer_dtype(array, skipna=True)
    missing = pd.isna(array)
    if missing.ndim != 1:
        raise _unusable(name, "lists")
    if inferred == "string":
        return _from_text(name, array)
    if inferred == "empty":
        return _number(name, np.full(len(array), np.nan), None)
    if inferred == "boolean":
        return Column(name, "boolean", np.where(missing, False, array).astype(bool), missing if missing.any() else None)
    if inferred == "integer":
        return _whole(name, np.where(missing, 0, array), missing if missing.any() else None)
    if inferred in ("floating", "mixed-integer-float"):
        return _number(name, np.where(missing, np.nan, array).astype(float), None)
    if inferred == "decimal":
        import pyarrow as pa

        try:
            return _decimal(name, pa.array(array, from_pandas=True), missing if missing.any() else None)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:  # NaN and infinite ones, and more than 76 digits
            raise _unusable(name, f"decimal numbers that cannot be taken ({error})") from None
    if inferred in ("datetime64", "datetime", "date"):
        times = pd.to_datetime(pd.Series(array))
        if isinstance(times.dtype, pd.DatetimeTZDtype):
            times = times.dt.tz_convert("UTC").dt.tz_localize(None)
        return _time(name, times.to_numpy(), None)
    if inferred == "categorical":
        return _converted(name, pd.Series(array).astype("category"))
    kinds = sorted({type(v).__name__ for v in array[~missing][:1000]})
    raise _unusable(name, f"values of type {' and '.join(kinds)}", inferred == "bytes")


def _whole(name: str, values: np.ndarray, missing: np.ndarray | None) -> Column:
    """Python's whole numbers, of any size: beyond 64 bits their labels are their digits."""
    whole = _of_64_bits(values)
    if whole is not None:
        return _number(name, whole, missing)
    try:
        numbers = values.astype(np.float64)
    except OverflowError:
        numbers = np.array([np.inf if v > 2**1023 else -np.inf if v < -(2**1023) else float(v) for v in values])
    texts = np.array([str(v) for v in values.tolist()], object)
    texts[[] if missing is None else missing] = None
    return Column(name, "number", numbers, missing, exact=replace(_from_text(name, texts), from_text=True))


def _of_64_bits(values: np.ndarray) -> np.ndarray | None:
    """Python's whole numbers as int64 or uint64; None where neither holds them all."""
    for kind in (np.int64, np.uint64):
        with contextlib.suppress(OverflowError):
            return values.astype(kind)
    return None


def _decimal(name: str, array: Any, missing: np.ndarray | None) -> Column:
    """Decimal numbers: whole ones as such, others as floats, whose labels are their digits where a float has fewer."""
    import pyarrow as pa

    for kind in (pa.int64(), pa.uint64()):
        with contextlib.suppress(pa.ArrowInvalid):
            whole = pc.fill_null(array.cast(kind), 0)
            return _number(name, np.asarray(whole.to_numpy()), missing)
    numbers = np.array(array.cast(pa.float64()).to_numpy(zero_copy_only=False) if isinstance(array, pa.Array)
                       else array.cast(pa.float64()).to_numpy())  # fmt: skip
    if array.type.precision <= 15:
        return _number(name, numbers, missing)
    texts = array.cast(pa.string())
    texts = pc.if_else(pc.match_substring(texts, "."), pc.utf8_rtrim(pc.utf8_rtrim(texts, "0"), "."), texts)
    return Column(name, "number", numbers, missing, exact=replace(_from_arrow(name, texts), from_text=True))


def _number(name: str, values: np.ndarray, missing: np.ndarray | None) -> Column:
    """Numbers of native types stay as they are; moments, and what is not a number, are found with all columns."""
    if values.dtype == np.uint64:
        if values.size and values.max() > 2**63 - 1:
            return Column(name, "number", values.astype(float), missing, exact=Column(name, "number", values, missing))
        values = values.astype(np.int64)
    elif values.dtype not in TYPES:  # half and long floats, foreign byte orders
        values = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    return Column(name, "number", values, missing)


def _time(name: str, values: np.ndarray, missing: np.ndarray | None) -> Column:
    if values.dtype.kind not in "mM":
        raise _unusable(name, f"values of type {values.dtype}")
    missing = np.isnat(values) if missing is None else missing | np.isnat(values)
    return Column(name, "time", values, missing if missing.any() else None)


def _from_text(name: str, values: Any) -> Column:
    codes, labels = pd.factorize(values)
    return _coded(name, "text", codes, np.asarray(labels, dtype=object))


def _from_polars(name: str, series: Any) -> Column:
    import polars as pl

    if isinstance(series.dtype, pl.Enum):
        labels = series.dtype.categories.to_list()
        kind: Kind = "category"
        lookup = np.arange(len(labels), dtype=np.int32)
    else:
        # Physical numbers of a Categorical are shared by the whole process and say nothing about
        # order; polars itself sorts Categoricals by their text, so their order is the sorted one.
        series = series.cast(pl.Categorical)
        unique = series.drop_nulls().unique()
        labels = unique.cast(pl.String).to_list()
        kind = "text"
        physical = unique.to_physical().to_numpy()
        lookup = np.full(int(physical.max()) + 1 if len(physical) else 1, -1, dtype=np.int32)
        lookup[physical] = np.arange(len(labels), dtype=np.int32)
    codes = series.to_physical()
    if series.null_count():
        null = series.is_null().to_numpy()
        return _coded(name, kind, np.where(null, -1, lookup[codes.fill_null(0).to_numpy()]), labels)
    return _coded(name, kind, lookup[codes.to_numpy()], labels)


def _from_arrow(name: str, array: Any) -> Column:
    import pyarrow as pa

    kind: Kind = "category" if pa.types.is_dictionary(array.type) else "text"
    if kind == "text" and native.use_native() and len(array) < 2**31:
        texts = array.cast(pa.large_string())
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.combine_chunks()
        valid, offsets, data = texts.buffers()
        codes, first = text_codes(
            len(texts), offsets.address + 8 * texts.offset if offsets else 0, data.address if data else 0,
            data.size if data else 0, valid.address if valid else 0, texts.offset,
        )  # fmt: skip
        return _coded(name, kind, codes, texts.take(pa.array(first)).to_pylist())
    if kind == "text":
        array = array.dictionary_encode()
    if isinstance(array, pa.ChunkedArray):
        array = array.unify_dictionaries().combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # pragma: no cover - older pyarrow
            array = array.chunk(0)
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return _coded(name, kind, codes, array.dictionary.to_pylist())


def text_labels(name: str, pieces: Sequence[Any]) -> Column:
    """Labels of a file of text, from pieces that are each of text or of whole numbers as they are written."""
    import pyarrow as pa

    if all(pa.types.is_int64(piece.type) for piece in pieces):
        array = pa.chunked_array(pieces, pa.int64())
        missing = array.is_null().to_numpy().astype(bool) if array.null_count else None
        return Column(name, "number", array.fill_null(0).to_numpy(), missing, from_text=True)
    texts = pa.chunked_array([piece.cast(pa.large_string()) for piece in pieces])
    return replace(_from_arrow(name, texts), from_text=True)


def _coded(name: str, kind: Kind, codes: np.ndarray, labels: Any) -> Column:
    need_int32(f"labels of column {name!r}", len(labels))
    codes = codes.astype(np.int32, copy=False)
    missing = codes < 0
    return Column(name, kind, codes, missing if missing.any() else None, label_array(name, labels))


def label_array(name: str, labels: Any) -> np.ndarray:
    """Labels as one array: of integers, floats, booleans or dates, or of `str` objects."""
    array = np.asarray(labels)
    if array.dtype.kind in "ibmM" or (array.dtype.kind == "f" and isinstance(labels, np.ndarray)):
        return array
    if array.dtype.kind == "u":
        return array if array.size and array.max() > 2**63 - 1 else array.astype(np.int64)
    array = np.asarray(labels, dtype=object)
    if array.ndim != 1:
        raise _unusable(name, "lists")
    inferred = pd.api.types.infer_dtype(array, skipna=False)
    if inferred in ("string", "empty"):
        return array
    if inferred in ("integer", "boolean", "floating"):
        if inferred != "integer":
            return np.array(array.tolist())
        whole = _of_64_bits(array)
        return np.array([str(v) for v in array], object) if whole is None else whole
    if inferred == "decimal":
        return np.array([format(v.normalize(), "f") for v in array], object)
    if inferred in ("datetime64", "datetime", "date"):
        return pd.to_datetime(pd.Series(array)).to_numpy()
    if inferred == "interval":  # pandas.cut
        return np.array([str(v) for v in array], dtype=object)
    kinds = sorted({type(v).__name__ for v in array[:1000]})
    raise _unusable(name, f"labels of type {' and '.join(kinds)}")


def _nulls(series: Any) -> np.ndarray | None:
    if not series.null_count():
        return None
    return series.is_null().to_numpy().astype(bool)


def _unusable(name: str, found: str, raw: bool = False) -> DataError:
    remedy = "Decode the bytes to text first, as by .decode('utf-8')." if raw else "Convert the column first."
    return DataError(
        f"column {name!r} holds {found}; expected one number, text, true/false value, category or date in "
        f"every row. {remedy}"
    )
