"""What a correlated slope costs beside the intercept alone."""

from bench.simulate import members
from bench.suites import Case


TITLE = "logistic regression, (1 | g) and (1 + x | g), Laplace"
SIZES = (10_000,)
PEERS = ("jaxglmm", "glmm", "glmmTMB")


def cases(size, seed=0):
    """The same rows with one and with two effects a group."""
    arrays = members(size, slope=0.5, seed=seed)
    spec = {"family": "binomial", "nodes": 1}
    for effects, more in (("1", {}), ("1 + x", {"slope": True})):
        name = f"({effects} | g)"
        yield Case(f"{name}, {size:,} groups", size, "mixed", dict(arrays), spec | more, series=name)
