"""Every family that has a native pass."""

from bench.simulate import members
from bench.suites import Case


TITLE = "random intercepts with each family, Laplace (exact for gaussian)"
SIZES = (10_000,)
PEERS = ("jaxglmm", "jaxglmm-plain", "gpboost", "glmm")
FAMILIES = ("gaussian", "binomial", "poisson", "negativebinomial", "gamma")


def cases(size, seed=0):
    """One case a family."""
    for family in FAMILIES:
        arrays = members(size, columns=8, family=family, tau=0.5, seed=seed)
        spec = {"family": family, "nodes": 1}
        yield Case(f"{family}, {size:,} groups", size, "mixed", arrays, spec, series=family)
