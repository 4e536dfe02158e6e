"""From a Parquet file in random order, with text for identifiers, to a fitted model and its group effects on disk."""

import tempfile
from pathlib import Path

import numpy as np

from bench.simulate import members
from bench.suites import Case


TITLE = "Parquet file, shuffled rows, text identifiers, 20 columns, to a fitted model and its table of group effects"
SIZES = (1_000_000,)
PEERS = ("jaxglmm", "polars")


def cases(size, seed=0):
    """One file; polars only reads and sorts it, which is what the part of ours without the fit is held against."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = members(size, seed=seed)
    columns = {"y": arrays["y"], "g": np.char.add("member-", arrays["g"].astype(str))}
    columns |= {f"x{j}": column for j, column in enumerate(arrays["X"]) if j}
    with tempfile.TemporaryDirectory(prefix="jaxglmm-ingest-") as folder:
        path = Path(folder) / "data.parquet"
        pq.write_table(pa.table(columns), path)
        spec = {"family": "binomial", "formula": f"y ~ {' + '.join(list(columns)[2:])} + (1 | g)"}
        yield Case(f"{size:,} groups", size, "ingest", {}, spec, {"data.parquet": str(path)})
