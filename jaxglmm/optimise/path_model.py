"""What a path is solved for: the penalty in scaled columns, the likelihoods, where each stands, and its solutions."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxglmm.optimise.proximal import Curvature


@dataclass(frozen=True)
class Weights:
    """What the penalty is at lambda = 1, in the coordinates of scaled columns.

    Attributes
    ----------
    alpha : float
    factors : (p,)
        0: unpenalised; infinity: left out.
    unit : (p,)
        A scaled coefficient divided by this is the one that is penalised.
    """

    alpha: float
    factors: np.ndarray
    unit: np.ndarray

    @property
    def unpenalised(self) -> np.ndarray:
        return np.flatnonzero(self.factors == 0)

    @property
    def usable(self) -> np.ndarray:
        return np.flatnonzero(np.isfinite(self.factors))

    def l1(self, lam: float) -> np.ndarray:
        """(p,), infinite for columns left out."""
        return _times(lam * self.alpha, self.factors) / self.unit

    def l2(self, lam: float) -> np.ndarray:
        return _times(lam * (1 - self.alpha), np.where(np.isfinite(self.factors), self.factors, 0.0)) / self.unit**2

    def largest_lambda(self, gradient: np.ndarray) -> float:
        """The smallest lambda at which every penalised coefficient is 0, from the gradient (p,) there."""
        some = np.isfinite(self.factors) & (self.factors > 0)
        # glmnet's convention for ridge, whose path has no beginning.
        alpha = max(self.alpha, 1e-3)
        return float(np.max(np.abs(gradient[some]) * self.unit[some] / self.factors[some], initial=0.0) / alpha)


def _times(number, factors):
    out = np.where(np.isinf(factors), np.inf, 0.0)
    some = np.isfinite(factors)
    out[some] = number * factors[some]
    return out


@dataclass
class Model:
    """The likelihood of one data set: family, rows, nodes, and what of (theta, phi) is estimated.

    Attributes
    ----------
    family
    design : Design
        Its X is not read.
    nodes : Nodes or None
        None without random effects.
    determinant : bool
        False for the joint likelihood.
    free : bool (q + 1,)
        Which entries of (theta, log dispersion) are estimated.
    total : float
        N, the sum of the weights.
    prior : callable or None
        psi of given columns -> (value, gradient, Hessian), added to the log-likelihood.
    excess : float
        Residuals' standard deviation relative to the one that the dispersion says; other than 1 where that is held.
    sizes : (K,)
        Standard deviations at which to look along that of a single effect from zero; none where there is no look.
    """

    family: Any
    design: Any
    nodes: Any
    determinant: bool
    free: np.ndarray
    total: float
    prior: Any = None
    excess: float = 1.0
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass
class Point:
    """Where a data set's fit is: coefficients of scaled columns (p,), (theta, log dispersion), modes, what is known."""

    beta: np.ndarray
    rest: np.ndarray
    modes: Any  # (S, n_slots) or None
    loss: float = np.nan
    gradient: np.ndarray | None = None  # in all columns, then in the free entries of `rest`
    curvature: Curvature = field(default_factory=Curvature)
    outside: Any = None  # of the last evaluation, where it read all columns: x, and the gradient in them
    passes: float = 0.0


@dataclass(frozen=True)
class Solution:
    """One lambda's solution, in the coordinates of scaled columns.

    Attributes
    ----------
    beta : (p,)
    rest : (q + 1,)
    loglik : float
        With a prior: its logarithm is not in it.
    df : float
        Effective number of parameters: tr (A + l2)^-1 A over the active ones, their number for the lasso.
    kkt : float
        Largest violation of the optimality conditions, over all columns, relative to the gradient's own scale.
    iterations : int
    converged : bool
    """

    beta: np.ndarray
    rest: np.ndarray
    loglik: float
    df: float
    kkt: float
    iterations: int
    converged: bool
