"""A `ModelSpec` as JSON and back: plain values only, no pickle.

Python writes a float with the fewest digits that read back as the same float, so matrices made by a
loaded specification have the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ..errors import DataError
from .fixed import Expression, Recipe
from .grouping import Grouping
from .response import Response
from .spec import ModelSpec, TermSpec
from .variables import Variable


VERSION = 1


def spec_to_json(spec: ModelSpec, arrays: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
    """The specification as values that JSON knows; floats round-trip exactly.

    Parameters
    ----------
    spec
    arrays
        When given, the grouping factors' level tables are put there, as arrays by name, and the
        result only refers to them. For models of millions of groups.
    """
    terms = []
    for i, term in enumerate(spec.terms):
        grouping = term.grouping
        tables = [*grouping.levels, *([] if grouping.cells is None else [grouping.cells])]
        if arrays is None:
            saved: list[Any] = [encode(table) for table in tables]
        else:
            saved = [f"term{i}.levels{j}" for j in range(len(tables))]
            for name, table in zip(saved, tables, strict=True):
                arrays |= _packed(name, table)
        terms.append(
            {
                "columns": list(grouping.columns),
                "levels": saved,
                "effects": [_flat(recipe) for recipe in term.recipes],
                "basis": encode(term.basis),
            }
        )
    response = None
    if spec.response is not None:
        response = {
            "text": spec.response.text,
            "expressions": [_flat(e) for e in spec.response.expressions],
            "modelled": spec.response.modelled,
        }
    return {
        "version": VERSION,
        "formula": spec.formula,
        "family": spec.family,
        "variables": [_flat(variable) for variable in spec.variables.values()],
        "response": response,
        "fixed": _flat(spec.fixed),
        "offsets": [_flat(e) for e in spec.offsets],
        "offset_column": spec.offset_column,
        "offset_given": spec.offset_given,
        "weights_column": spec.weights_column,
        "terms": terms,
    }


def spec_from_json(saved: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> ModelSpec:
    """The inverse of `spec_to_json`; it gives bit-identical matrices."""
    if saved.get("version") != VERSION:
        raise DataError(
            f"the saved formula is of version {saved.get('version')!r}; this release reads version {VERSION}. "
            "Fit the model again, or load it with the release that wrote it."
        )

    def table(entry: Any) -> np.ndarray:
        if not isinstance(entry, str):
            return decode(entry)
        if arrays is None or entry not in arrays:
            raise DataError(f"the saved formula refers to the array {entry!r}, which was not given.")
        return _unpacked(entry, arrays)

    terms = []
    for term in saved["terms"]:
        columns = tuple(term["columns"])
        tables = [table(entry) for entry in term["levels"]]
        cells = tables[len(columns)] if len(tables) > len(columns) else None
        grouping = Grouping(columns, tuple(tables[: len(columns)]), cells)
        recipes = tuple(_built(Recipe, recipe) for recipe in term["effects"])
        terms.append(TermSpec(grouping, recipes, decode(term["basis"])))
    variables = [_built(Variable, variable) for variable in saved["variables"]]
    response = saved["response"]
    return ModelSpec(
        formula=saved["formula"],
        family=saved["family"],
        variables={variable.name: variable for variable in variables},
        response=None
        if response is None
        else Response(
            response["text"], tuple(_built(Expression, e) for e in response["expressions"]), response["modelled"]
        ),
        fixed=_built(Recipe, saved["fixed"]),
        offsets=tuple(_built(Expression, e) for e in saved["offsets"]),
        offset_column=saved["offset_column"],
        offset_given=saved["offset_given"],
        weights_column=saved["weights_column"],
        terms=tuple(terms),
    )


def _packed(name: str, table: np.ndarray) -> dict[str, np.ndarray]:
    """Labels as arrays of numbers; text as its bytes and where each label ends, which keeps every character."""
    if table.dtype != object:
        return {name: table}
    import pyarrow as pa

    try:
        text = pa.array(table, pa.large_string())
    except UnicodeEncodeError:  # half of a surrogate pair
        text = pa.array([label.encode("utf-8", "surrogatepass") for label in table], pa.large_binary())
    _, ends, content = text.buffers()
    ends = np.frombuffer(ends, np.int64)[text.offset : text.offset + len(text) + 1]
    content = np.frombuffer(content, np.uint8) if content is not None else np.zeros(0, np.uint8)
    return {name: content[ends[0] : ends[-1]], f"{name}.ends": ends[1:] - ends[0]}


def _unpacked(name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The inverse of `_packed`."""
    content = np.asarray(arrays[name])
    if f"{name}.ends" not in arrays:
        return content
    import pyarrow as pa

    ends = np.concatenate([[0], np.asarray(arrays[f"{name}.ends"], np.int64)])
    if (np.diff(ends) < 0).any() or ends[-1] != len(content) or content.dtype != np.uint8:
        raise DataError(f"the labels {name!r} are damaged.")
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(content))]
    text = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends) - 1, buffers)
    try:
        return text.cast(pa.large_string()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        labels = [label.decode("utf-8", "surrogatepass") for label in text.to_pylist()]
        return np.array([*labels, None], dtype=object)[:-1]


def _flat(record: Any) -> dict[str, Any]:
    return {f.name: encode(getattr(record, f.name)) for f in fields(record)}


def _built(kind: type[Any], saved: Mapping[str, Any]) -> Any:
    return kind(**{name: decode(value) for name, value in saved.items()})


def encode(value: Any) -> Any:
    """A value as JSON has it; what JSON lacks becomes an object with one key that starts with "$"."""
    if isinstance(value, np.generic):
        value = value.item() if value.dtype.kind not in "mM" else np.asarray(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, np.ndarray):
        kind = "str" if value.dtype == object else value.dtype.str
        flat = value.astype(np.int64) if value.dtype.kind in "mM" else value
        return {"$array": [encode(v) for v in flat.ravel().tolist()], "dtype": kind, "shape": list(value.shape)}
    if isinstance(value, tuple):
        return {"$tuple": [encode(v) for v in value]}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, dict):
        if all(isinstance(k, str) and not k.startswith("$") for k in value):
            return {k: encode(v) for k, v in value.items()}
        return {"$dict": [[encode(k), encode(v)] for k, v in value.items()]}
    raise DataError(f"the formula's state holds a {type(value).__name__}, which cannot be saved.")


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$tuple" in value:
        return tuple(decode(v) for v in value["$tuple"])
    if "$dict" in value:
        return {decode(k): decode(v) for k, v in value["$dict"]}
    if "$array" in value:
        flat, kind = decode(value["$array"]), value["dtype"]
        array = np.array(flat, dtype=object if kind == "str" else np.int64 if kind[1] in "mM" else kind)
        return (array.astype(kind) if kind[1:2] in ("m", "M") else array).reshape(value["shape"])
    return {k: decode(v) for k, v in value.items()}
