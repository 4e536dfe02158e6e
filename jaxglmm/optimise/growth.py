"""Variances that grow without bound: random effects beyond any size that the link can show."""

import numpy as np


# On these links an effect of this size turns any mean into its bound, or into e^100 times itself.
BOUNDED_LINKS, LARGEST_SD = ("logit", "probit", "cloglog", "log"), 100.0


def check_growth(family, factors, columns, weights, groups, convergence) -> None:
    """Say that a fit did not converge when a factor's effects are of no finite size in most of its rows.

    Parameters
    ----------
    factors : sequence of (S, S)
        Lambda of each grouping factor.
    columns : sequence of sequences of S arrays (n,)
        Of each: its effects' columns, in the coordinates of Lambda.
    weights : (n,)
        Rows of weight 0 do not count.
    groups : sequence of str or None
        Names of the factors.
    convergence : Convergence
    """
    if family.link not in BOUNDED_LINKS or convergence.reason == "not finite":
        return
    for factor, z, group in zip(factors, columns, groups, strict=True):
        if (size := _usual_size(np.asarray(factor), z, weights)) > LARGEST_SD:
            convergence.converged = False
            convergence.reason = (
                f"the variance of the {'random effects' if group is None else f'effects of {group!r}'} grows without "
                f"bound, their standard deviation is {size:.3g} so far: within groups the responses are all alike"
            )


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
