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


_TABLE = 1 << 15  # points of the pooled distribution function, at least
_FINEST = 1 << 20  # spacings in the range of all effects, at most: a narrower posterior is a mass at its mean
_R_POINTS = 100  # values of alpha for r-values
_R_SAMPLE = 200_000  # groups that give their thresholds


class Piece(NamedTuple):
    """Posteriors of some groups on lattices: groups (g,), first point and spacing (g,), weights (K, g)."""

    groups: np.ndarray
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
    r_value : smallest alpha at which the group is placed among the top alpha
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
        yield Piece(groups, middle - half, step, weights / weights.sum(0))


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
    table = pool.table()
    r = _RValues(pieces, span, table, n_groups) if r_values else None
    cuts = [table.quantile(1 - alpha)] + ([] if threshold is None else [threshold])
    out = np.empty((7 + len(cuts), n_groups))
    tail = 0.5 * (1 - interval)
    for piece in pieces():
        quantile = quantiles(*piece[1:], (tail, 1 - tail))
        for part in _by_step(_floored(piece, span)):
            h, first, weights = part.step[0], part.first, part.weights
            mean, square = _expect(weights, first, [lambda i, h=h: i * h, lambda i, h=h: np.square(i * h)])
            share = _expect(weights, first, [pool.above(h)])[0]
            beyond = _expect(weights, first, [lambda i, h=h, c=c: kernel(i - c / h) for c in cuts])
            out[:3, part.groups] = mean, np.sqrt(np.maximum(square - mean**2, 0)), share
            out[7:, part.groups] = beyond
            if r is not None:
                out[5, part.groups] = r.values(part)
        out[3:5, piece.groups] = 100 * table(quantile.T)
    mean, sd, share, lower, upper, r_value, _, p_top, *rest = out
    return Ranks(
        mean=mean, sd=sd, rank=0.5 + n_groups * share, percentile=100 * share, lower=lower, upper=upper,
        p_top=np.clip(p_top, 0, 1), p_above=np.clip(rest[0], 0, 1) if rest else None,
        r_value=r_value if r_values else None,
    )  # fmt: skip


def _by_step(piece: Piece) -> Iterable[Piece]:
    """Parts of one spacing each."""
    for h in np.unique(piece.step):
        here = piece.step == h
        yield Piece(piece.groups[here], piece.first[here], piece.step[here], piece.weights[:, here])


def _expect(weights, first, functions) -> np.ndarray:
    """sum_k weights_kg f(first_g + k) for functions of the lattice's numbers; (functions, g)."""
    low, high = int(first.min()), int(first.max()) + len(weights)
    values = np.stack([f(np.arange(low, high)) for f in functions])
    at = (first - low).astype(np.int64)
    out = np.zeros((len(functions), len(first)))
    for k, weight in enumerate(weights):
        out += weight * values[:, at + k]
    return out


def _floored(piece: Piece, span: float) -> Piece:
    """Posteriors too narrow for the finest lattice as masses at their means."""
    least = np.exp2(np.floor(np.log2(max(2 * span, 1e-300) / _FINEST)))
    narrow = piece.step < least
    if not narrow.any():
        return piece
    K = len(piece.weights)
    mean = np.einsum("kg,kg->g", piece.weights, (piece.first + np.arange(K)[:, None]) * piece.step)
    first = np.where(narrow, np.round(mean / least) - K // 2, piece.first)
    mass = (np.arange(K) == K // 2)[:, None]
    return Piece(piece.groups, first, np.where(narrow, least, piece.step), np.where(narrow, mass, piece.weights))


class _Pool:
    """The mean of all groups' posterior densities, as masses on lattices by their spacing."""

    def __init__(self, n_groups: int):
        self.n_groups = n_groups
        self.masses: dict[float, tuple[int, np.ndarray]] = {}  # spacing -> number of the first point, masses

    def add(self, piece: Piece) -> None:
        for part in _by_step(piece):
            first, h = part.first.astype(np.int64), float(part.step[0])
            low, high = int(first.min()), int(first.max()) + len(part.weights)
            before, old = self.masses.get(h, (low, np.zeros(0)))
            low, high = min(low, before), max(high, before + len(old))
            mass = np.zeros(high - low)
            mass[before - low : before - low + len(old)] = old
            for k, weight in enumerate(part.weights):
                mass += np.bincount(first + k - low, weight, high - low)
            self.masses[h] = low, mass

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
    """r-values: the least alpha at which V_alpha(j) = P(b_j in the top alpha) is among the alpha m largest."""

    def __init__(self, pieces, span, table, n_groups):
        self.alpha = np.square(np.arange(1, _R_POINTS) / _R_POINTS)
        self.cuts = table.quantile(1 - self.alpha)
        stride = -(-n_groups // _R_SAMPLE)
        sample = []
        for piece in pieces():
            kept = piece.groups % stride == 0
            sample.append(self._beyond(_floored(Piece(*(v[..., kept] for v in piece)), span)))
        V = np.concatenate(sample, 1)
        self.least = np.array([np.quantile(v, 1 - a) for v, a in zip(V, self.alpha, strict=True)])

    def _beyond(self, piece) -> np.ndarray:
        """V (alphas, g)."""
        from scipy.sparse import csr_array

        out = np.empty((len(self.alpha), len(piece.groups)))
        for h in np.unique(piece.step):
            here = np.flatnonzero(piece.step == h)
            weights, first = piece.weights[:, here], piece.first[here].astype(np.int64)
            low, high = int(first.min()), int(first.max()) + len(weights)
            values = kernel(np.arange(low, high)[:, None] - self.cuts / h)
            K = len(weights)
            columns = (first - low)[:, None] + np.arange(K)
            matrix = csr_array(
                (weights.T.ravel(), columns.ravel(), np.arange(0, K * len(here) + 1, K)),
                shape=(len(here), high - low),
            )
            out[:, here] = (matrix @ values).T
        return out

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
