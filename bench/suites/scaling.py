"""From a thousand groups to ten million: the curve of every contender, each as far as it gets."""

import tempfile
from pathlib import Path

from bench.simulate import members, write_members
from bench.suites import Case


TITLE = "random-intercept logistic regression as in `members`, from 1,000 to 10,000,000 groups; ours from a file too"
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
PEERS = ("jaxglmm", "gpboost", "glmm", "sklearn")
IN_MEMORY = 1_000_000  # beyond, arrays for every contender would not fit beside each other


def cases(size, seed=0):
    """Arrays for everybody, and a float32 Parquet file, in mixed precision, for those who read one."""
    if size <= IN_MEMORY:
        yield Case(f"{size:,} groups", size, "mixed", members(size, seed=seed), {"family": "binomial", "nodes": 1})
    with tempfile.TemporaryDirectory(prefix="jaxglmm-scaling-") as folder:
        path = Path(folder) / "data.parquet"
        spec = {"family": "binomial", "formula": write_members(path, size, seed=seed)}
        name = f"{size:,} groups, float32 file"
        yield Case(
            name, size, "file", {}, spec, {"data.parquet": str(path)}, series="float32 Parquet file, mixed precision"
        )
