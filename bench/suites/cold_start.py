"""A small fit from the command line: what starting up costs."""

from pathlib import Path

from bench.suites import Case


TITLE = "one small fit by a command in a new process: imports, compilation and all"
SIZES = (294,)
PEERS = ("jaxglmm", "glmer")
DATA = Path(__file__).resolve().parents[2] / "jaxglmm" / "data" / "toenail.csv"


def cases(size, seed=0):
    """The toenail data, 294 patients, by Laplace's approximation; neither size nor seed change it."""
    yield Case(
        "toenail, 294 patients", size, "cold_start", {}, {"formula": "outcome ~ treatment * time + (1 | patientID)"},
        {"data.csv": str(DATA)},
    )  # fmt: skip
