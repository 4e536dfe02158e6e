"""Gaussian responses, two grouping factors: maximum likelihood, exact."""

from bench.simulate import two_factors
from bench.suites import Case


TITLE = "linear mixed models of two factors, ML: crossed 24 rows a student, 65 a lecturer; nested 3 rows a member"
SIZES = (3_000, 100_000)
PEERS = ("jaxglmm", "glmer", "glmmTMB", "gpboost", "glmm")


def cases(size, seed=0):
    """Crossed as students and lecturers are in lme4's InstEval, and members of hospitals."""
    spec = {"family": "gaussian"}
    if size <= 10_000:  # beyond, the smaller factor alone would be larger than what peers factorise in the time
        arrays = two_factors((size, int(0.38 * size)), 24 * size, columns=3, seed=seed)
        name = f"crossed, {size:,} x {int(0.38 * size):,}"
        yield Case(name, size, "mixed", arrays, spec, series="crossed")
    arrays = two_factors((size, max(size // 1000, 10)), 3 * size, nested=True, seed=seed)
    yield Case(f"nested, {size:,} in {max(size // 1000, 10):,}", size, "mixed", arrays, spec, series="nested")
