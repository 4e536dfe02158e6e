"""Estimates of very many fits, written as they come, so that a run that was cut off can go on."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.lanes import LaneEstimates
from jaxglmm.ops.files import as_written, reason, write_digested


_NUMBERS = (
    "loglik", "decrement", "evaluations", "n_agq", "n", "groups", "singular", "gap", "checked_nodes", "checked_gap",
    "checked_move",
)  # fmt: skip


def checksum(*arrays) -> int:
    """Of what the fits depend on."""
    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array), total)
    return total


class Parts:
    """A folder of Parquet files, a row for each fit, or no folder at all.

    `batch.json` beside them says what is fitted; `part-00000.parquet` and so on hold the label (in the column `by`),
    `place` (its number), the columns "estimate[NAME]" and "se[NAME]", and what `Fits.summary` shows.

    Parameters
    ----------
    folder : path or None
    describe : callable
        Makes a dict, for JSON, of what the fits are of; not called without a folder.
    labels : (B,)
    names : list of str
        Of the parameters.

    Raises
    ------
    DataError
        When the folder holds something else.
    """

    def __init__(self, folder, describe: Callable[[], dict], labels: np.ndarray, names: list[str]):
        self.folder = None if folder is None else Path(folder)
        self.labels, self.names = labels, names
        if self.folder is None:
            return
        description = describe()
        self.by = description["by"]
        told = json.loads(json.dumps({**description, "fits": len(labels), "parameters": names}))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"out={str(folder)!r} cannot be made: {reason(error)}; name another folder") from error
        for half in self.folder.glob(".new-*"):  # half written by a call that was killed
            half.unlink(missing_ok=True)
        note = self.folder / "batch.json"
        if note.exists():
            if not as_written(note):
                raise DataError(
                    f"{str(note)!r} is not what was written: name another folder by out=, or remove this one"
                )
            found = json.loads(note.read_text(encoding="utf-8"))
            differing = [key for key in told if found.get(key) != told[key]]
            if differing:
                raise DataError(
                    f"the folder {str(self.folder)!r} holds the fits of another call: {', '.join(differing)} differ. "
                    "Name another folder by out=, or remove this one"
                )
        elif any(self.folder.iterdir()):
            raise DataError(f"the folder {str(self.folder)!r} is not empty and holds no fits: name another one by out=")
        else:
            self._write(note, lambda path: path.write_text(json.dumps(told, indent=1), encoding="utf-8"))

    def _path(self, k: int) -> Path:
        assert self.folder is not None
        return self.folder / f"part-{k:05d}.parquet"

    def load(self, k: int, which: np.ndarray) -> LaneEstimates | None:
        """The part of these fits, if it was written."""
        if self.folder is None or not as_written(self._path(k)):
            return None
        from pyarrow import parquet

        table = parquet.read_table(self._path(k)).to_pydict()
        if table["place"] != which.tolist():
            raise DataError(f"{self._path(k)} does not hold the fits that belong there: remove the folder")
        block = lambda what: np.array([table[f"{what}[{name}]"] for name in self.names], float).T.copy()
        return LaneEstimates(
            estimate=block("estimate"), se=block("se"),
            reasons=table["failed"], warnings=table["warnings"], **{name: np.array(table[name]) for name in _NUMBERS},
        )  # fmt: skip

    def save(self, k: int, which: np.ndarray, estimates: LaneEstimates) -> None:
        """Write a part; the file appears when it is complete."""
        if self.folder is None:
            return
        import pyarrow
        from pyarrow import parquet

        columns = {self.by: self.labels[which].tolist(), "place": which.tolist(), "failed": estimates.reasons}
        columns["warnings"] = pyarrow.array(estimates.warnings, pyarrow.list_(pyarrow.string()))
        columns |= {name: getattr(estimates, name) for name in _NUMBERS}
        for what in ("estimate", "se"):
            columns |= {f"{what}[{name}]": getattr(estimates, what)[:, j] for j, name in enumerate(self.names)}
        table = pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()})
        self._write(self._path(k), lambda path: parquet.write_table(table, path))

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        write_digested(path, write, "free some space and repeat the call, which goes on from there")
