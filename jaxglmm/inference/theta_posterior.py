"""Group effects averaged over the posterior of the parameters, where the delta method breaks down.

With few groups, or a standard deviation tau that may as well be zero, the estimate of tau stands for its posterior
badly: at tau = 0 every interval has length zero. Here the posterior of tau is taken on a grid,

    p(tau | y) ~ L(beta_tau, phi_tau, tau) det(V_tau)^(1/2) p(tau),

(beta_tau, phi_tau) the maximum at that tau and V_tau its inverse information (Laplace's approximation to the integral
over them under a flat prior), and group effects are mixtures over it, each with the delta method for (beta, phi).
"""

import math

import jax
import numpy as np

from jaxglmm.fitted.effects import conditional
from jaxglmm.inference.likelihood import Likelihood, coordinates
from jaxglmm.optimise.newton import maximise


FEW_GROUPS = 100
_CHI2_95 = 3.841458820694124
_CLEAR = 0.15  # standard error of log tau below which tau = 0 is far out of any interval
_DF, _SCALE = 3.0, 2.5  # half-t prior of tau
_POINTS, _NEGLIGIBLE = 24, 10.0  # of the grid; fall of the log posterior at its end
_LEAST = 1e-6  # share of the posterior below which a point is left out


def needs_integration(state, problem) -> bool:
    """Whether the effects of a fit with one scalar effect a group are integrated over tau.

    With fewer than 100 groups, or where the lower end of the 95 % profile interval of tau is zero, unless the caller
    held tau or penalised the likelihood.
    """
    if len(state.terms[0].names) != 1 or state.estimate.method == "joint" or state.estimate.penalised is not None:
        return False
    at = coordinates(state)
    if not at.free[at.p]:
        return False
    if len(state.terms[0].levels) < FEW_GROUPS or at.x[at.p] == 0:
        return True
    if math.sqrt(state.estimate.covariance[at.p, at.p]) < _CLEAR:
        return False
    profile = _Profile(state, problem)
    return 2 * (profile.maximum(at.x[at.p])[1] - profile.maximum(0.0)[1]) < _CHI2_95


def integrate(state, problem) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and variance of every level's effect (G, 1) over the posterior of (tau, beta, dispersion).

    The prior of tau is half-t with 3 degrees of freedom and scale 2.5 on the link scale, times the standard deviation
    of the response where the link is the identity (Gelman 2006, Bayesian Anal. 1, 515).
    """
    profile = _Profile(state, problem)
    weights, points = profile.grid()
    parts = [conditional(state, problem, x, V) for x, _, V in points]
    mean = sum((weight * part[0] for weight, part in zip(weights, parts, strict=True)), np.zeros(()))
    square = [variance + added + (at - mean) ** 2 for at, variance, added in parts]
    return mean, sum((weight * part for weight, part in zip(weights, square, strict=True)), np.zeros(()))


class _Profile:
    """Maxima over (beta, dispersion) at given tau, each begun where the last one ended."""

    def __init__(self, state, problem):
        with jax.enable_x64(True):
            self.likelihood = Likelihood(state, problem)
        self.at = coordinates(state)
        self.best = self.at.x.copy()
        self.others = np.arange(len(self.best)) != self.at.p
        if state.family.dispersion_name is None:
            self.others[-1] = False
        y = problem.frame.y
        self.scale = _SCALE * (float(np.std(y)) if state.family.link == "identity" else 1.0)

    def maximum(self, tau: float):
        """(x, log-likelihood, V) with V (m, m) the covariance of (beta, dispersion) at this tau."""
        x = self.best.copy()
        x[self.at.p] = tau
        others = self.others

        def evaluate(part):
            full = x.copy()
            full[others] = part
            value, gradient, hessian = self.likelihood(full)
            return value, gradient[others], hessian[np.ix_(others, others)]

        with jax.enable_x64(True):
            found = maximise(evaluate, x[others], tol=1e-8)
        x[others] = found.x
        V = np.zeros((len(x), len(x)))
        V[np.ix_(others, others)] = np.linalg.pinv(-found.hessian, hermitian=True)
        return x, found.value, V

    def density(self, tau: float):
        """Log posterior density of tau up to a constant, and what `maximum` returns."""
        found = self.maximum(tau)
        self.best = found[0]
        log_det = np.linalg.slogdet(found[2][np.ix_(self.others, self.others)])[1] if self.others.any() else 0.0
        prior = -0.5 * (_DF + 1) * math.log1p((tau / self.scale) ** 2 / _DF)
        return found[1] + 0.5 * log_det + prior, found

    def grid(self):
        """Weights and maxima at Gauss-Legendre points in log(1 + tau / c), from zero to where the density ends."""
        estimate = abs(self.best[self.at.p])
        c = max(estimate, 0.1 * self.scale)
        best, end = self.density(estimate)[0], math.log1p(max(2 * estimate, c) / c)
        while (value := self.density(c * math.expm1(end))[0]) > best - _NEGLIGIBLE and end < 12:
            best, end = max(best, value), end * 1.4
        points, weights = np.polynomial.legendre.leggauss(_POINTS)
        v = 0.5 * end * (points + 1)
        taus = c * np.expm1(v)
        found = [self.density(tau) for tau in taus[::-1]][::-1]
        log_density = np.array([f[0] for f in found])
        mass = weights * np.exp(v + log_density - log_density.max())
        kept = mass > _LEAST * mass.sum()
        return mass[kept] / mass[kept].sum(), [f[1] for f, k in zip(found, kept, strict=True) if k]
