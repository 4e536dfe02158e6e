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


def spec_to_json(spec: ModelSpec, arrays: dict[str, np.ndarray] | None) -> dict[str, Any]:
    """See `ModelSpec.to_json`."""
    terms = []
    for i, term in enumerate(spec.terms):
        grouping = term.grouping
        tables = [*grouping.levels, *([] if grouping.cells is None else [grouping.cells])]
        if arrays is None:
            saved: list[Any] = [encode(table) for table in tables]
        else:
            saved = [f"term{i}.levels{j}" for j in range(len(tables))]
            for name, table in zip(saved, tables, strict=True):
                arrays[name] = table.astype(str) if table.dtype == object else table
        terms.append(
            {"columns": list(grouping.columns), "levels": saved, "effects": [_flat(recipe) for recipe in term.recipes]}
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


def spec_from_json(saved: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None) -> ModelSpec:
    """See `ModelSpec.from_json`."""
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
        array = np.asarray(arrays[entry])
        return array.astype(object) if array.dtype.kind == "U" else array

    terms = []
    for term in saved["terms"]:
        columns = tuple(term["columns"])
        tables = [table(entry) for entry in term["levels"]]
        cells = tables[len(columns)] if len(tables) > len(columns) else None
        grouping = Grouping(columns, tuple(tables[: len(columns)]), cells)
        terms.append(TermSpec(grouping, tuple(_built(Recipe, recipe) for recipe in term["effects"])))
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
