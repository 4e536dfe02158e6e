"""Random-intercept logistic regression: very many small groups, rows in random order."""

from bench.simulate import members
from bench.suites import Case


TITLE = "random-intercept logistic regression, groups of 3 rows in the mean, 20 columns, shuffled rows, Laplace"
SIZES = (1_000, 10_000, 100_000)
PEERS = ("jaxglmm", "gpboost", "glmm", "sklearn")


def cases(size, seed=0, *, shuffled=True):
    """One case; `members_grouped` has the same rows in the order of their groups."""
    arrays = members(size, seed=seed, shuffled=shuffled)
    yield Case(f"{size:,} groups", size, "mixed", arrays, {"family": "binomial", "nodes": 1})
