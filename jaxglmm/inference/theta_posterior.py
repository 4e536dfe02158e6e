"""Group effects averaged over the posterior of the parameters, where the delta method breaks down.

With few groups, or a standard deviation tau that may as well be zero, the estimate of tau stands for its posterior
badly: at tau = 0 every interval has length zero. Here the posterior of tau is taken on a grid,

    p(tau | y) ~ L(beta_tau, phi_tau, tau) det(V_tau)^(1/2) p(tau),

(beta_tau, phi_tau) the maximum at that tau and V_tau its inverse information (Laplace's approximation to the integral
over them under a flat prior), and group effects are mixtures over it, each with the delta method for (beta, phi).
Intervals end at quantiles of the mixtures: where little is known of tau, they are far from normal.
"""

import math

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.conditional import Conditional, conditional, with_fixed
from jaxglmm.fitted.effects import Effects, Mixture
from jaxglmm.fitted.history import Prior, history_of, third_moments
from jaxglmm.inference.coordinates import coordinates
from jaxglmm.inference.likelihood import Likelihood
from jaxglmm.model.priors import AbstractPrior, UniformShrinkagePrior, prior_from_json
from jaxglmm.ops.computing import computing
from jaxglmm.optimise.newton import maximise
from jaxglmm.optimise.report import inverse_information


_CLEAR = 0.22  # standard error of log tau below which the delta method serves
_SCALE = 0.75  # of the prior of tau, its median
# Nodes of the likelihood, at least: far from the estimate, and from zero on, those that served there may not do.
_QUADRATURE = 15
_POINTS, _NEGLIGIBLE = 24, 10.0  # of the grid; fall of the log posterior at its end
NODES = 8  # of the rule that effects are averaged by
_ENDS = 1e-12  # of the points' range: length below which a measure has no further point
_FARTHEST = 12.0  # end of the grid in log(1 + tau / c)


def needs_integration(state) -> bool:
    """Whether the effects of a fit with one scalar effect a group are integrated over tau.

    Where the standard error of log tau is 0.22 or more, or the estimate is zero, unless the caller held tau or
    penalised the likelihood otherwise than by a prior of tau.
    """
    if len(state.terms) != 1 or len(state.terms[0].names) != 1 or state.estimate.method == "joint":
        return False
    if state.estimate.penalised is not None and state.estimate.penalised.get("sd_prior") is None:
        return False
    at = coordinates(state)
    if not at.free[at.p]:
        return False
    return at.x[at.p] == 0 or not math.sqrt(state.estimate.covariance[at.p, at.p]) < _CLEAR


def sd_prior(state, problem) -> AbstractPrior:
    """Prior of tau: that of the fit, or of uniform shrinkage with median 0.75 on the link scale.

    Times the standard deviation of the response where the link is the identity. In log tau the density rises as tau^2
    and falls as tau^-2. Half-t priors, flat at zero, cover less at small tau with many groups; gamma priors, of light
    tails, at large tau with few.
    """
    penalised = state.estimate.penalised
    if penalised is not None and penalised.get("sd_prior") is not None:
        return prior_from_json(penalised["sd_prior"])
    return UniformShrinkagePrior(_SCALE * _unit(state, problem))


def _unit(state, problem) -> float:
    """Of tau: 1 on the link scale, or the standard deviation of the response where the link is the identity."""
    return float(np.std(problem.frame.y)) or 1.0 if state.family.link == "identity" else 1.0


def integrate(state, problem, given: Conditional, levels: np.ndarray, prior: AbstractPrior | None = None) -> Effects:
    """Posterior of every level's effect over that of (tau, beta, dispersion).

    Parameters
    ----------
    given : Conditional
        At the estimate.
    levels : int (L,)
        Whose covariance with the fixed effects is found.
    prior : AbstractPrior, optional
        Of tau; `sd_prior` by default.

    Raises
    ------
    DataError
        For a prior that is not of a standard deviation.
    """
    prior = sd_prior(state, problem) if prior is None else prior
    if not (isinstance(prior, AbstractPrior) and prior.on_sd):
        raise DataError(
            f"prior must be the density of a standard deviation, such as jg.HalfStudentPrior(3, 1.0); found {prior!r}"
        )
    profile = _Profile(state, problem, prior)
    p = profile.at.p
    weights, points = profile.rule()
    beta, vcov = np.stack([x[:p] for x, _, _ in points]), np.stack([V[:p, :p] for _, _, V in points])
    parts = [conditional(state, problem, x, V) for x, _, V in points]
    of = Mixture(
        weights, np.array([abs(x[p]) for x, _, _ in points]), beta, vcov,
        np.stack([part.mean[:, 0] for part in parts]),
        np.stack([(part.covariance + part.added)[:, 0, 0] for part in parts]),
        np.stack([_third(state, problem, x, p) for x, _, _ in points]),
        np.stack([with_fixed(state, problem, levels, x, V)[:, 0] for x, _, V in points]),
    )  # fmt: skip
    mean, variance, cross = of.of_levels(levels)
    return Effects(
        given.mean, given.covariance, mean[:, None], variance[:, None, None], "integrated", levels, cross[:, None], of,
        str(prior),
    )  # fmt: skip


def _third(state, problem, x, p) -> np.ndarray:
    """Third central moments (G,) at parameters x."""
    prior = Prior(np.zeros(1), x[None, [p]])
    history = history_of(problem.frame, 0, state.estimate.scaling.beta_to_columns(x[:p]))
    return third_moments(state.family, float(x[-1]), history, prior, layout=problem.storage)


class _Profile:
    """Maxima over (beta, dispersion) at given tau, each begun where the last one ended."""

    def __init__(self, state, problem, prior):
        with computing():
            self.likelihood = Likelihood(state, problem, nodes=_QUADRATURE)
        self.prior = prior
        self.at = coordinates(state)
        self.best = self.at.x.copy()
        self.others = np.arange(len(self.best)) != self.at.p
        if state.family.dispersion_name is None:
            self.others[-1] = False
        self.least = 0.25 * _unit(state, problem)

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

        with computing(), np.errstate(invalid="ignore", over="ignore"):  # beyond the range of numbers
            found = maximise(evaluate, x[others], tol=1e-8)
        x[others] = found.x
        V = np.zeros((len(x), len(x)))
        if not (math.isfinite(found.value) and np.isfinite(found.hessian).all()):
            return x, -math.inf, V
        V[np.ix_(others, others)] = inverse_information(found.hessian, np.ones(len(found.hessian), bool))
        return x, found.value, V

    def density(self, tau: float):
        """Log posterior density of tau up to a constant, and what `maximum` returns; -inf beyond the numbers' range."""
        found = self.maximum(tau)
        if not math.isfinite(found[1]):
            return -math.inf, found
        V = found[2][np.ix_(self.others, self.others)]
        if not (np.isfinite(V).all() and (np.diag(V) > 0).all()):
            return -math.inf, found
        scale = np.sqrt(np.diag(V))  # columns of other units leave the sign alone
        sign, log_det = np.linalg.slogdet(V / np.outer(scale, scale)) if len(V) else (1, 0.0)
        log_det += 2 * np.log(scale).sum()
        with computing():
            value = found[1] + 0.5 * float(log_det) + float(self.prior.log_density(np.float64(tau)))
        if sign <= 0 or not math.isfinite(value):
            return -math.inf, found
        self.best = found[0]
        return value, found

    def rule(self):
        """Weights and maxima at the Gauss points of the posterior of v = log(1 + tau / c).

        The density is found at Gauss-Legendre points from zero to where it ends; the rule of fewer points that is exact
        for the same polynomials in v is the Gauss rule of that discrete measure.
        """
        estimate = abs(self.best[self.at.p])
        c = max(estimate, self.least)
        at = lambda v: self.density(c * math.expm1(v))
        step = math.log1p(max(2 * estimate, c) / c)
        end, best = step, max(at(0.5 * step)[0], at(step)[0])
        while end < _FARTHEST:
            value = at(min(1.4 * end, _FARTHEST))[0]
            if value == -math.inf:
                end = self._last_finite(lambda v: at(v)[0], end, 1.4 * end)
                break
            end, best = min(1.4 * end, _FARTHEST), max(best, value)
            if value < best - _NEGLIGIBLE:
                break
        points, weights = np.polynomial.legendre.leggauss(_POINTS)
        v = 0.5 * end * (points + 1)
        self.best = self.at.x.copy()
        log_density = np.array([at(one)[0] for one in v[::-1]])[::-1]
        v, weights = gauss_rule(v, weights * np.exp(v + log_density - log_density.max()), NODES)
        found = [at(one) for one in v[::-1]][::-1]
        kept = [math.isfinite(value) for value, _ in found]
        return weights[kept] / weights[kept].sum(), [f[1] for f, k in zip(found, kept, strict=True) if k]

    @staticmethod
    def _last_finite(at, low, high):
        """Where in (low, high) the density's range of numbers ends, to a hundredth."""
        while high - low > 0.01:
            middle = 0.5 * (low + high)
            low, high = (middle, high) if math.isfinite(at(middle)) else (low, middle)
        return low


def gauss_rule(points: np.ndarray, mass: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n points and weights of the Gauss rule of a discrete measure, fewer where the measure has fewer points.

    By the Lanczos process (Golub & Meurant 2010, chapter 3); weights add to 1.
    """
    basis, vector = [], np.sqrt(mass / mass.sum())
    diagonal, beside = [], []
    for _ in range(n):
        basis.append(vector)
        image = points * vector
        diagonal.append(vector @ image)
        for _ in range(2):  # twice is enough
            for one in basis:
                image = image - (one @ image) * one
        size = float(np.linalg.norm(image))
        if size <= _ENDS * np.ptp(points):
            break
        beside.append(size)
        vector = image / size
    k = len(diagonal)
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside[: k - 1], 1) + np.diag(beside[: k - 1], -1))
    return values, vectors[0] ** 2
