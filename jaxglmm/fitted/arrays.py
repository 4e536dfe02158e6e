"""Named arrays in one file, uncompressed as `numpy.savez` writes them, and read with nothing taken on trust."""

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxglmm.errors import DataError


_PLAIN = "biufcSUmM"  # kinds of numbers, text and dates
_HEADER = 10_240  # bytes that an array's description may take
# Shapes of what belongs to a grouping factor: G levels, S effects, K nodes, L of the levels, P fixed effects,
# M values of the standard deviation.
_SHAPES = {
    "mode": "GS", "mean": "GS", "variance": "GS", "mean_eb": "GS", "variance_eb": "GS", "covariance": "GSS",
    "covariance_eb": "GSS", "covariance_mean": "GSS", "n": "G", "levels": "L", "with_beta": "LSP",
    "origin": "GS", "root": "GSS", "points": "SK", "weights": "GK",
    "mixture.weights": "M", "mixture.sds": "M", "mixture.beta": "MP", "mixture.vcov": "MPP", "mixture.mean": "MG",
    "mixture.variance": "MG", "mixture.third": "MG", "mixture.with_beta": "MLP",
}  # fmt: skip
_OF_TERM = re.compile(r"(?:posterior|effects|rule)(\d+)\.([\w.]+)")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write arrays to a file; returns type and shape of each, by name."""
    arrays = {name: np.asarray(values) for name, values in arrays.items()}
    np.savez(path, allow_pickle=False, **arrays)
    return {name: {"dtype": v.dtype.str, "shape": list(v.shape)} for name, v in arrays.items()}


def read_arrays(file: BinaryIO, told: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read the arrays that `told` describes; their sizes are known to be right before any memory is taken.

    Raises
    ------
    DataError
        For arrays of other names, types or shapes.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            if entries.keys() != told.keys():
                names = ", ".join(sorted(entries.keys() ^ told.keys())[:5])
                raise DataError(f"its arrays are not those that were saved: {names}")
            return {name: _read(archive, name, entries[name], told[name]) for name in entries}
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("its arrays cannot be read") from error  # numpy's advice would be to trust the file


def _read(archive: zipfile.ZipFile, name: str, entry: zipfile.ZipInfo, told: Mapping[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(told["dtype"]), tuple(told["shape"])
    size = math.prod(shape) * dtype.itemsize
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
    if dtype.kind not in _PLAIN or not stored or not size <= entry.file_size <= size + _HEADER:
        raise DataError(f"the array {name!r} is not of type {dtype} and shape {shape}")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise DataError(f"the array {name!r} is of an unknown format")
        found, fortran, kind = headers[version](file)
        if (found, kind) != (shape, dtype):
            raise DataError(f"the array {name!r} is of type {kind} and shape {found}, expected {dtype} and {shape}")
        flat = np.frombuffer(bytearray(file.read()), dtype) if size else np.zeros(0, dtype)
        return flat.reshape(shape, order="F" if fortran else "C")


def check_shapes(arrays: Mapping[str, np.ndarray], parameters: int, fixed: int, terms) -> None:
    """Refuse arrays that do not belong to a formula of so many parameters, fixed effects, levels and effects.

    Parameters
    ----------
    arrays : mapping
    parameters, fixed : int
    terms : sequence of FittedTerm

    Raises
    ------
    DataError
        Naming the array.
    """
    wanted = {
        "estimate.beta": (fixed,),
        "scaling.center": (fixed,),
        "scaling.scale": (fixed,),
        "estimate.covariance": (parameters, parameters),
        "estimate.boundary": (parameters,),
    }
    for i, term in enumerate(terms):
        wanted[f"estimate.factor{i}"] = wanted[f"effect_squares{i}"] = (len(term.names),) * 2
    if f"estimate.factor{len(terms)}" in arrays:
        raise DataError("there are arrays of more grouping factors than the formula has")
    own: dict[tuple[int, str], int] = {}  # sizes that are an array's own, equal for all of a term
    for name, array in arrays.items():
        at = _OF_TERM.fullmatch(name)
        if at is not None and at[2] in _SHAPES and int(at[1]) < len(terms):
            i, axes = int(at[1]), _SHAPES[at[2]]
            sizes = {"G": len(terms[i].levels), "S": len(terms[i].names), "P": fixed}
            if array.ndim == len(axes):
                sizes |= {a: own.setdefault((i, a), n) for a, n in zip(axes, array.shape, strict=True) if a in "KLM"}
            wanted[name] = tuple(sizes.get(axis, -1) for axis in axes)
    for name, shape in wanted.items():
        if name not in arrays or arrays[name].shape != shape or arrays[name].dtype.kind not in "fiub":
            found = f"shape {arrays[name].shape} and type {arrays[name].dtype}" if name in arrays else "nothing"
            raise DataError(f"the array {name!r} is not of the formula: found {found}, expected numbers {shape}")
