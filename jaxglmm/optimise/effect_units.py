"""The size of the information in a row as a unit of effects, and where searches for their deviations begin."""

import numpy as np

from jaxglmm.optimise.boundary import sizes_along
from jaxglmm.optimise.growth import BOUNDED_LINKS


# No unit of effects is made of an information in a row beyond these.
INFORMATION = 1e-60, 1e60


def base_factor(covariance, z, level) -> np.ndarray:
    """Lambda_0 (S, S): independent effects of the size of the information in a row, on centred columns.

    Parameters
    ----------
    covariance : Covariance
    z : (S, n)
        Columns of the effects in the rows that count.
    level : (S,)
        sum z^2 w over the rows, w the information in eta.
    """
    shift = centring(covariance, z)
    # The mean information of a row, from any effect's level sum z^2 w.
    information = np.max(level / np.maximum(np.square(z).sum(1), 1e-300), initial=1e-300)
    information = float(np.clip(np.nan_to_num(information), *INFORMATION))  # where a start overflows there is no unit
    size = 1 / np.sqrt(information * np.maximum(np.square(shift.T @ z).mean(1), 1e-300))
    return covariance.canonical(shift * size)


def centring(covariance, z):
    """(S, S) whose transpose takes the columns to such as a constant one among those they covary with centres."""
    shift = np.eye(covariance.n_effects)
    for block in covariance.blocks:
        for k in (k for k in block if np.ptp(z[k]) == 0 and z[k, 0] != 0):
            for a in block:
                if a != k:
                    shift[k, a] = -np.mean(z[a]) / z[k, 0]
            break
    return shift


def predictor_units(family, base, design) -> np.ndarray:
    """As `Search._units`, for Lambda_0 = `base` (S, S)."""
    if family.link not in BOUNDED_LINKS:
        return np.full(len(base), np.nan)
    size = np.sqrt(np.square(base.T @ counting(design)).mean(1))
    return np.divide(1.0, size, out=np.full(len(size), np.nan), where=size > 0)


def sizes_of_one(family, design, level) -> np.ndarray:
    """Standard deviations of a single effect at which to look along it (`optimise.boundary`), ascending.

    Parameters
    ----------
    level : (1,)
        As for `base_factor`.
    """
    base = base_factor(design.terms[0].covariance, counting(design), level)
    return base[0, 0] * np.array(sizes_along(predictor_units(family, base, design)[0]))


def counting(design):
    """Columns of the effects (S, n) in the rows that count."""
    return np.asarray(design.terms[0].z)[:, np.asarray(design.weights) > 0]


def first_sizes(score, spread):
    """Standard deviations one step from zero, by the score of each variance there; zero where that has overflowed."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.sqrt(np.nan_to_num(np.maximum(2 * score / np.maximum(spread, 1e-300), 0.0)))
