"""A dispersion without bound: where a family's limit, as Poisson of the negative binomial, is as good or better.

The log-likelihood then rises for ever along the log dispersion, by less and less, and Newton's method creeps after it.
So the search stops once the family is close to its limit, and takes the limit itself if it is as good; from there it
looks back along the dispersion, since only a fit that is nowhere higher is one.
"""

from typing import NamedTuple

import numpy as np

from jaxglmm.model.family import AT_LIMIT


# No dispersion of data is beyond this in size (log scale), where families' terms overflow.
LARGEST = 200.0
# The variance's excess over the limit's at the largest response, relative, below which the search stops.
_EXCESS = 1e-4
# Dispersions relative to the mean response that are looked at from the limit.
_LOOK_BACK = (1e3, 1e2, 10.0, 1.0, 0.1)


class DispersionLimit(NamedTuple):
    """Log dispersions where the search stops, and where it looks whether the likelihood is higher than at the limit."""

    near: float
    looks: tuple[float, ...]

    def beyond(self, x) -> bool:
        """Whether the last coordinate of x, the log dispersion, is close to the limit."""
        return x[-1] >= self.near


def dispersion_limit(family, y, weights) -> DispersionLimit | None:
    """The limit that a fit of these responses (n,) has to look at; None where the family has none."""
    if family.limit is None or not len(y):
        return None
    y, weights = np.asarray(y), np.asarray(weights)
    mean = max(float(np.average(y, weights=weights)), 1e-6) if np.sum(weights) > 0 else 1.0
    near = float(np.log(max(1.0, float(np.max(y, where=weights > 0, initial=0.0))) / _EXCESS))
    return DispersionLimit(near, tuple(min(np.log(c * mean), near - 1) for c in _LOOK_BACK))


def maximise_to_limit(climb, value_at, x, limit: DispersionLimit):
    """Maximise, the limit of the dispersion included.

    Parameters
    ----------
    climb : callable
        (x, held, stop) -> NewtonResult, with the last coordinate held where `held`.
    value_at : callable
        x -> value.
    x : (m,)
        Where to begin.

    Returns
    -------
    NewtonResult
        With x[-1] = `AT_LIMIT` where the limit is as good as any dispersion.
    """
    result = None
    if x[-1] < limit.near:
        result = climb(x, False, limit.beyond)
        if result.reason != "stopped":
            return result
        x = result.x
    rival = climb(np.append(x[:-1], AT_LIMIT), True, None)
    slack = 1e-10 * (1 + abs(rival.value))
    if rival.converged and (result is None or rival.value >= result.value - slack):
        looks = [np.append(rival.x[:-1], look) for look in limit.looks]
        values = np.nan_to_num([value_at(look) for look in looks], nan=-np.inf)
        if values.max() <= rival.value + slack:
            return rival
        x = looks[int(values.argmax())]
    elif result is None:
        x = np.append(x[:-1], limit.looks[0])
    again = climb(x, False, None)
    return again if not rival.converged or again.value > rival.value else rival
