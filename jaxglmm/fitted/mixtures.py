"""Quantiles of mixtures: of normal distributions, or of lognormal ones where the parts are skewed.

A part with mean m, standard deviation s and skewness g is that of the shifted lognormal variable

    m + s (exp(w Z - w^2/2) - 1)/a,     a = 2 sinh(asinh(g/2)/3),     w^2 = log(1 + a^2),     Z ~ N(0, 1),

whose first three moments these are (Johnson, Kotz & Balakrishnan 1994, chapter 14), turned round where g < 0, and the
normal one at g = 0.
"""

from typing import NamedTuple

import numpy as np


_BLOCK = 1 << 16  # rows whose mixtures are inverted at once
_STEPS = 60  # of Newton's method within a bracket, at most
_STRAIGHT = 1e-5  # of a: below it a part is normal


class Mixtures(NamedTuple):
    """A number of each row as a mixture of K distributions.

    Attributes
    ----------
    weights : (K,)
    centre, variance : (m, K)
    skewness : (m, K) or None
        None where all are normal.
    """

    weights: np.ndarray
    centre: np.ndarray
    variance: np.ndarray
    skewness: np.ndarray | None = None


def quantiles(of: Mixtures, probabilities) -> np.ndarray:
    """Quantiles (m, Q) of mixtures, to about 1e-10 of their spread; NaN where the centre is NaN."""
    out = np.empty((len(of.centre), len(probabilities)))
    for begin in range(0, len(out), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        centre, sd = of.centre[rows], np.sqrt(np.maximum(of.variance[rows], 0))
        shape = None if of.skewness is None else _Lognormal(of.skewness[rows])
        for q, p in enumerate(probabilities):
            out[rows, q] = _quantile(of.weights, centre, sd, shape, p)
    return out


class _Lognormal:
    """Standardised shifted lognormal distributions (m, K): the normal number that goes with each, and back."""

    def __init__(self, skewness: np.ndarray):
        self.sign = np.where(skewness < 0, -1.0, 1.0)
        a = 2 * np.sinh(np.arcsinh(0.5 * np.abs(skewness)) / 3)
        self.straight = a < _STRAIGHT
        self.a = np.where(self.straight, 1.0, a)
        self.w = np.sqrt(np.log1p(self.a**2))

    def value(self, z):
        """(x - mean)/sd at a normal number z."""
        bent = self.sign * np.expm1(self.w * (self.sign * z - 0.5 * self.w)) / self.a
        return np.where(self.straight, z, bent)

    def normal(self, t):
        """z at t = (x - mean)/sd, and dz/dt; beyond the end of the distribution an infinite one."""
        room = 1 + self.a * self.sign * t
        with np.errstate(divide="ignore", invalid="ignore"):
            z = self.sign * (np.log(np.maximum(room, 0)) / self.w + 0.5 * self.w)
            slope = np.where(room > 0, self.a / (self.w * room), 0.0)
        return np.where(self.straight, t, z), np.where(self.straight, 1.0, slope)


def _quantile(weights, centre, sd, shape: _Lognormal | None, p) -> np.ndarray:
    """By Newton's method within a bracket: that of the components' own quantiles."""
    from scipy.special import ndtr, ndtri

    each = centre + sd * (ndtri(p) if shape is None else shape.value(ndtri(p)))
    low, high = each.min(1), each.max(1)
    x = each @ weights
    if len(weights) == 1:
        return x
    sd = np.maximum(sd, 1e-300)
    for _ in range(_STEPS):
        t = (x[:, None] - centre) / sd
        z, turn = (t, 1.0) if shape is None else shape.normal(t)
        excess = ndtr(z) @ weights - p
        slope = (np.exp(-0.5 * z * z) * turn / sd) @ weights / np.sqrt(2 * np.pi)
        low, high = np.where(excess <= 0, x, low), np.where(excess >= 0, x, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = x - excess / slope
        inside = (step > low) & (step < high)
        after = np.where(inside, step, 0.5 * (low + high))
        done = np.abs(after - x) <= 1e-11 * (np.abs(x) + sd.max(1))
        x = after
        if (done | np.isnan(x)).all():
            break
    return x
