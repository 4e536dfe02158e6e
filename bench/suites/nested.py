"""Members inside hospitals beside members alone: what a second, nested factor costs."""

import numpy as np

from bench.simulate import members
from bench.suites import Case


TITLE = "nested logistic regression, members of 3 rows in the mean in 1,000 hospitals, 20 columns, Laplace"
SIZES = (10_000, 100_000)
PEERS = ("jaxglmm", "gpboost")
HOSPITALS = 1_000


def cases(size, seed=0):
    """The same rows without and with the hospitals."""
    arrays, spec = members(size, seed=seed), {"family": "binomial", "nodes": 1}
    yield Case(f"{size:,} members alone", size, "mixed", arrays, spec)
    hospital = np.random.default_rng(seed).integers(0, HOSPITALS, arrays["g"].max() + 1)[arrays["g"]]
    yield Case(f"{size:,} members in {HOSPITALS:,} hospitals", size, "mixed", arrays | {"h": hospital}, spec)
