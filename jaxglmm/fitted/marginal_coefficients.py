"""Coefficients of the mean over groups, which a mixed model's own coefficients are not where the link bends."""

from typing import Any

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.predict import Rows
from jaxglmm.fitted.rowwise import normal_average, rowwise
from jaxglmm.fitted.state import State
from jaxglmm.fitted.tables import native_table
from jaxglmm.inference.coordinates import coordinates, raw_covariance


_STEP = 1e-4  # of central differences in eta, and relative in its variance


def marginal_coefficients(state: State, rows: Rows, weights: np.ndarray) -> Any:
    """Population-averaged coefficients: the least-squares image of g(E mu) in the columns of X.

    With mu(b) = g^-1(offset + x'beta + z'b) and b ~ N(0, Sigma),

        gamma = (X'W X)^-1 X'W [ g(E mu(b)) - offset ]

    Standard errors are by the delta method, dgamma = (X'W X)^-1 X'W (dg(E mu)/deta X dbeta + dg(E mu)/dv dv), with
    v = z'Sigma z and the covariance of all estimated parameters. Exact where g(E mu) is linear in X: identity, log and
    probit links with a random intercept.

    Parameters
    ----------
    state : State
    rows : Rows
        Over whose X is averaged; rows with missing values are left out.
    weights : (m,)
        Prior weights W.

    References
    ----------
    Hedeker, du Toit, Demirtas & Gibbons (2018), Biometrics 74, 354.
    """
    family, at = state.family, coordinates(state)
    z = np.concatenate([z for z, _ in rows.effects]) if rows.effects else np.zeros((0, len(rows.eta)))
    known = np.isfinite(rows.eta) & np.isfinite(z).all(0)
    if known.sum() < rows.X.shape[1]:
        raise DataError(f"marginal coefficients need {rows.X.shape[1]} complete rows or more; found {int(known.sum())}")
    scaling = state.estimate.scaling
    X, eta, z, W = scaling.rows(rows.X[known]), rows.eta[known], z[:, known], weights[known, None]
    white = state.factor.T @ z if rows.effects else z
    variance = np.square(white).sum(0)
    g = lambda eta, variance: rowwise(family, "link_function", normal_average(family, eta, variance))
    project = np.linalg.solve(X.T @ (W * X), (W * X).T)
    offset = eta - rows.X[known] @ state.estimate.beta
    h = _STEP * np.maximum(variance, _STEP)
    by_eta = (g(eta + _STEP, variance) - g(eta - _STEP, variance)) / (2 * _STEP)
    by_variance = (g(eta, variance + h) - g(eta, np.maximum(variance - h, 0))) / (h + np.minimum(h, variance))
    J = np.zeros((X.shape[1], len(at.x)))
    J[:, : at.p] = project @ (by_eta[:, None] * X)
    for e, (r, c) in enumerate(zip(*at.entries, strict=True)):
        J[:, at.p + e] = project @ (by_variance * 2 * z[r] * white[c])
    J = scaling.to_columns() @ J
    covariance = J @ raw_covariance(state) @ J.T
    return native_table(
        state.native,
        {
            "name": np.array(state.spec.fixed.names, object),
            "estimate": scaling.beta_to_columns(project @ (g(eta, variance) - offset)),
            "se": np.sqrt(np.diag(covariance)),
            "conditional": np.asarray(state.estimate.beta),
        },
    )
