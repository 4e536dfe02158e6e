"""Reference distributions of likelihood ratios where some of the added parameters are at the end of their range.

Under the smaller model the parameters that the larger one adds are of two kinds: those inside of their range, free to
move either way (fixed effects, correlations of effects that vary already), and covariance matrices of effects that do
not vary, which can only move into the cone of positive semi-definite matrices. Covariances of new effects with old ones
are of the first kind: to first order the cone does not bind them. With f of the first kind, the likelihood ratio is
asymptotically

    chi2(f) + |projection of Z onto the cone|^2,     Z ~ N(0, I^-1),

in the metric of I, the information on the cone's entries given all other parameters. For one variance that is
0.5 chi2(f) + 0.5 chi2(f + 1); for several single variances a mixture whose weights are the chances that so many are
positive; else its tail is averaged over directions of Z, whose length is independent of its direction.

I is that of the working linear model at the smaller fit, I_ab = tr(P V_a P V_b)/2, with V_a the derivative of the
working responses' covariance and P the projection that takes out the fixed effects (exact for Gaussian responses).

References
----------
Self & Liang (1987), JASA 82, 605. Shapiro (1988), Int. Stat. Rev. 56, 49. Stram & Lee (1994), Biometrics 50, 1171.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxglmm.inference.wald import chi2_p


_DRAWS, _SEED = 10_000, 20_261
_STEPS, _NEAR = 300, 1e-5  # of the projection onto a cone, at most; share of the points' size within which it ends
_DENSE = 1_500  # rows up to which traces are exact
_PROBES, _PROBED = (8, 400), 4_000_000  # random vectors for traces: least and most, and rows times vectors aimed at
_SOLVED = 1e-8


@dataclass(frozen=True)
class Component:
    """A variance or covariance of effects: the derivative V of the working responses' covariance in it.

    Attributes
    ----------
    codes : int (n,)
        Group of each row.
    first, second : (n,)
        The effects' columns; the same for a variance.
    """

    codes: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def times(self, v: np.ndarray) -> np.ndarray:
        """V v (n,)."""
        one = self.first * np.bincount(self.codes, self.second * v)[self.codes]
        if self.first is self.second:
            return one
        return one + self.second * np.bincount(self.codes, self.first * v)[self.codes]

    def dense(self) -> np.ndarray:
        """V (n, n)."""
        outer = np.outer(self.first, self.second) * (self.codes[:, None] == self.codes)
        return outer if self.first is self.second else outer + outer.T


@dataclass(frozen=True)
class WorkingModel:
    """The smaller model as a linear one.

    Attributes
    ----------
    weights : (n,)
        Inverse variances of the working responses given the effects.
    X : (n, p)
    effects : list of (codes (n,), z (S, n), factor (S, S))
        Of its grouping factors.
    """

    weights: np.ndarray
    X: np.ndarray
    effects: list[tuple[np.ndarray, np.ndarray, np.ndarray]]

    def information(self, components: Sequence[Component]) -> np.ndarray:
        """tr(P V_a P V_b)/2 of all pairs; by random vectors where there are many rows."""
        n, m = len(self.weights), len(components)
        if n <= _DENSE:
            V = np.diag(1 / self.weights)
            for codes, z, factor in self.effects:
                V += np.einsum("an,ab,bm->nm", z, factor @ factor.T, z) * (codes[:, None] == codes)
            P = _projected(np.linalg.inv(V), self.X)
            PV = [P @ component.dense() for component in components]
            return 0.5 * np.array([[np.sum(a * b.T) for b in PV] for a in PV])
        rng = np.random.default_rng(_SEED)
        probes = int(np.clip(_PROBED // n, *_PROBES))
        apply = self._projector()
        total = np.zeros((m, m))
        for _ in range(probes):
            v = rng.choice([-1.0, 1.0], n)
            left, right = apply(v), [apply(component.times(v)) for component in components]
            for a, component in enumerate(components):
                total[a] += [component.times(left) @ b for b in right]
        return 0.25 * (total + total.T) / probes

    def _projector(self):
        """v -> P v."""
        XV = np.stack([self._inverse(column) for column in self.X.T], 1) if self.X.shape[1] else self.X
        inner = np.linalg.pinv(self.X.T @ XV, hermitian=True)

        def apply(v):
            out = self._inverse(v)
            return out - XV @ (inner @ (self.X.T @ out))

        return apply

    def _inverse(self, v):
        """V^-1 v = W v - W Z Lambda (I + Lambda'Z'W Z Lambda)^-1 Lambda'Z'W v, by conjugate gradients."""
        w = self.weights
        if not any(factor.any() for *_, factor in self.effects):
            return w * v
        sizes = [int(codes.max()) + 1 for codes, *_ in self.effects]

        def down(r):  # Lambda'Z' r
            parts = []
            for (codes, z, factor), G in zip(self.effects, sizes, strict=True):
                parts.append((factor.T @ np.stack([np.bincount(codes, row * r, G) for row in z])).ravel())
            return np.concatenate(parts)

        def up(u):  # Z Lambda u
            out, begin = np.zeros(len(w)), 0
            for (codes, z, factor), G in zip(self.effects, sizes, strict=True):
                b = factor @ u[begin : begin + len(z) * G].reshape(len(z), G)
                out += np.sum(z * b[:, codes], 0)
                begin += len(z) * G
            return out

        target = down(w * v)
        scale = 1 / (1 + np.concatenate([
            (np.square(factor).sum(0)[:, None] * np.bincount(codes, w * np.square(z).sum(0), G) / len(z)).ravel()
            for (codes, z, factor), G in zip(self.effects, sizes, strict=True)
        ]))  # fmt: skip
        u, r = np.zeros_like(target), target.copy()
        q = scale * r
        direction, norm = q.copy(), float(r @ q)
        goal = _SOLVED**2 * norm
        for _ in range(500):
            if norm <= goal:
                break
            moved = direction + down(w * up(direction))
            step = norm / float(direction @ moved)
            u += step * direction
            r -= step * moved
            q = scale * r
            norm, before = float(r @ q), norm
            direction = q + norm / before * direction
        return w * (v - up(u))


def _projected(inverse, X):
    VX = inverse @ X
    return inverse - VX @ np.linalg.pinv(X.T @ VX, hermitian=True) @ VX.T


@dataclass(frozen=True)
class Reference:
    """A p-value and the distribution that it comes from."""

    p: float
    text: str


def reference(statistic: float, free: int, sizes: Sequence[int], information: np.ndarray | None = None) -> Reference:
    """The p-value of a likelihood ratio.

    Parameters
    ----------
    statistic : float
    free : int
        Added parameters inside of their range.
    sizes : sequence of int
        Effects of each covariance matrix that is zero under the smaller model.
    information : (d, d), optional
        On their entries given all other parameters: of each matrix the lower triangle by columns. Needed unless there
        is at most one single variance; without it the p-value is an upper bound.
    """
    d = sum(r * (r + 1) // 2 for r in sizes)
    if not d:
        return Reference(chi2_p(statistic, free), f"chi2({free})")
    if d == 1:
        text = f"half {_chi2(free)}, half {_chi2(free + 1)}: one variance at zero"
        return Reference(_mixture(statistic, free, [0.5, 0.5]), text)
    if information is None:
        # As if all of them were inside: no reference is larger.
        text = f"chi2({free + d}), conservative: variances at zero are on the boundary, and a loaded fit has no rows"
        return Reference(chi2_p(statistic, free + d), text)
    if max(sizes) == 1:
        weights = _orthant_weights(information)
        shown = " + ".join(f"{w:.3g} {_chi2(free + k)}" for k, w in enumerate(weights))
        return Reference(_mixture(statistic, free, weights), f"{shown}: {d} variances at zero")
    p = _simulated(statistic, free, sizes, information)
    return Reference(p, f"chi-bar-squared of {free + d}, simulated: covariances of {sum(sizes)} effects at zero")


def _chi2(df):
    return f"chi2({df})" if df else "0"


def _mixture(statistic, free, weights):
    if statistic <= 0:
        return 1.0
    return float(sum(w * chi2_p(statistic, free + k) for k, w in enumerate(weights) if free + k))


def _orthant_weights(information) -> np.ndarray:
    """Chances that 0, 1, ..., d of the variances are positive: closed form for two, simulated beyond."""
    d = len(information)
    unit = _unit(information)
    if d == 2:
        both = math.acos(float(np.clip(unit[0, 1], -1, 1))) / (2 * math.pi)
        return np.array([0.5 - both, 0.5, both])
    z = np.linalg.solve(np.linalg.cholesky(unit).T, np.random.default_rng(_SEED).standard_normal((d, _DRAWS)))
    positive = np.sum(projected(z, unit, [1] * d) > 0, 0)
    return np.bincount(positive, minlength=d + 1) / _DRAWS


def _simulated(statistic, free, sizes, information) -> float:
    """P(chi2(free) + |projection|^2 > statistic), averaged over directions."""
    if statistic <= 0:
        return 1.0
    g, z, unit, rest = draws(information, sizes, free)
    x = projected(z, unit, sizes)
    length = np.einsum("an,ab,bn->n", x, unit, x)
    return tail(statistic, free + len(unit), rest + length, rest + np.sum(np.square(g), 0))


def draws(information, sizes, free):
    """Standard normal g (d, draws), Z ~ N(0, unit^-1), the information with entries off the diagonals of matrices of
    these sizes times sqrt(2) and of a trace of d, and chi-squared numbers with `free` degrees of freedom."""
    # Entries off the diagonal count twice in the length of a matrix.
    off = np.concatenate([[1.0 if r == c else math.sqrt(0.5) for c in range(s) for r in range(c, s)] for s in sizes])
    unit = information * np.outer(off, off)
    unit = unit / (np.trace(unit) / len(unit))
    rng = np.random.default_rng(_SEED)
    g = rng.standard_normal((len(unit), _DRAWS))
    rest = rng.chisquare(free, _DRAWS) if free else 0.0
    return g, np.linalg.solve(np.linalg.cholesky(unit).T, g), unit, rest


def tail(statistic, df, part, whole) -> float:
    """P(chi2(df) part / whole > statistic), averaged over draws of the two squared lengths."""
    from scipy.special import chdtrc

    share = part / whole
    kept = share > 0
    return float(np.sum(chdtrc(df, statistic / share[kept])) / _DRAWS)


def _unit(information):
    scale = 1 / np.sqrt(np.diag(information))
    return information * np.outer(scale, scale)


def projected(z, metric, sizes) -> np.ndarray:
    """The points (d, draws) of a product of cones that are nearest to z (d, draws) in a metric (d, d).

    By alternating directions: x near z, y in the cone, their difference summed up in u.
    """
    d = len(z)
    rho = float(np.exp(np.mean(np.log(np.linalg.eigvalsh(metric)))))
    solve = np.linalg.inv(metric + rho * np.eye(d))
    pull, y, u = solve @ metric @ z, np.zeros_like(z), np.zeros_like(z)
    for _ in range(_STEPS):
        x = pull + rho * (solve @ (y - u))
        y, before = _into_cones(x + u, sizes), y
        u += x - y
        if max(np.abs(y - x).max(), np.abs(y - before).max()) < _NEAR * np.abs(z).max():
            break
    return y


def _into_cones(x, sizes):
    """Nearest positive semi-definite matrices; entries off the diagonal are times sqrt(2)."""
    out, begin = np.maximum(x, 0.0), 0
    for size in sizes:
        end = begin + size * (size + 1) // 2
        if size > 1:
            out[begin:end] = _semidefinite(x[begin:end], size)
        begin = end
    return out


def _semidefinite(x, size):
    if size == 2:
        half, apart, off = 0.5 * (x[0] + x[2]), 0.5 * (x[0] - x[2]), x[1] * math.sqrt(0.5)
        radius = np.hypot(apart, off)
        low, high = np.maximum(half - radius, 0.0), np.maximum(half + radius, 0.0)
        middle = 0.5 * (high + low)
        turn = np.divide(0.5 * (high - low), radius, out=np.zeros_like(radius), where=radius > 0)
        return np.stack([middle + turn * apart, turn * off * math.sqrt(2), middle - turn * apart])
    columns, rows = np.array([(c, r) for c in range(size) for r in range(c, size)]).T
    scale = np.where(rows == columns, 1.0, math.sqrt(0.5))
    full = np.zeros((x.shape[1], size, size))
    full[:, rows, columns] = full[:, columns, rows] = (scale[:, None] * x).T
    values, vectors = np.linalg.eigh(full)
    full = np.einsum("nij,nj,nkj->nik", vectors, np.maximum(values, 0.0), vectors, optimize=True)
    return full[:, rows, columns].T / scale[:, None]
