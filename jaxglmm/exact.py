"""Gaussian responses that the model fits exactly, for callers who expect least squares to go on where likelihoods end.

`jaxglmm.fit` refuses them by name: the likelihood grows without bound as the residual variance falls.
"""

from dataclasses import replace

import numpy as np

from jaxglmm.estimation import estimate_problem
from jaxglmm.fitted.fit import Fit
from jaxglmm.formula.frame import model_frame
from jaxglmm.ops.computing import computing
from jaxglmm.penalised import estimate_penalised
from jaxglmm.problem import NOISE, make_problem


def fit_exactly(formula, data, family, *, weights=None, theta=None) -> Fit:
    """Least squares, groups included that determine the response; the residual standard deviation is at a floor.

    Raises
    ------
    DataError
    """
    frame = model_frame(formula, data, family=family, weights=weights)
    with computing():
        problem = make_problem(frame, family, estimated=theta is None, exact=True)
        return Fit.from_training(problem, *estimate_problem(problem, theta=theta))


def fit_exactly_by_ridge(formula, data, family, penalty, *, weights=None) -> Fit:
    """The same without groups and with more columns than the rows determine.

    The penalty acts on the residual sum of squares in units of the response's variance.

    Raises
    ------
    DataError
    """
    frame = model_frame(formula, data, family=family, weights=weights)
    scale = np.sqrt(np.cov(frame.y, aweights=frame.weights, ddof=0)) or 1.0
    with computing():
        problem, estimate, _ = estimate_penalised(frame, family, penalty=penalty, log_phi=float(np.log(scale)))
    residual = frame.y - frame.offset - frame.X @ estimate.beta
    mean_square = lambda v: np.average(np.square(v), weights=frame.weights)
    sigma = float(np.sqrt(mean_square(residual) + NOISE**2 * (mean_square(frame.y) or 1.0)))
    logs = np.log(frame.weights) - np.log(2 * np.pi * sigma**2) - frame.weights * np.square(residual / sigma)
    estimate = replace(
        estimate,
        dispersion=sigma,
        loglik=0.5 * float(logs.sum()),
        covariance=estimate.covariance * (sigma / scale) ** 2,
    )
    return Fit.from_training(problem, estimate, ())
