"""A random intercept, and the one-hot ridge that it is at a given lambda, beside scikit-learn's one-hot ridge."""

from bench.simulate import members
from bench.suites import Case


TITLE = "random intercept (tau estimated) and one-hot ridge at one lambda, for every ID a column"
SIZES = (100_000, 1_000_000)
PEERS = ("jaxglmm", "sklearn")


def cases(size, seed=0):
    """The members design; scikit-learn fits one lambda in both cases."""
    arrays = members(size, seed=seed)
    for estimated in (True, False):
        spec = {"family": "binomial", "tau": 0.8, "estimated": estimated}
        name = "tau estimated" if estimated else "one lambda given"
        yield Case(f"{name}, {size:,} groups", size, "shrinkage", dict(arrays), spec, better=None, series=name)
