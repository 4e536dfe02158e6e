"""What an optimiser hands on: estimates, their covariance, and how they were reached. All numpy."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxglmm.design.design import Scaling


@dataclass
class Convergence:
    """How a fit was reached.

    Attributes
    ----------
    converged : bool
    decrement : float
        Newton decrement g'(-H)^-1 g at the end: the square of the distance to the optimum in standard errors. Where the
        fit began at a sample of the groups it may be a bound that the sample foretells (`optimise.newton.maximise`,
        part): an evaluation that would only confirm it is left out.
    iterations : int
        Evaluations of the likelihood with its derivatives.
    passes : float
        Passes over the rows, those of the starting fit included.
    n_agq : int or None
        Quadrature nodes per effect.
    gap : float or None
        Log-likelihood by quadrature minus Laplace's at the same parameters; of a fit by Laplace's approximation, with
        `checked_nodes`.
    checked_nodes : int or None
        Nodes per effect with which the fit was looked at once, at its own parameters; None where it was not.
    checked_gap : float or None
        Their log-likelihood minus that of the fit.
    checked_move : float or None
        Standard errors by which a Newton step with their gradient moves the parameter that it moves most, with sign.
    singular : bool
        A variance is zero or a correlation is 1 in size.
    score_at_zero : float or None
        Derivative of the log-likelihood in the variance at zero variance, one scalar effect only. Where the fit began
        at a sample of the groups it is taken near the fit without effects, not at its optimum; None where the sample
        left no doubt of the random effects.
    warnings : list of str
    timings : dict of str to float
        Seconds by stage.
    reason : str
    trace : list of [float, float or None]
        Log-likelihood and decrement after each step, those of the starting fit first.
    kernels : str
        What evaluated the likelihood: "native" kernels or "plain" JAX.
    solver : str
        With several factors, how systems with all their effects were solved, and why so.
    loglik_se : float
        Monte-Carlo standard error of the log-likelihood; 0 where it is exact.
    scores_at_zero : dict of str to float
        With several factors, as `score_at_zero` for each whose only variance was put at zero.
    """

    converged: bool = True
    decrement: float = 0.0
    iterations: int = 0
    passes: float = 0.0
    n_agq: int | None = None
    gap: float | None = None
    checked_nodes: int | None = None
    checked_gap: float | None = None
    checked_move: float | None = None
    singular: bool = False
    score_at_zero: float | None = None
    warnings: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    reason: str = "converged"
    trace: list[list] = field(default_factory=list)
    kernels: str = "plain"
    solver: str = ""
    loglik_se: float = 0.0
    scores_at_zero: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """Point estimates on the scale of the caller's columns.

    Attributes
    ----------
    beta : (p,)
    factors : tuple of (S, S)
        Lambda of each term, absolute, link scale.
    dispersion : float or None
        Natural scale.
    loglik : float
        With all constants; the restricted one under REML.
    method : str
        "laplace", "agq", "ml", "reml", "joint" or "glm".
    n_agq : int or None
    parameters : tuple of str
        Names of psi = (beta, theta, log dispersion); theta is log-Cholesky.
    covariance : (m, m)
        Inverse observed information of psi with the coefficients of the columns in use, (X - center) / scale, in place
        of beta; zero rows for parameters on the boundary or held. In the columns as written x'V x would lose the square
        of a column's mean over its standard deviation.
    boundary : bool (m,)
        Parameters on the boundary, or held by the caller.
    convergence : Convergence
    scaling : Scaling
        Of the columns in use.
    vcov_jacobian : (q + 1, p, p) or None
        Gaussian models: derivatives of sigma^2 (X'V^-1X)^-1, of the columns in use, in (theta, log sigma), for degrees
        of freedom.
    penalised : dict or None
        Of a fit with a penalty or a prior, plain values: "text", what was added to the likelihood; "df", the effective
        number of parameters; "kkt", the largest violation of the optimality conditions; "lam" and "alpha"
        of a penalty; "prior", its text, or None.
    """

    beta: np.ndarray
    factors: tuple[np.ndarray, ...]
    dispersion: float | None
    loglik: float
    method: str
    n_agq: int | None
    parameters: tuple[str, ...]
    covariance: np.ndarray
    boundary: np.ndarray
    convergence: Convergence
    scaling: Scaling
    vcov_jacobian: np.ndarray | None = None
    penalised: dict | None = None

    @property
    def vcov(self) -> np.ndarray:
        """Covariance (p, p) of beta, of the columns as written."""
        p, T = len(self.beta), self.scaling.to_columns()
        return T @ self.covariance[:p, :p] @ T.T


@dataclass(frozen=True)
class Posterior:
    """Effects of each level of one factor given the parameters, level order.

    Attributes
    ----------
    mode : (G, S)
        Conditional modes of b.
    covariance : (G, S, S)
        Lambda H^-1 Lambda', the curvature's at the mode.
    mean : (G, S)
    covariance_mean : (G, S, S)
        Posterior mean and covariance of b.
    n : (G,)
        Rows of each level.
    """

    mode: np.ndarray
    covariance: np.ndarray
    mean: np.ndarray
    covariance_mean: np.ndarray
    n: np.ndarray


class Posteriors(Sequence[Posterior]):
    """Posteriors of a fit's terms, worked out when they are first asked for, and kept.

    A copy, or what is pickled, holds them and not what they are made of.

    Parameters
    ----------
    work_out : callable
        Returns one posterior a term; called once, from whichever thread asks first.
    modes : callable, optional
        Returns their modes (G, S) alone, where these take less.
    """

    def __init__(self, work_out: Callable[[], Iterable[Posterior]], modes: Callable[[], list] | None = None):
        self._work_out: Callable[[], Iterable[Posterior]] | None = work_out
        self._modes = modes
        self._lock, self._found = threading.Lock(), ()

    def modes(self) -> list[np.ndarray]:
        """Mode (G, S) of each; the coefficients of a ridge are no more than these."""
        with self._lock:
            modes = self._modes if self._work_out is not None else None
        return modes() if modes is not None else [posterior.mode for posterior in self]

    def work_out(self) -> tuple[Posterior, ...]:
        """All of them."""
        with self._lock:
            if self._work_out is not None:
                self._found = tuple(self._work_out())
                self._work_out = self._modes = None
            return self._found

    def __getitem__(self, index):
        return self.work_out()[index]

    def __len__(self) -> int:
        return len(self.work_out())

    def __reduce__(self):
        return _known, (self.work_out(),)


def modes_of(posteriors: Sequence[Posterior]) -> list[np.ndarray]:
    """Mode (G, S) of each posterior, worked out alone where that takes less."""
    return posteriors.modes() if isinstance(posteriors, Posteriors) else [posterior.mode for posterior in posteriors]


def _known(posteriors: tuple[Posterior, ...]) -> Posteriors:
    return Posteriors(lambda: posteriors)
