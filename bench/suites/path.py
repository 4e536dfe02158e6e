"""A lasso path with a random intercept beside glmnet's plain one."""

from bench.simulate import members
from bench.suites import Case


TITLE = "lasso path over 100 columns, tau estimated at each of 50 lambdas; glmnet's 30 without a random effect"
SIZES = (100_000,)
PEERS = ("jaxglmm", "glmnet")


def cases(size, seed=0):
    """100 columns of which 10 matter."""
    arrays = members(size, columns=101, matter=10, seed=seed)
    spec = {"family": "binomial", "lambdas": 50, "glmnet_lambdas": 30}
    yield Case(f"{size:,} groups, 100 columns", size, "path", arrays, spec, better=None)
