"""Cross-validation of a path: folds share the columns and the compiled programs, and held-out rows have weight zero."""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class CrossValidation:
    """Predictive log-likelihood of held-out rows along a path.

    With the parameters of the other folds, the log-likelihood of all rows less that of the rows that were fitted to:
    for members held out as a whole, their marginal log-likelihood; for rows, that given the member's other rows.

    Attributes
    ----------
    folds : (L, F)
        Per unit of weight (row, or trial), of each lambda and fold.
    score, se : (L,)
        Their weighted mean and its standard error over folds.
    minimum : int
        Index of lambda.min, where the score is best.
    one_se : int
        Index of lambda.1se, the largest lambda whose score is within one standard error of the best.
    lambda_min, lambda_1se : float
    """

    folds: np.ndarray
    score: np.ndarray
    se: np.ndarray
    minimum: int
    one_se: int
    lambda_min: float
    lambda_1se: float


def summarise_folds(lambdas: np.ndarray, folds: np.ndarray, sizes: np.ndarray) -> CrossValidation:
    """Choose lambda from the folds' scores (L, F), `sizes` (F,) being their weights; lambdas fall."""
    share = sizes / sizes.sum()
    score = folds @ share
    variance = np.square(folds - score[:, None]) @ share
    se = np.sqrt(variance / (folds.shape[1] - 1))
    minimum = int(np.argmax(score))
    one_se = int(np.flatnonzero(score >= score[minimum] - se[minimum])[0])
    return CrossValidation(folds, score, se, minimum, one_se, float(lambdas[minimum]), float(lambdas[one_se]))


def fold_design(family, design, layout, y, weights, held: np.ndarray):
    """The design without the rows `held` (n,): they keep their slots, with weight zero."""
    left = np.where(held, 0.0, weights)
    constant = jnp.asarray(family.constant(y[~held], weights[~held]))
    slots = jnp.asarray(layout.scatter(left, dtype=design.weights.dtype))
    return eqx.tree_at(lambda d: (d.weights, d.constant), design, (slots, constant))
