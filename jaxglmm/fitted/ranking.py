"""Ranks of groups from their posteriors: expected ranks, percentiles, membership of the top, r-values.

With F = (1/m) sum_k F_k the mean of the groups' posterior distribution functions, every rank statistic is an
expectation under one group's posterior,

    expected rank  R_j = 1 + sum_{k != j} P(b_j > b_k) = 1/2 + m E F(b_j),     P(b_j > c) with F(c) = 1 - alpha

(Laird & Louis 1989; Lin, Louis, Paddock & Ridgeway 2006), so that the work is a lattice a group and no pairs.
Densities lie on dyadic lattices: those of one spacing h are added up point by point, and two spacings meet by

    P(b_j > b_k) = sum_i sum_n pi_ji pi_kn K((x_i - x_n) / max(h_j, h_k))

with K of `fitted.lattice`, a convolution of the summed densities. Posteriors are independent given the parameters.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxglmm.fitted.lattice import kernel, quantiles
from jaxglmm.fitted.threads import in_order
from jaxglmm.ops import lattices


_TABLE = 1 << 15  # points of the pooled distribution function, at least
_FAR = 2.0**60  # spacings that no lattice reaches
_FINEST = 1 << 20  # spacings in the range of all effects, at most: a narrower posterior is a mass at its mean
_R_POINTS = 100  # values of alpha for r-values, beside the least
_R_SAMPLE = 200_000  # groups that give their thresholds


class Piece(NamedTuple):
    """Posteriors of some groups: moments, and the density on a lattice.

    Attributes
    ----------
    groups : int (g,)
    mean, sd : (g,)
    first, step : (g,)
        The points are (first + k) step, the spacing a power of two.
    weights : (K, g)
    """

    groups: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    first: np.ndarray
    step: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Ranks:
    """Rank statistics of every group, (G,) each; the last three where they were asked for.

    Attributes
    ----------
    mean, sd : posterior moments of the effect
    rank : expected rank, 1 for the smallest
    percentile : 100 (rank - 1/2) / G
    lower, upper : interval of the percentile
    p_top : probability of belonging to the top alpha
    p_above : probability of exceeding the threshold
    r_value : smallest alpha, at least 1/G, at which the group is placed among the top alpha
    """

    mean: np.ndarray
    sd: np.ndarray
    rank: np.ndarray
    percentile: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    p_top: np.ndarray
    p_above: np.ndarray | None
    r_value: np.ndarray | None


def normal_pieces(mean: np.ndarray, sd: np.ndarray, most: int = 1 << 16) -> Iterable[Piece]:
    """Normal posteriors (G,) on lattices."""
    half = 40
    k = np.arange(-half, half + 1.0)[:, None]
    for begin in range(0, len(mean), most):
        groups = np.arange(begin, min(begin + most, len(mean)))
        m, s = mean[groups], sd[groups]
        step = np.exp2(np.ceil(np.log2(8 * s / half)))
        middle = np.round(m / step)
        weights = np.exp(-0.5 * np.square(((middle + k) * step - m) / s))
        yield Piece(groups, m, s, middle - half, step, weights / weights.sum(0))


def rank_groups(
    pieces: Callable[[], Iterable[Piece]], n_groups: int, *, alpha: float, threshold: float | None = None,
    interval: float = 0.95, r_values: bool = False,
) -> Ranks:  # fmt: skip
    """Rank statistics of all groups.

    Parameters
    ----------
    pieces : callable
        Gives the posteriors of all groups, the same at each call.
    n_groups : int
    alpha : float
        Share of the groups that are the top.
    threshold : float, optional
        Of `p_above`, link scale.
    interval : float
        Level of the percentiles' intervals.
    r_values : bool

    References
    ----------
    Henderson & Newton (2016), JRSS B 78, 781, for r-values: here the population's quantiles are those of F.
    """
    pool, span = _Pool(n_groups), 0.0
    for piece in pieces():
        span = max(span, float(np.max(np.abs((piece.first + len(piece.weights)) * piece.step), initial=0.0)))
        pool.add(_floored(piece, span))
    table, below = pool.table(), pool.below()
    r = _RValues(pieces, span, table, n_groups) if r_values else None
    cuts = np.array([table.quantile(1 - alpha)] + ([] if threshold is None else [threshold]))
    tail = 0.5 * (1 - interval)

    def ranked(piece):
        floored = _floored(piece, span)
        levels, level = _levels(floored)
        ends = quantiles(piece.first, piece.step, piece.weights, (tail, 1 - tail))
        parts = [
            piece.mean,
            piece.sd,
            *_expect(floored, level, below.of(levels)),
            *100 * table(ends.T),
            *_expect(floored, level, _beyond(levels, len(floored.weights), cuts)),
        ]
        if r is not None:
            parts.append(r.values(floored))
        return piece.groups, np.stack(parts)

    out = np.empty((5 + len(cuts) + r_values, n_groups))
    for groups, found in in_order(ranked, pieces()):
        out[:, groups] = found
    mean, sd, share, lower, upper, p_top, *rest = out
    return Ranks(
        mean=mean, sd=sd, rank=0.5 + n_groups * share, percentile=100 * share, lower=lower, upper=upper,
        p_top=np.clip(p_top, 0, 1), p_above=None if threshold is None else np.clip(rest[0], 0, 1),
        r_value=rest[-1] if r_values else None,
    )  # fmt: skip


def _levels(piece: Piece) -> tuple[np.ndarray, np.ndarray]:
    """The spacings of a piece, rising, and which of them each group has."""
    levels, level = np.unique(piece.step, return_inverse=True)
    return levels, level.astype(np.int32)


def _expect(piece: Piece, level, tables: lattices.Tables) -> np.ndarray:
    return lattices.expect(piece.weights.T, piece.first, level, tables)


def _beyond(levels: np.ndarray, K: int, cuts: np.ndarray) -> lattices.Tables:
    """Tables by which densities on lattices of these spacings give P(b > cut).

    The kernel about each cut, out to where a window of K points lies on one side of it.
    """
    place = np.clip(cuts / levels[:, None], -_FAR, _FAR)
    whole = np.floor(place)
    i = np.arange(-2 * K, 2 * K + 1)
    values = kernel(i - (place - whole)[..., None])
    length = np.full(place.shape, len(i))
    return lattices.Tables(
        whole.astype(np.int64) - 2 * K, np.arange(place.size).reshape(place.shape) * len(i), length, values.ravel()
    )


def _floored(piece: Piece, span: float) -> Piece:
    """Posteriors too narrow for the finest lattice as masses at their means."""
    least = np.exp2(np.floor(np.log2(max(2 * span, 1e-300) / _FINEST)))
    narrow = piece.step < least
    if not narrow.any():
        return piece
    K = len(piece.weights)
    mass = (np.arange(K) == K // 2)[:, None]
    return piece._replace(
        first=np.where(narrow, np.round(piece.mean / least) - K // 2, piece.first),
        step=np.where(narrow, least, piece.step),
        weights=np.where(narrow, mass, piece.weights),
    )


class _Pool:
    """The mean of all groups' posterior densities, as masses on lattices by their spacing."""

    def __init__(self, n_groups: int):
        self.n_groups = n_groups
        self.masses: dict[float, tuple[int, np.ndarray]] = {}  # spacing -> number of the first point, masses

    def add(self, piece: Piece) -> None:
        K, first = len(piece.weights), piece.first.astype(np.int64)
        levels, level = _levels(piece)
        low, high = np.full(len(levels), np.iinfo(np.int64).max), np.full(len(levels), np.iinfo(np.int64).min)
        np.minimum.at(low, level, first)
        np.maximum.at(high, level, first + K)
        end = np.cumsum(high - low)
        at, own = end - (high - low), np.zeros(end[-1])
        lattices.add(piece.weights.T, first, level, low, at, own)
        for v, h in enumerate(levels.tolist()):
            before, old = self.masses.get(h, (low[v], np.zeros(0)))
            begin = min(low[v], before)
            mass = np.zeros(max(high[v], before + len(old)) - begin)
            mass[before - begin : before - begin + len(old)] += old
            mass[low[v] - begin : high[v] - begin] += own[at[v] : end[v]]
            self.masses[h] = int(begin), mass

    def below(self) -> "_Below":
        """F on the lattices of all spacings, as far as densities reach."""
        return _Below(
            {h: (first, self.above(h)(np.arange(first, first + len(mass)))) for h, (first, mass) in self.masses.items()}
        )

    def above(self, h: float) -> Callable[[np.ndarray], np.ndarray]:
        """i -> mean over groups of P(b < i h), i consecutive, in the form to be averaged over a density of spacing h.

        The distribution function itself where h is at most every spacing.
        """
        from scipy.signal import fftconvolve

        def at(i):
            i = np.asarray(i)
            low, high = int(i[0]), int(i[-1]) + 1
            out = np.zeros(high - low)
            for source, (first, mass) in self.masses.items():
                ratio = max(round(source / h), round(h / source))
                up = mass
                if source > h:
                    up = np.zeros((len(mass) - 1) * ratio + 1)
                    up[::ratio] = mass
                stride = ratio if h > source else 1
                begin, end = low * stride, (high - 1) * stride + 1
                origin = first * (ratio if source > h else 1)
                # Numbers of the fine lattice: targets begin ... end, sources origin ... origin + len(up).
                differences = np.arange(begin - origin - len(up) + 1, end - origin)
                values = fftconvolve(up, kernel(differences / ratio), mode="valid")
                out += values[::stride]
            return out / self.n_groups

        return at

    def table(self) -> "_Table":
        spans = [(first * h, (first + len(mass)) * h) for h, (first, mass) in self.masses.items()]
        low, high = min(s[0] for s in spans), max(s[1] for s in spans)
        h = min(*self.masses, np.exp2(np.floor(np.log2((high - low) / _TABLE))), np.inf)
        i = np.arange(np.floor(low / h), np.ceil(high / h) + 1).astype(np.int64)
        return _Table(i * h, np.maximum.accumulate(np.clip(self.above(h)(i), 0, 1)))


@dataclass(frozen=True)
class _Below:
    """The pooled distribution function by spacing: number of the first point, values."""

    values: dict[float, tuple[int, np.ndarray]]

    def of(self, levels: np.ndarray) -> lattices.Tables:
        found = [self.values[h] for h in levels.tolist()]
        length = np.array([[len(v)] for _, v in found])
        at = np.cumsum(length)[:, None] - length
        return lattices.Tables(np.array([[o] for o, _ in found]), at, length, np.concatenate([v for _, v in found]))


class _Table:
    """The pooled distribution function at any point, and its quantiles."""

    def __init__(self, x, F):
        self.x, self.F = x, F

    def __call__(self, x):
        return np.interp(x, self.x, self.F)

    def quantile(self, p):
        kept = np.flatnonzero(np.diff(self.F, prepend=-1.0) > 0)
        return np.interp(p, self.F[kept], self.x[kept])


class _RValues:
    """r-values: the least alpha at which V_alpha(j) = P(b_j in the top alpha) is among the alpha m largest.

    A list holds at least one group, so that alpha begins at 1/m: of few groups it takes all multiples of that.
    """

    def __init__(self, pieces, span, table, n_groups):
        stride = -(-n_groups // _R_SAMPLE)
        fine, least = np.square(np.arange(1, _R_POINTS) / _R_POINTS), stride / n_groups
        if n_groups <= _R_POINTS:
            self.alpha = np.arange(1, max(n_groups, 2)) / n_groups
        else:
            self.alpha = np.append(least, fine[fine > least])
        self.cuts = table.quantile(1 - self.alpha)

        def beyond(piece):
            kept = piece.groups % stride == 0
            return self._beyond(_floored(Piece(*(v[..., kept] for v in piece)), span))

        V = np.concatenate(list(in_order(beyond, pieces())), 1)
        self.least = np.array(list(in_order(lambda at: np.quantile(V[at], 1 - self.alpha[at]), range(len(V)))))

    def _beyond(self, piece) -> np.ndarray:
        """V (alphas, g)."""
        levels, level = _levels(piece)
        return _expect(piece, level, _beyond(levels, len(piece.weights), self.cuts))

    def values(self, piece) -> np.ndarray:
        """r-value (g,) of some groups."""
        gap = self._beyond(piece) - self.least[:, None]
        inside = gap >= 0
        at = np.argmax(inside, 0)
        never = ~inside.any(0)
        before = np.maximum(at - 1, 0)
        g = np.arange(len(at))
        low, high = gap[before, g], gap[at, g]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where((at > 0) & (high > low), -low / (high - low), 1.0)
        r = self.alpha[before] + np.clip(share, 0, 1) * (self.alpha[at] - self.alpha[before])
        return np.where(never, 1.0, r)
