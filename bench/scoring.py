"""Scoring a history of any length from Parquet to Parquet: time, memory, and what a killed run ends in.

Members in no order, three rows on average; a model of 20,000 other members. The command line scores the file once; then
again, killed (SIGKILL) among the chunks and once more among the parts, and goes on: the files must be the same byte for
byte. Peak memory stands beside that of scoring a thousand rows, which holds the model, the libraries and the compiler.

    python -m bench.scoring --rows 10000000
"""

import argparse
import filecmp
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import jaxglmm as jg


def rows_of(n: int, members: int, rng) -> dict[str, np.ndarray]:
    """Binary rows of members in no order."""
    member, x, z = rng.integers(0, members, n), rng.standard_normal(n), rng.standard_normal(n)
    eta = -0.5 + 0.3 * x + 1.2 * np.sin(member * 12.9898)
    y = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(np.int64)
    return {"y": y, "x": x, "z": z, "member": member}


def write_history(path: Path, n: int, rng) -> None:
    """A million rows at a time."""
    writer = None
    for begin in range(0, n, 1_000_000):
        table = pa.table(rows_of(min(1_000_000, n - begin), n // 3, rng))
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def score(model: Path, history: Path, out: Path, until=None) -> tuple[float, float]:
    """Seconds and peak megabytes of one run of the command line, killed once `until()` holds."""
    command = [sys.executable, "-m", "jaxglmm.cli", "score", str(model), str(history), "--out", str(out)]
    began = time.perf_counter()
    process = subprocess.Popen(command)
    while until is not None and not until():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    if until is not None:
        process.send_signal(signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    assert until is not None or status == 0
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main():
    """Run it and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/scoring"))
    options = parser.parse_args()
    folder, rng = options.folder, np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    model, history, few = folder / "model", folder / "history.parquet", folder / "few.parquet"
    if not history.exists():
        write_history(few, 1000, rng)
        write_history(history, options.rows, rng)
        data = pd.DataFrame(rows_of(60_000, 20_000, rng))
        jg.fit("y ~ x + z + (1 | member)", data, family="binomial", method="laplace").save(model)
    _, base = score(model, few, folder / "few-scores.parquet")
    whole, broken = folder / "whole.parquet", folder / "broken.parquet"
    seconds, peak = score(model, history, whole)
    print(f"{options.rows:,} rows, {pq.read_metadata(whole).num_rows:,} members: {seconds:.0f} s, peak {peak:.0f} MB, "
          f"{peak - base:.0f} MB more than for a thousand rows", flush=True)  # fmt: skip
    work = broken.with_name(f".{broken.name}.scoring")
    for kind in ("chunk", "part"):
        score(model, history, broken, until=lambda kind=kind: len(list(work.glob(f"{kind}-*"))) >= 3)
        print(f"killed with {len(list(work.glob('chunk-*')))} chunks and {len(list(work.glob('part-*')))} parts done")
    seconds, _ = score(model, history, broken)
    same = filecmp.cmp(whole, broken, shallow=False)
    print(f"gone on for {seconds:.0f} s: {'the same file, byte for byte' if same else 'ANOTHER FILE'}")


if __name__ == "__main__":
    main()
