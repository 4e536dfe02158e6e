"""Scores of the members in a file of any length: in bounded memory, and without losing what was done when killed.

The file is read in chunks. Of each row label, y, weight, eta and z are kept, in a file of the chunk's own in which rows
lie by a hash of their label; so a member's rows meet again in its bucket, wherever they were. Then bucket after bucket
is scored, into a file of its own, and the parts are joined. Every file appears under its name only when it is complete,
and what is there already is not made again: the result of a run that was killed and repeated is that of one run, byte
for byte.
"""

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxglmm.errors import DataError
from jaxglmm.fitted.scoring import CompleteRows, complete_rows, only_factor, own_prior, scores
from jaxglmm.fitted.state import State
from jaxglmm.formula.levels import spelled_rows
from jaxglmm.formula.spelling import kinds_of, spelled, typed, whole_kinds
from jaxglmm.formula.table import open_table
from jaxglmm.ops.files import as_written, sha256


CHUNK = 500_000  # rows read at once
BUCKET = 1_000_000  # rows scored at once, about
_CSV_ROW = 30  # bytes of a CSV row, at least, to tell the number of buckets from the size of the file
_MOST_BUCKETS = 1024


def score_file(state: State, source, out, *, interval: float | None = None, chunk: int = CHUNK) -> None:
    """Score the members in a CSV or Parquet file.

    Members come in the order of a hash of their labels; with fewer than a million rows, sorted.

    Parameters
    ----------
    state : State
    source : path
        .parquet, .csv or .csv.gz.
    out : path
        .parquet or .csv file to write. A folder beside it holds the intermediate files until it is complete.
    interval : float, optional
        Level of the posterior intervals.
    chunk : int
        Rows read at once.

    Raises
    ------
    DataError
        Naming the column or file.
    """
    only_factor(state, "score()")
    source, out = _checked(source, out)
    job = _job(state, source, interval, chunk)
    work = out.with_name(f".{out.name}.scoring")
    if not _resumes(work, job):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        _write(work / "job.json", lambda path: path.write_text(json.dumps(job), encoding="utf-8"))
    try:
        chunks, kinds = _spill(state, source, chunk, work, job["buckets"])
        for b in range(job["buckets"]):
            part = work / f"part-{b:06d}.parquet"
            if not as_written(part):
                kept = _bucket(work, chunks, kinds, b)
                if len(kept.y):
                    history, labels = kept.history()
                    columns = scores(state, history, labels, own_prior(state), interval)
                    _write(part, lambda path, columns=columns: _to_parquet(columns, path))
        _write(out, lambda path: _join(work, job["buckets"], path))
    except _NotWritten:  # such as a full disk, after which a run goes on
        raise
    except DataError:  # of the rows, of which another run would say the same
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def _checked(source, out) -> tuple[Path, Path]:
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"score(out=...) reads a .csv or .parquet file; found a {type(source).__name__}")
    source, out = Path(source), Path(out)
    open_table(source)  # which says what is not right about it
    if out.suffix not in (".csv", ".parquet") or not out.absolute().parent.is_dir():
        raise DataError(f"out={str(out)!r}: expected a .csv or .parquet file in a folder that exists")
    return source, out


def _job(state: State, source: Path, interval, chunk: int) -> dict[str, Any]:
    """What a run is: another model, file or option begins anew."""
    estimate, stat = state.estimate, source.stat()
    model = zlib.crc32(np.ascontiguousarray(estimate.beta), zlib.crc32(repr((state.spec.formula, state.n)).encode()))
    for factor in estimate.factors:
        model = zlib.crc32(np.ascontiguousarray(factor), model)
    rows = open_table(source).rows
    if rows is None:
        rows = stat.st_size // _CSV_ROW * (4 if source.suffix == ".gz" else 1)
    return {
        "model": [model, state.log_dispersion], "source": [str(source.absolute()), stat.st_size, stat.st_mtime_ns],
        "interval": interval, "chunk": chunk, "buckets": min(max(-(-rows // BUCKET), 1), _MOST_BUCKETS),
    }  # fmt: skip


def _resumes(work: Path, job: dict) -> bool:
    try:
        return json.loads((work / "job.json").read_text(encoding="utf-8")) == job
    except (OSError, ValueError):
        return False


class _NotWritten(DataError):
    """A file could not be written, which says nothing about the rows."""


def _write(path: Path, write) -> None:
    """Write a file beside its place, then move it there."""
    fresh = path.with_name(f".new-{path.name}")
    try:
        write(fresh)
        if path.parent.name.endswith(".scoring"):  # a run that goes on compares it
            (path.with_name(f".{path.name}.sha256")).write_text(sha256(fresh))
        os.replace(fresh, path)
    except OSError as error:
        raise _NotWritten(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        fresh.unlink(missing_ok=True)


def _spill(state: State, source: Path, chunk: int, work: Path, buckets: int) -> tuple[int, set[str]]:
    """Rows of each chunk, by bucket, in a file each: the number of chunks, and how labels are written or stored."""
    import pyarrow as pa
    from pandas.core.util.hashing import hash_array

    done, kinds = work / "chunks.json", set()
    spilled_to = lambda i: work / f"chunk-{i:06d}.arrow"
    if as_written(done):
        count, found = json.loads(done.read_text())
        if all(as_written(spilled_to(i)) for i in range(count)):
            return count, set(found)
    grouping, count = state.spec.terms[0].grouping, 0
    as_text = grouping.cells is not None or grouping.levels[0].dtype == object
    for i, table in enumerate(open_table(source).chunks(*state.spec.columns(response=True), chunk)):
        path, count = spilled_to(i), i + 1
        if as_written(path):
            kinds |= set(json.loads(pa.ipc.open_file(path).schema.metadata[b"kinds"]))
            continue
        kept = complete_rows(state, table, raw=True)
        code, own = pd.factorize(kept.labels.astype(object) if kept.labels.dtype.kind == "U" else kept.labels)
        here = {"text"} if as_text else _kinds(own, not _is_parquet(source))
        kinds |= here
        # A number has the same bucket whatever its type in this chunk, and so has the text that it is written as.
        bucket = (hash_array(spelled(own)) % np.uint64(buckets)).astype(np.int64)[code]
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=buckets)).tolist()
        columns = {"label": kept.labels, "y": kept.y, "weights": kept.weights, "eta": kept.eta}
        columns |= {f"z{a}": row for a, row in enumerate(kept.z)}
        spilled = pa.table({name: pa.array(values[order]) for name, values in columns.items()})
        spilled = spilled.replace_schema_metadata({"ends": json.dumps(ends), "kinds": json.dumps(sorted(here))})
        _write(path, lambda path, spilled=spilled: _to_arrow(spilled, path))
    _write(done, lambda path: path.write_text(json.dumps([count, sorted(kinds)])))
    return count, kinds


def _kinds(labels: np.ndarray, from_text: bool) -> set[str]:
    """How a chunk's labels are written; of a file that has types, those that they have."""
    if labels.dtype == object:
        return kinds_of(labels) if from_text else {"text"}
    if labels.dtype.kind in "iu":
        return whole_kinds(labels)
    return {"fraction"} if labels.dtype.kind == "f" else {labels.dtype.str}


def _is_parquet(source: Path) -> bool:
    return source.suffix.lower() in (".parquet", ".pq")


def _bucket(work: Path, chunks: int, kinds: set[str], b: int) -> CompleteRows:
    """The rows of one bucket in the order of the file."""
    import pyarrow as pa

    parts = []
    for i in range(chunks):
        with pa.memory_map(str(work / f"chunk-{i:06d}.arrow")) as file:
            table = pa.ipc.open_file(file).read_all()
            ends = json.loads(table.schema.metadata[b"ends"])
            begin = ends[b - 1] if b else 0
            part = table.slice(begin, ends[b] - begin)
            parts.append({name: part[name].to_numpy() for name in part.column_names})
    join = lambda name: np.concatenate([part[name] for part in parts]) if parts else np.zeros(0)
    labels = _joined_labels([part["label"] for part in parts if len(part["label"])], kinds)
    z = [join(name) for name in (parts[0] if parts else {}) if name.startswith("z")]
    y = join("y")
    nothing = {"levels": np.zeros(0, int), "X": np.zeros((len(y), 0))}  # scores need neither
    return CompleteRows(labels, y=y, weights=join("weights"), eta=join("eta"), z=np.array(z), **nothing)


def _joined_labels(parts: list[np.ndarray], kinds: set[str]) -> np.ndarray:
    """Labels of one type, that which they have where the file is read at once."""
    if not parts:
        return np.zeros(0)
    if any(part.dtype == object for part in parts) or "text" in kinds:
        code, own = pd.factorize(np.concatenate([spelled_rows(part) for part in parts]))
        labels = typed(np.asarray(own, object), kinds)[code]
        return labels.astype(str) if labels.dtype == object else labels
    if parts[0].dtype.kind in "iuf":
        kind = np.float64 if "fraction" in kinds else np.uint64 if "large" in kinds else np.int64
        return np.concatenate([part.astype(kind) for part in parts])
    return np.concatenate(parts)


def _to_arrow(table, path: Path) -> None:
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _to_parquet(columns: dict[str, np.ndarray], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)


def _join(work: Path, buckets: int, path: Path) -> None:
    """The parts, one after the other."""
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    files = [p for b in range(buckets) if (p := work / f"part-{b:06d}.parquet").exists()]
    if not files:
        raise DataError("no row is complete: there is no history to score")
    schema = pq.read_schema(files[0])
    with pc.CSVWriter(path, schema) if path.suffix == ".csv" else pq.ParquetWriter(path, schema) as writer:
        for file in files:
            writer.write_table(pq.read_table(file))
