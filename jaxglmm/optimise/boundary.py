"""Before a variance is reported as zero or a correlation as +-1: the look along it for another, higher maximum.

The score of a variance at zero says only what is beside zero. One level with very many rows rules it, and may fall
there while the small levels have a maximum of their own further on. So standard deviations of several sizes are looked
at, the other parameters profiled by a Newton step or held, and where values and slopes of two neighbours leave room for
a maximum that is higher than the boundary, a search begins between them. Other maxima can never be ruled out altogether
by a number of evaluations: a certificate is of a local maximum.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxglmm.ops import lanes
from jaxglmm.optimise.newton import NewtonResult


# Standard deviations that are looked at, in units of the information in a row: from a level of ten thousand rows to one
# of a single row whose effect moves any mean to its bound.
MULTIPLES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Standard deviations of the predictor, on links where these have a size of their own: from effects that are hardly seen
# to such as turn any mean into its bound. Where one row of many has most of the information, its unit says nothing.
PREDICTOR_SIZES = (0.3, 1.0, 3.0, 10.0, 30.0)
# Sizes from which several effects of a level begin together, in the same unit, and rows up to which they do.
_TOGETHER, SMALL = (1.0, 5.0, 20.0), 20_000
# What is looked at may be that much higher than it seems, since the other parameters are not quite at their best.
_MARGIN = 0.1
# Logarithm of the ratio of neighbours that leaves room for a look in between; share of a size that is little.
_ROOM, _LITTLE = 0.4, 0.05
# Share of an effect's deviation that is its own where another start has its correlation turned round.
INSIDE = 0.3
# A maximum is higher than another by more than this.
HIGHER = 1e-7
# Levels that the score at zero effectively consists of: fewer, or fewer than this and this share of all, are few.
_FEWEST, _FEW, _FEW_SHARE = 3.0, 10.0, 0.2


class LinePoint(NamedTuple):
    """One point of a look: a standard deviation, value there, and its derivative in the deviation's logarithm."""

    size: float
    value: float
    slope: float


def sizes_along(unit: float = math.nan) -> list[float]:
    """Standard deviations to look at, ascending; `unit` is that of a predictor's deviation of one, NaN where none is.

    Those in between the neighbours of which there is hardly room are left out.
    """
    sizes = list(MULTIPLES)
    for size in PREDICTOR_SIZES if math.isfinite(unit) and unit > 0 else ():
        if min(abs(math.log(size * unit / known)) for known in sizes) > _ROOM:
            sizes.append(size * unit)
    return sorted(sizes)


def together(places: dict[tuple[int, int], int], units: np.ndarray) -> list[dict[int, float]]:
    """Where to begin with several effects of a level: all of a size, or one of them and the others small.

    Parameters
    ----------
    places : dict of (int, int) to int
        Of the entries of R.
    units : (S,)
        Entries of its diagonal by which the predictor has a standard deviation of one.
    """
    n = len(units)
    if not np.isfinite(units).all():
        units = np.ones(n)
    return [
        {places[c, c]: float(units[c] * size * (_LITTLE if which not in (c, None) else 1.0)) for c in range(n)}
        for size in _TOGETHER
        for which in (None, *range(n))
    ]


def above(ends: list[NewtonResult], best: float, most: int = 2) -> list[NewtonResult]:
    """Loose climbs that end, or are on their way, higher than the best maximum that is known; the highest first."""
    reach = lambda end: end.value + (end.decrement if math.isfinite(end.decrement) else 0.0)
    return sorted((end for end in ends if reach(end) > best + HIGHER), key=reach, reverse=True)[:most]


def promising(looks: list[LinePoint], best: float, known: float = 0.0) -> list[float]:
    """Standard deviations to begin other searches from, the most promising first.

    Parameters
    ----------
    looks : list of LinePoint
        Of ascending size.
    best : float
        Value of the maximum that is known.
    known : float
        Its standard deviation; none is proposed between the neighbours of it.
    """
    looks = [look for look in looks if np.isfinite(look.value) and np.isfinite(look.slope)]
    found = []
    for left, right in zip(looks, [*looks[1:], None][: len(looks)], strict=True):
        if right is None or left.slope <= 0 or right.slope >= 0:
            bound, size = left.value, left.size  # still rising at the end, or no maximum in between
            if right is None and left.slope > 0:
                bound = left.value + left.slope
        elif left.size <= known <= right.size:
            continue
        else:  # where the tangents meet
            a, b = np.log(left.size), np.log(right.size)
            at = (right.value - right.slope * b - left.value + left.slope * a) / (left.slope - right.slope)
            at = float(np.clip(at, a, b))
            bound, size = left.value + left.slope * (at - a) + _MARGIN, float(np.exp(at))
        if bound > best + HIGHER:
            found.append((bound, size))
    return [size for _, size in sorted(found, reverse=True)]


def any_promising(sizes, values, slopes, best, known) -> np.ndarray:
    """Which of many fits (B,) have a place to begin another search from, as `promising` says it.

    Parameters
    ----------
    sizes : sequence of float
        Ascending, K of them.
    values, slopes : (K, B)
        Values there, and their derivatives in the deviation's logarithm.
    best, known : (B,)
        Value of each one's maximum, and its standard deviation.
    """
    out = np.zeros(len(best), bool)
    with np.errstate(invalid="ignore"):
        some = (slopes > 0).any(0) | (values > best).any(0)
    for k in np.flatnonzero(some):
        looks = [LinePoint(*point) for point in zip(sizes, values[:, k], slopes[:, k], strict=True)]
        out[k] = bool(promising(looks, float(best[k]), float(known[k])))
    return out


def with_values(x: np.ndarray, values: dict[int, float]) -> np.ndarray:
    """x (m,) with these in their places."""
    x = x.copy()
    x[list(values)] = list(values.values())
    return x


def turned_round(x: np.ndarray, places: dict[tuple[int, int], int], c: int) -> list[dict[int, float]]:
    """Where to begin on the other side of a zero on the diagonal of R, in column c.

    Where row c has other entries, its effect has a correlation of 1 in size with others: it is turned round. Where it
    has none the effect is none, or one that later ones go along with: they do, on both sides.

    Parameters
    ----------
    x : (m,)
    places : dict of (int, int) to int
        Of the entries of R.
    """
    n, own = max(r for r, _ in places) + 1, places[c, c]
    row = {places[c, d]: -x[places[c, d]] for d in range(c) if (c, d) in places}
    if any(row.values()):
        return [row | {own: INSIDE * float(np.linalg.norm(list(row.values())))}]
    out = []
    for r in range(c + 1, n):
        size = abs(x[places[r, r]])
        if (r, c) in places and size:
            out += [{own: INSIDE, places[r, r]: INSIDE * size, places[r, c]: sign * size} for sign in (-1, 1)]
    return out


def profiled(value: float, gradient, hessian, j: int, others) -> tuple[float, float]:
    """Value and slope in parameter j after a Newton step of the others (indices); as they are where there is none."""
    H, g = -hessian[np.ix_(others, others)], gradient[others]
    try:
        np.linalg.cholesky(H)
        step = np.linalg.solve(H, g)
    except np.linalg.LinAlgError:
        return value, float(gradient[j])
    return value + 0.5 * float(g @ step), float(gradient[j] + hessian[j, others] @ step)


def profiled_many(value, gradient, hessian, j: int, free) -> tuple[np.ndarray, np.ndarray]:
    """As `profiled` for many fits: (B,), (B, m) and (B, m, m); the others are the parameters `free` (m,) but j."""
    others = np.flatnonzero(free & (np.arange(len(free)) != j))
    H, g = -hessian[:, others[:, None], others], gradient[:, others]
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(np.abs(np.einsum("bii->bi", H)))
        L = lanes.cholesky(lanes.lanes_last(H / scale[:, :, None] / scale[:, None, :]), least=1e-13)
        step = lanes.cho_solve(L, lanes.lanes_last(g / scale)).T / scale
        step = np.where(np.isfinite(step).all(1)[:, None], step, 0.0)
    return value + 0.5 * np.sum(g * step, 1), gradient[:, j] + np.einsum("bi,bi->b", hessian[:, j, others], step)


def few_rule(level, spread, count: int | None = None):
    """Whether few levels rule the score of a variance at zero; for arrays, of each fit.

    Parameters
    ----------
    level : float or (B,)
        Sum over levels of their information I.
    spread : float or (B,)
        Sum of I^2.
    count : int, optional
        How many levels there are.
    """
    effective = np.square(level) / np.maximum(spread, 1e-300)
    return (effective < _FEWEST) | (effective < (0.0 if count is None else min(_FEW, _FEW_SHARE * count)))
