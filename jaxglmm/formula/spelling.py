"""What the text of a CSV file's labels stands for: whole numbers and others only where their text loses nothing by it.

`501` is the whole number that a Parquet file or a data frame would have there, and `00501` is not: a column is of
numbers where every label is the very text by which its number is written, so that label and text are one to one.
Otherwise it is the text of the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute


pc: Any = pyarrow.compute  # whose functions are made as it is imported
WHOLE = re.compile(r"-?[1-9]\d*|0")
# What R and Python write for a logical value; each pair is one spelling.
BOOLEANS = ({"True", "False"}, {"TRUE", "FALSE"}, {"true", "false"})
_LIKE_A_NUMBER = r"^(-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-][0-9]+)?|[Tt]rue|[Ff]alse|TRUE|FALSE)$"
_EXACT = 2**53  # whole numbers up to here have a float of their own


def whole_numbers(texts: pa.Array) -> pa.Array | None:
    """Texts as int64, where each is a whole number as it is written; None where one is not."""
    try:
        found = texts.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    same = pc.all(pc.equal(found.cast(texts.type), texts)).as_py()  # no row, or only missing ones: None
    return None if same is False else found


def kinds_of(texts: np.ndarray) -> set[str]:
    """How labels are written, of which `type_of` tells what they stand for.

    Parameters
    ----------
    texts : (G,) of str

    Returns
    -------
    set of str
        "whole": 12; "wide": a whole number that is no float; "large": one that needs 64 bits without a sign; "below":
        some whole number has a sign; "float": 12.0, as Python and pandas write a whole float; "fraction": 0.5 or
        1e+16; "True", "TRUE", "true": truth values in this spelling; "text".
    """
    array = pa.array(texts, pa.large_string())
    numbers = whole_numbers(array)
    if numbers is not None:
        return whole_kinds(numbers.to_numpy())
    if not pc.all(pc.match_substring_regex(array, _LIKE_A_NUMBER)).as_py():
        return {"text"}
    return set().union(*map(_kinds, texts.tolist()))


def whole_kinds(numbers: np.ndarray) -> set[str]:
    """`kinds_of` whole numbers that are held as such."""
    if not len(numbers):
        return set()
    low, high = int(numbers.min()), int(numbers.max())
    wide = max(-low, high) > _EXACT
    return {"whole"} | ({"wide"} if wide else set()) | ({"below"} if low < 0 else set()) | (
        {"large"} if high >= 2**63 else set()
    )  # fmt: skip


def _kinds(text: str) -> set[str]:
    if WHOLE.fullmatch(text):
        number = int(text) if len(text) < 21 else 2**64
        return whole_kinds(np.array([number], object)) if -(2**63) <= number < 2**64 else {"text"}
    for pair in BOOLEANS:
        if text in pair:
            return {max(pair)}
    try:
        number = float(text)
    except ValueError:
        return {"text"}
    if not np.isfinite(number) or repr(number) != text or text == "-0.0":
        return {"text"}
    return {"float"} if number.is_integer() and abs(number) < _EXACT else {"fraction"}


def type_of(kinds: Collection[str]) -> np.dtype:
    """The type of labels that are written in these ways: object, for text, where text is not one to one with another.

    1 beside 1.0 are two texts of one number; whole numbers that are no floats beside fractions would be rounded.
    """
    kinds = set(kinds)
    if len(kinds) == 1 and any(max(pair) in kinds for pair in BOOLEANS):
        return np.dtype(bool)
    if kinds == {"float"} or (kinds and kinds <= {"whole", "wide", "below"}):
        return np.dtype(np.int64)
    if "large" in kinds and kinds <= {"whole", "wide", "large"}:
        return np.dtype(np.uint64)
    if kinds and (kinds <= {"float", "fraction"} or kinds <= {"whole", "below", "fraction"}):
        return np.dtype(np.float64)
    return np.dtype(object)


def typed(texts: np.ndarray, kinds: Collection[str] | None = None) -> np.ndarray:
    """Labels as numbers or truth values where their text is one to one with these, else the text.

    Parameters
    ----------
    texts : (G,) of str
    kinds : collection of str, optional
        Of all labels, where these are only some of them.

    Returns
    -------
    (G,) int64, uint64, float64, bool or object
    """
    kinds = kinds_of(texts) if kinds is None else set(kinds)
    kind = type_of(kinds)
    if kind.kind == "O":
        return texts
    if kind.kind == "b":
        return np.array([text.upper() == "TRUE" for text in texts.tolist()], bool)
    array = pa.array(texts, pa.large_string())
    if kinds == {"float"}:
        return array.cast(pa.float64()).to_numpy().astype(np.int64)
    return array.cast(pa.from_numpy_dtype(kind)).to_numpy()


def spelled(labels: np.ndarray) -> np.ndarray:
    """Labels as text, object (G,): 1 and 1.0 are "1"."""
    if labels.dtype == object:
        return labels
    if labels.dtype.kind in "iu":
        return np.asarray(pa.array(labels).cast(pa.large_string()).to_numpy(zero_copy_only=False), object)
    if labels.dtype.kind in "mM":
        return np.array([str(label) for label in labels], object)
    return np.array([label_key(label) for label in labels.tolist()], object)


def label_key(value: object) -> str:
    """A label as text: 1, 1.0 and "1" are the same level when an order is given by hand."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)
