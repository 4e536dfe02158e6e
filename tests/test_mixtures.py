"""Quantiles of mixtures of normal and of skewed distributions, and Gauss rules of discrete measures, against scipy."""

import numpy as np
from scipy import optimize, stats

from jaxglmm.fitted.mixtures import Mixtures, quantiles
from jaxglmm.inference.theta_posterior import gauss_rule


PROBABILITIES = (0.025, 0.4, 0.975)


def test_mixtures_of_skewed_distributions():
    """Shifted lognormal variables, either way round, beside a normal one."""
    widths, weights = np.array([0.5, 0.2]), np.array([0.5, 0.3, 0.2])
    parts = [stats.lognorm(w) for w in widths]
    moments = np.array([[float(v) for v in part.stats("mvs")] for part in parts])
    of = Mixtures(
        weights, np.array([[moments[0, 0], -moments[1, 0], 0.7]]), np.array([[*moments[:, 1], 2.0]]),
        np.array([[moments[0, 2], -moments[1, 2], 0.0]]),
    )  # fmt: skip
    cdf = lambda x: weights @ [parts[0].cdf(x), parts[1].sf(-x), stats.norm.cdf(x, 0.7, np.sqrt(2))]
    truth = np.array([optimize.brentq(lambda x, p=p: cdf(x) - p, -20, 20, xtol=1e-12) for p in PROBABILITIES], float)
    np.testing.assert_allclose(quantiles(of, PROBABILITIES)[0], truth, rtol=1e-8)
    straight = of._replace(skewness=np.zeros((1, 3)))
    np.testing.assert_allclose(quantiles(straight, PROBABILITIES), quantiles(of._replace(skewness=None), PROBABILITIES))


def test_a_skewed_posterior():
    """The logarithm of a gamma variable, as of a Poisson group's effect: a fifteenth of the normal quantiles' error."""
    part = stats.loggamma(3.0)
    mean, variance, skewness = (np.full((1, 1), float(v)) for v in part.stats("mvs"))
    found = quantiles(Mixtures(np.ones(1), mean, variance, skewness), PROBABILITIES)[0]
    np.testing.assert_allclose(found, part.ppf(PROBABILITIES), atol=0.02 * part.std())


def test_gauss_rules():
    points, weights = np.polynomial.legendre.leggauss(40)
    found, mass = gauss_rule(points, weights, 6)
    truth, share = np.polynomial.legendre.leggauss(6)
    np.testing.assert_allclose(found, truth, atol=1e-13)
    np.testing.assert_allclose(mass, share / 2, atol=1e-13)
    few, shares = gauss_rule(np.array([0.0, 1.0, 4.0]), np.array([1.0, 0.0, 3.0]), 6)
    np.testing.assert_allclose(few, [0, 4], atol=1e-12)
    np.testing.assert_allclose(shares, [0.25, 0.75])
