"""Variances that grow without bound: random effects beyond any size that the link can show."""

import numpy as np


# On these links an effect of this size turns any mean into its bound, or into e^100 times itself; beside offsets that
# do so themselves effects may be of so many times their range.
BOUNDED_LINKS, LARGEST_SD, _BESIDE = ("logit", "probit", "cloglog", "log"), 100.0, 3.0


def check_growth(family, factors, columns, design, groups, convergence) -> None:
    """Say that a fit did not converge when a factor's effects are of no finite size in most of its rows.

    Parameters
    ----------
    factors : sequence of (S, S)
        Lambda of each grouping factor.
    columns : sequence of sequences of S arrays (n,)
        Of each: its effects' columns, in the coordinates of Lambda.
    design
        With `weights` (n,), rows of weight 0 do not count, and `offset` (n,).
    groups : sequence of str or None
        Names of the factors.
    convergence : Convergence
    """
    if family.link not in BOUNDED_LINKS or convergence.reason == "not finite":
        return
    for factor, z, group in zip(factors, columns, groups, strict=True):
        size = _usual_size(np.asarray(factor), z, design.weights)
        if size > LARGEST_SD and size > LARGEST_SD + _BESIDE * _range(design):
            convergence.converged = False
            convergence.reason = (
                f"the variance of the {'random effects' if group is None else f'effects of {group!r}'} grows without "
                f"bound, their standard deviation is {size:.3g} so far: within groups the responses are all alike"
            )


def _range(design) -> float:
    """Of the offsets in the rows that count."""
    offset = np.asarray(design.offset)[np.asarray(design.weights) > 0]
    return float(np.ptp(offset)) if len(offset) else 0.0


def _usual_size(factor, z, weights) -> float:
    """The median of the standard deviation of z'b over the rows in which it is not zero, or a bound of it.

    Not its mean square, which one value of z far outside makes large while all other rows see small effects.
    """
    if not np.isfinite(factor).all():
        return np.inf
    # Most fits end at a bound that takes no second array of the rows' length.
    bound = float(sum(np.abs(row).sum() * max(v.max(), -v.min()) for row, v in zip(factor, z, strict=True)))
    if bound <= LARGEST_SD:
        return bound
    used = np.asarray(weights) > 0
    each = np.stack([np.broadcast_to(v, used.shape)[used] for v in z])
    sizes = np.sqrt(np.square(factor.T @ each).sum(0))
    return float(np.median(sizes[sizes > 0])) if sizes.any() else 0.0
