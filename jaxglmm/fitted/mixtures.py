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
        shape = None if of.skewness is None else _Lognormal.of_skewness(of.skewness[rows])
        for q, p in enumerate(probabilities):
            out[rows, q] = _quantile(of.weights, centre, sd, shape, p)
    return out


class _Lognormal(NamedTuple):
    """Standardised shifted lognormal distributions (m, K): the normal number that goes with each, and back."""

    sign: np.ndarray
    a: np.ndarray
    w: np.ndarray
    straight: np.ndarray

    @classmethod
    def of_skewness(cls, skewness: np.ndarray) -> "_Lognormal":
        """With this skewness (m, K)."""
        a = 2 * np.sinh(np.arcsinh(0.5 * np.abs(skewness)) / 3)
        straight = a < _STRAIGHT
        a = np.where(straight, 1.0, a)
        return cls(np.where(skewness < 0, -1.0, 1.0), a, np.sqrt(np.log1p(a**2)), straight)

    def of_rows(self, rows: np.ndarray) -> "_Lognormal":
        """Those of some rows."""
        return _Lognormal(*(v[rows] for v in self))

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
    """By Newton's method on the normal scale, where distribution functions are nearly straight, within a bracket: that
    of the components' own quantiles."""
    from scipy.special import ndtr, ndtri

    target = ndtri(p)
    each = centre + sd * (target if shape is None else shape.value(target))
    low, high = each.min(1), each.max(1)
    x = each @ weights
    if len(weights) == 1:
        return x
    sd = np.maximum(sd, 1e-300)
    rest = np.flatnonzero(np.isfinite(x))
    for _ in range(_STEPS):
        at, s = x[rest], sd[rest]
        t = (at[:, None] - centre[rest]) / s
        z, turn = (t, 1.0) if shape is None else shape.of_rows(rest).normal(t)
        share = ndtr(z) @ weights
        slope = (np.exp(-0.5 * z * z) * turn / s) @ weights
        low[rest] = np.where(share <= p, at, low[rest])
        high[rest] = np.where(share >= p, at, high[rest])
        straight = ndtri(share)
        with np.errstate(divide="ignore", invalid="ignore"):
            after = at - (straight - target) * np.exp(-0.5 * straight * straight) / slope
        inside = (after > low[rest]) & (after < high[rest])
        x[rest] = after = np.where(inside, after, 0.5 * (low[rest] + high[rest]))
        rest = rest[np.abs(after - at) > 1e-11 * (np.abs(at) + s.max(1))]
        if not len(rest):
            break
    return x
