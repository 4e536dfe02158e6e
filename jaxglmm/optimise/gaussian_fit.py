"""The exact fit of a Gaussian model: Newton on the relative factor, beta and sigma profiled out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.checks import PERFECT_FIT, is_perfect_fit
from jaxglmm.design.crossproducts import CrossProducts
from jaxglmm.design.factor_products import FactorProducts
from jaxglmm.errors import ColumnsError, DataError, ExactFitError
from jaxglmm.objectives.gaussian import conditional_modes
from jaxglmm.objectives.gaussian_expansion import expand
from jaxglmm.objectives.gaussian_profile import GaussianProfile
from jaxglmm.objectives.gaussian_several import (
    Slopes,
    average_hessian,
    conditional_effects,
    expand_factors,
    moment_start,
)
from jaxglmm.ops.computing import computing
from jaxglmm.ops.threads import calm
from jaxglmm.optimise.gaussian_search import inverse_information, maximise_factor
from jaxglmm.optimise.newton import NewtonResult, maximise


@dataclass(frozen=True)
class GaussianFit:
    """Estimates of a Gaussian model, in the scale of the columns given. All numpy.

    Attributes
    ----------
    beta : (p,)
    factor : (S, S) or None
        Absolute Lambda, lower triangular, non-negative diagonal: Var(b) = Lambda Lambda'. Those of several factors
        lie on its diagonal. None without random effects.
    sigma : float
        Residual standard deviation.
    loglik : float
        Restricted under REML. The restricted likelihood depends on the scale of X: for columns X A in place of X
        it is smaller by log |det A|.
    method : "ml" or "reml"
    vcov : (p, p)
        Of beta: its part of `covariance` under ML, `vcov_given` under REML.
    vcov_given : (p, p)
        sigma^2 (X'V^-1X)^-1, as if the variance parameters were known.
    covariance : (p + q + 1, p + q + 1)
        Of psi = (beta, theta, log sigma), theta the log-Cholesky parameters of Lambda: the inverse observed
        information (ML), or `vcov_given` and the inverse information of the restricted likelihood (REML).
        Zero for parameters on the boundary.
    boundary : bool (p + q + 1,)
        Entries of Lambda that are zero because a variance is, with the column below such a diagonal entry.
    vcov_jacobian : (q + 1, p, p)
        Derivatives of `vcov_given` in (theta, log sigma); zero for parameters on the boundary.
    converged : bool
    reason : str
        The maximiser's.
    decrement : float
        g'(-H)^-1 g over the parameters not on the boundary.
    iterations : int
    singular : bool
        Some variance, or the smallest one of correlated effects, is zero.
    score_at_zero : float or None
        Singular fits: the derivative of the log-likelihood in the variance at zero, the largest of them where
        there are several; not positive at a boundary optimum.
    solver : str
        Several factors: how they were eliminated.
    effects : callable or None
        Several factors: works out a list of ((G, S), (G, S, S)), conditional modes and covariances of each one's
        effects, in the formula's order.
    """

    beta: np.ndarray
    factor: np.ndarray | None
    sigma: float
    loglik: float
    method: str
    vcov: np.ndarray
    vcov_given: np.ndarray
    covariance: np.ndarray
    boundary: np.ndarray
    vcov_jacobian: np.ndarray
    converged: bool
    reason: str
    decrement: float
    iterations: int
    singular: bool
    score_at_zero: float | None
    solver: str = ""
    effects: Callable[[], list[tuple[np.ndarray, np.ndarray]]] | None = None


def fit_gaussian(
    cross: CrossProducts | FactorProducts,
    *,
    reml: bool = False,
    factor: np.ndarray | None = None,
    tol: float = 1e-12,
    max_iterations: int = 100,
    callback: Callable | None = None,
) -> GaussianFit:
    """Maximise the likelihood, or the restricted likelihood.

    Parameters
    ----------
    cross : CrossProducts or FactorProducts
        Without groups: the linear model.
    reml : bool
    factor : (S, S), optional
        Absolute Lambda to hold, those of several factors on the diagonal; estimated when absent.
    tol : float
        Largest Newton decrement at the end.
    max_iterations : int
    callback : callable, optional
        As in `maximise`.

    Returns
    -------
    GaussianFit

    Raises
    ------
    DataError
        When every group has one row, or there are no more rows than columns, or the columns fit the response
        perfectly or are collinear.
    """
    n, p, groups = int(cross.n), cross.p, int(cross.n_groups)
    if n <= p:
        raise (ExactFitError if n == p else ColumnsError)(
            f"{n} rows with positive weight cannot determine {p} fixed effects and a residual variance; "
            "expected more rows than fixed-effect columns"
        )
    single = isinstance(cross, CrossProducts) and cross.n_effects == 1 and factor is None and groups >= n
    if single and np.ptp(np.asarray(cross.ztz)[:, 0, 0].ravel()[:groups]) == 0:
        raise DataError(
            f"the grouping factor has {groups} levels for {n} rows: with one row a group, the variance of "
            "the groups and the residual variance cannot be told apart; expected groups of several rows. "
            "Leave the random effect out, or hold it by theta="
        )
    vtv, origin = np.asarray(cross.vtv), np.asarray(cross.origin)
    coefficients = np.append(origin, 1.0)  # of the response in X and the residuals
    if is_perfect_fit(vtv[p, p], coefficients @ vtv @ coefficients):
        raise ExactFitError(PERFECT_FIT)
    with computing(), _calm(cross):
        criterion = FactorCriterion(cross, reml)
        if cross.n_effects == 0:
            return criterion.report(criterion.profile(np.zeros(0)))
        if factor is not None:
            return _fit_sigma(criterion, np.asarray(factor, float), tol, max_iterations, callback)
        start = criterion.diagonal.astype(float)
        if criterion.several:
            start = moment_start(criterion.cross) / criterion.scale
        found = maximise_factor(criterion, start, tol=tol, max_iterations=max_iterations, callback=callback)
        at = criterion.profile(found.x * criterion.scale)
        return criterion.report(at, found.result, found.held, iterations=found.iterations)


def _calm(cross):
    return calm(cross.n_dense) if isinstance(cross, FactorProducts) else contextlib.nullcontext()


def gaussian_modes(cross: CrossProducts, fit: GaussianFit) -> tuple[np.ndarray, np.ndarray]:
    """Conditional modes (G, S) and covariances (G, S, S) of one factor's effects given the estimates (numpy)."""
    with computing():
        mode, covariance = conditional_modes(fit.factor, fit.beta, fit.sigma, cross)
    groups = int(cross.n_groups)
    return np.asarray(mode)[:groups], np.asarray(covariance)[:groups]


def reliability(factor: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """1 - Var(b | y) / Var(b) of each group's effects, (G, S), within [0, 1]; 0 where Var(b) is 0.

    Parameters
    ----------
    factor : (S, S)
        Absolute Lambda.
    covariance : (G, S, S)
        Conditional covariances.
    """
    variance = np.square(factor).sum(1)
    left = np.diagonal(covariance, axis1=1, axis2=2)
    ratio = np.divide(left, variance, out=np.ones_like(left), where=variance > 0)
    return np.clip(1 - ratio, 0.0, 1.0)


class FactorCriterion:
    """The profiled criterion of the free entries of T, in units in which z has unit mean square."""

    def __init__(self, cross: CrossProducts, reml: bool):
        self.cross, self.reml = cross, reml
        self.several = isinstance(cross, FactorProducts)
        if not self.several:
            self.arrays = jax.tree.map(jnp.asarray, cross)  # on the device once, not at each evaluation
        self._slopes: Slopes | None = None
        self.covariance = cross.covariance
        self.rows, self.columns = cross.covariance.entries
        self.diagonal = cross.covariance.diagonal
        square = cross.mean_squares()
        self.scale = 1 / np.sqrt(np.where(square > 0, square, 1.0))[self.rows]

    def profile(self, raw: np.ndarray, log_sigma: float | None = None) -> GaussianProfile:
        expansion = expand_factors(self.slopes(raw)) if self.several else expand(raw, self.arrays)
        return self._profile(expansion, raw, log_sigma)

    def slopes(self, raw: np.ndarray) -> Slopes:
        """Several factors: first derivatives; those of the last point are kept."""
        if self._slopes is None or (raw != self._slopes.raw).any():
            self._slopes = None  # its matrices are freed before new ones are made
            self._slopes = Slopes(raw, self.cross)
        return self._slopes

    def _profile(self, expansion, raw, log_sigma=None) -> GaussianProfile:
        try:
            return GaussianProfile(expansion, self.cross, raw, reml=self.reml, log_sigma=log_sigma)
        except np.linalg.LinAlgError:
            raise ExactFitError(
                "the residual sum of squares is zero, or the fixed-effect columns are collinear: "
                "the likelihood has no maximum; expected columns of full rank that leave residual variation. "
                "Look for duplicate columns, and for a column that determines the response"
            ) from None

    def __call__(self, x: np.ndarray):
        if self.several:
            slopes = self.slopes(x * self.scale)
            at = self._profile(slopes.expansion, slopes.raw)
            hessian = average_hessian(slopes, at)
        else:
            at = self.profile(x * self.scale)
            hessian = at.hessian
        return at.value, at.gradient * self.scale, hessian * np.outer(self.scale, self.scale)

    def maximise(self, x: np.ndarray, free: np.ndarray, **options):
        """From x over the entries `free`; the others stay."""
        result = self.climb(x, free, **options)
        out = x.copy()
        out[free] = result.x
        if not self.several and result.converged and result.decrement <= options["tol"]:
            # One more step, whose gain is below the tolerance, doubles the correct digits and costs nothing: the
            # report evaluates where it lands.
            out[free] -= np.linalg.solve(result.hessian, result.gradient)
        return self.canonical(out), result

    def climb(self, x: np.ndarray, free: np.ndarray, *, tol, max_iterations, callback=None) -> NewtonResult:
        """Newton's method in the entries `free`."""

        def evaluate(part):
            full = x.copy()
            full[free] = part
            value, gradient, hessian = self(full)
            return value, gradient[free], hessian[np.ix_(free, free)]

        return maximise(
            evaluate, x[free], log_coordinates=self.diagonal[free], tol=tol, max_iterations=max_iterations,
            callback=callback,
        )  # fmt: skip

    def canonical(self, x: np.ndarray) -> np.ndarray:
        """The same covariance with a non-negative diagonal."""
        return self.covariance.raw(self.covariance.canonical(self.matrix(x)))

    def reordered(self, order: np.ndarray) -> FactorCriterion:
        """The criterion of the same model with its effects in another order, within blocks."""
        return FactorCriterion(self.cross.reordered(order), self.reml)

    def matrix(self, x: np.ndarray) -> np.ndarray:
        factor = np.zeros((self.covariance.n_effects,) * 2)
        factor[self.rows, self.columns] = x
        return factor

    def described(self) -> str:
        """How several factors are eliminated."""
        if not isinstance(self.cross, FactorProducts):
            return ""
        sparse, factors, dense = self.cross.n_sparse, len(self.cross.order), self.cross.n_dense
        if not dense:
            return "separable: factors nested in each other are eliminated level by level"
        return (
            f"schur: {sparse} of {factors} factors eliminated level by level, the other {dense:,} effects "
            "by a dense Cholesky factorisation"
        )

    # --- What is reported ----------------------------------------------------------------------------------

    def report(self, at: GaussianProfile, result=None, held=None, fixed=False, iterations=0) -> GaussianFit:
        """`held` (q,) are the entries on the boundary; `fixed`: the whole factor was given."""
        p, q = at.p, len(at.raw)
        held = np.zeros(q, bool) if held is None else held
        boundary = np.concatenate([np.zeros(p, bool), held, [False]])
        J = self._jacobian(at, held)
        covariance = np.zeros((p + q + 1,) * 2)
        free = np.concatenate([np.ones(p, bool), ~held & (not fixed), [True]])
        if self.reml:
            covariance[:p, :p] = at.vcov
            information, part = -(J.T @ at.criterion_hessian() @ J), np.flatnonzero(free[p:])
            covariance[np.ix_(p + part, p + part)] = inverse_information(information[np.ix_(part, part)])
        else:
            wide = np.block([[np.eye(p), np.zeros((p, q + 1))], [np.zeros((q + 1, p)), J]])
            information, part = -(wide.T @ at.joint_hessian() @ wide), np.flatnonzero(free)
            covariance[np.ix_(part, part)] = inverse_information(information[np.ix_(part, part)])
        factor = at.sigma * self.matrix(at.raw) if q else None
        estimated = ~held & (not fixed)
        information = -at.hessian[np.ix_(estimated, estimated)]
        decrement = float(at.gradient[estimated] @ inverse_information(information) @ at.gradient[estimated])
        score = None
        if held.any():
            # Half the second derivative in a column of the factor is the derivative in the variance.
            block = at.hessian[np.ix_(held, held)] / (2 * at.sigma**2)
            score = float(np.linalg.eigvalsh(block)[-1])
        return GaussianFit(
            beta=at.beta,
            factor=factor,
            sigma=at.sigma,
            loglik=at.value,
            method="reml" if self.reml else "ml",
            vcov=covariance[:p, :p].copy(),
            vcov_given=at.vcov,
            covariance=covariance,
            boundary=boundary,
            vcov_jacobian=np.einsum("kij,kl->lij", at.vcov_jacobian(), J),
            converged=True if result is None else result.converged,
            reason="converged" if result is None else result.reason,
            decrement=decrement,
            iterations=iterations,
            singular=bool(held.any()),
            score_at_zero=score,
            solver=self.described(),
            effects=partial(conditional_effects, self.slopes(at.raw), at.beta, at.sigma) if self.several else None,
        )

    def _jacobian(self, at: GaussianProfile, held: np.ndarray) -> np.ndarray:
        """d(T, log sigma) / d(theta, log sigma), (q + 1, q + 1): T = Lambda(theta) / sigma."""
        q = len(at.raw)
        J = np.zeros((q + 1, q + 1))
        by_theta = np.where(self.diagonal, at.raw, 1 / at.sigma)
        J[np.arange(q), np.arange(q)] = np.where(held, 0.0, by_theta)
        J[:q, q] = -at.raw
        J[q, q] = 1.0
        return J


def _fit_sigma(criterion, factor, tol, max_iterations, callback) -> GaussianFit:
    """Log sigma by Newton, the absolute factor held."""
    entries = criterion.covariance.raw(factor)

    def evaluate(x):
        at = criterion.profile(entries * np.exp(-x[0]), log_sigma=x[0])
        first, second = at.sigma_derivatives()
        return at.value, np.array([first]), np.array([[second]])

    start = criterion.profile(np.zeros_like(entries)).log_sigma  # that of no random effect
    result = maximise(evaluate, np.array([start]), tol=tol, max_iterations=max_iterations, callback=callback)
    at = criterion.profile(entries * np.exp(-result.x[0]), log_sigma=result.x[0])
    return criterion.report(at, result, fixed=True, iterations=result.iterations)
