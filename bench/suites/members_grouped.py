"""As `members`, the rows of a group next to each other."""

from bench.suites.members import PEERS, SIZES, cases as _cases


__all__ = ["PEERS", "SIZES", "TITLE", "cases"]
TITLE = "random-intercept logistic regression as in `members`, rows already grouped"


def cases(size, seed=0):
    """One case."""
    return _cases(size, seed, shuffled=False)
