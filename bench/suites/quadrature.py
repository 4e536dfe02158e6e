"""What quadrature costs beside Laplace's approximation."""

from bench.simulate import members
from bench.suites import Case


TITLE = "random-intercept logistic regression by 1, 9 and 25 quadrature nodes"
SIZES = (10_000,)
PEERS = ("jaxglmm", "glmm")


def cases(size, seed=0):
    """The same rows with each number of nodes."""
    arrays = members(size, seed=seed)
    for nodes in (1, 9, 25):
        spec = {"family": "binomial", "nodes": nodes}
        name = f"{nodes} node{'s' * (nodes > 1)}"
        yield Case(f"{name}, {size:,} groups", size, "mixed", dict(arrays), spec, series=name)
