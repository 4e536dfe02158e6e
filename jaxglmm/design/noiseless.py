"""Gamma and beta responses that the columns, or the columns and the groups, determine.

Their log-likelihood grows without bound in the log dispersion, by half a unit a row, where every response is its mean;
there is no family that they turn into, as Poisson of the negative binomial. Long before, sums of terms of the size of
the dispersion have no digits left to tell one estimate from another.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.within import least_squares
from jaxglmm.errors import ExactFitError
from jaxglmm.ops.computing import computing


NEED_NOISE = ("gamma", "beta")
# Mean squares of Pearson residuals, at a dispersion of one, that leave no digits to a search: in float64 the terms of
# the log-likelihood are known to about 1e-16 of the dispersion, the inverse of that. Random effects take more of them.
_NOTHING, _NOTHING_BESIDE_EFFECTS = 1e-13, 5e-11
# Rows and numbers of the sample that mostly shows that there is noise, and groups it is of.
_SAMPLE, _NUMBERS, _GROUPS = 1 << 16, 1 << 22, 1024
_RANK = 1e-10


def check_noise(frame, family, X, used) -> None:
    """Refuse a gamma or beta response without a dispersion, for no or one grouping factor.

    Residuals are those of least squares on the scale of the predictor, in units of the response's variance.

    Parameters
    ----------
    frame : ModelFrame
    family : AbstractFamily
    X : Columns (n, p)
    used : bool (n,)
        Rows that count.

    Raises
    ------
    ExactFitError
    """
    if family.name not in NEED_NOISE or len(frame.terms) > 1:
        return
    term, p = frame.terms[0] if frame.terms else None, X.shape[1]
    rows = np.flatnonzero(used if term is None else used & (term.codes < _GROUPS))
    some = rows[: min(_SAMPLE, max(_NUMBERS // (p + 1), 4 * p))]
    predictor, unit = _on_predictor_scale(family, frame.y[some])
    columns = np.column_stack([*(np.asarray(column[some], float) for column in X.columns), predictor])
    if frame.offset is not None:
        columns[:, -1] -= frame.offset[some]
    size = np.linalg.norm(columns, axis=0)[:-1]
    left, taken = _apart_from_effects(columns, term, some)
    every = len(some) == np.count_nonzero(used)
    if len(some) - taken <= p and not (every and term is None):
        return  # what so many columns leave says nothing
    scaled = left[:, :-1] / np.where(size > 0, size, 1.0)
    beta = np.linalg.lstsq(scaled, left[:, -1], rcond=_RANK)[0] if p else np.zeros(0)
    nothing = _NOTHING if term is None else _NOTHING_BESIDE_EFFECTS
    found = np.mean(np.square(unit * (left[:, -1] - scaled @ beta)))
    if found < nothing and not every:
        some = np.flatnonzero(used)
        predictor, unit = _on_predictor_scale(family, frame.y[some])
        rest = predictor - (X @ (beta / np.where(size > 0, size, 1.0)))[some]
        rest = rest if frame.offset is None else rest - frame.offset[some]
        found = np.mean(np.square(unit * _apart_from_effects(rest[:, None], term, some)[0][:, 0]))
    if found < nothing:
        what = "the columns" if term is None else f"the columns and the effects of {term.group!r}"
        raise ExactFitError(
            f"the response {frame.spec.response_text!r} is determined by {what}: no dispersion is left, residuals are "
            f"{np.sqrt(found):.1g} of the response's own scale, and the likelihood of the {family.name} family has no "
            "maximum that can be computed; look for a column that the response was made of"
        )


def _apart_from_effects(columns, term, rows) -> tuple[np.ndarray, int]:
    """Columns (m, k) less what each group's effects take up of them, and how many effects do."""
    if term is None:
        return columns, 0
    codes, z = term.codes[rows], np.asarray(term.z)[:, rows]
    per_group = lambda v: np.bincount(codes, v, minlength=int(codes.max(initial=0)) + 1)
    ztz = np.array([[per_group(a * b) for b in z] for a in z])
    ztv = np.array([[per_group(a * v) for a in z] for v in columns.T])
    coefficients, root = least_squares(ztz, ztv)
    fitted = np.einsum("sm,ksm->mk", z, coefficients[:, :, codes])
    return columns - fitted, int(np.count_nonzero(np.square(root).sum(0) > 0))


def _on_predictor_scale(family, y) -> tuple[np.ndarray, np.ndarray]:
    """The link of responses (m,), and what makes a small difference of it one in standard deviations."""
    padded = np.full(1 << int(len(y) - 1).bit_length() if len(y) > 1 else 1, 0.5)  # so that few programs serve all
    padded[: len(y)] = y
    with computing():
        predictor, unit = _link(family, padded)
        return np.asarray(predictor)[: len(y)], np.asarray(unit)[: len(y)]


@partial(jax.jit, static_argnums=0)
def _link(family, y):
    predictor, slope = jax.jvp(family.link_function, (y,), (jnp.ones_like(y),))
    return predictor, 1 / (jnp.abs(slope) * jnp.sqrt(family.variance(y, jnp.zeros(()))))
