"""A Newton step with what a sample of the groups knows of higher derivatives.

A quadratic model leaves an error of third order, r^2 in the length r of the step. A sample tells most of that error, at
a fraction of the cost: where F is the function and f that of the sample, scaled to F's curvature, the surrogate

    m(y) = F(x) + (F'(x) - f'(x))'(y - x) + (y - x)'(F''(x) - f''(x))(y - x) / 2 + f(y) - f(x)

agrees with F in value, gradient and Hessian at x, and errs beyond by what the sample's higher derivatives do.
(Jordan, Lee & Yang 2019, JASA 114, 668, whose surrogate agrees in the gradient.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


# Share of the correction by which it is held to be wrong at least, and times the share by which the last one was.
_LEAST_ERROR, _CAUTION = 0.05, 5.0


@dataclass(frozen=True)
class Correction:
    """The surrogate's maximum, from the end of a Newton step on.

    Attributes
    ----------
    x : (m,)
        The maximum.
    value : float
        The surrogate's.
    hessian : (m, m)
        The surrogate's, close by.
    change : (m,)
        From the end of the Newton step to `x`.
    """

    x: np.ndarray
    value: float
    hessian: np.ndarray
    change: np.ndarray


def correct(part: Callable, x, found, trial) -> Correction | None:
    """A Newton step of the surrogate: what is left of its gradient then is of fourth order.

    Parameters
    ----------
    part : callable
        x (m,) -> (value, gradient (m,), hessian (m, m), ...) of the sample.
    x : (m,)
    found : (value, gradient, hessian)
        Of the whole, at x.
    trial : (m,)
        End of the whole's Newton step.

    Returns
    -------
    Correction or None
        None where the surrogate is not concave or not finite: then nothing is known beyond the quadratic.
    """
    value, gradient, hessian = found
    (v, g, H), (v1, g1, H1) = _of(part, x), _of(part, trial)
    step = trial - x
    try:
        scale = np.trace(np.linalg.solve(H, hessian)) / len(x)
        bent = hessian + scale * (H1 - H)
        slope = gradient + hessian @ step + scale * (g1 - g - H @ step)
        np.linalg.cholesky(-np.stack([hessian, bent]))  # concave
        change = np.linalg.solve(-bent, slope)
    except np.linalg.LinAlgError:
        return None
    height = value + gradient @ step + scale * (v1 - v - g @ step) + 0.5 * step @ (hessian - scale * H) @ step
    height = float(height + 0.5 * slope @ change)
    return Correction(trial + change, height, bent, change) if np.isfinite([height, *change]).all() else None


def error_share(before: Correction, decrement: float, hessian) -> float:
    """By which share the last correction was wrong, with caution: `decrement` and `hessian` are those at its end."""
    size = -before.change @ hessian @ before.change
    return max(_LEAST_ERROR, _CAUTION * float(np.sqrt(decrement / size))) if size > 0 else np.inf


def foretold(now: Correction, share: float, hessian) -> tuple[float, float]:
    """Bounds of what is left after a correction that may be wrong by this share.

    Returns
    -------
    float
        Of the decrement.
    float
        Of the relative error of standard errors from its Hessian; `hessian` is that of the step's begin.
    """
    decrement = share**2 * float(-now.change @ hessian @ now.change)
    errors, bent = (np.sqrt(np.diag(np.linalg.inv(-H))) for H in (hessian, now.hessian))
    return decrement, share * float(np.max(np.abs(errors / bent - 1), initial=0.0))


def _of(part, x):
    value, gradient, hessian, *_ = part(x)
    return float(value), np.asarray(gradient, float), np.asarray(hessian, float)
