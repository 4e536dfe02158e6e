"""Profile likelihood intervals: hold one parameter, maximise over the others, find where the likelihood has dropped.

With zeta(v) = sign(v - v^) sqrt(2 (L^ - L(v))), L(v) the maximum with the parameter held at v, the interval's ends
solve zeta = +- normal quantile. The slope zeta' = -L'(v)/zeta comes free with each maximum (the derivative in the held
parameter), so that a few Newton steps, kept in a bracket, suffice.

Quadrature nodes that are enough at the estimate may be too few at the ends, where effects are larger: both are looked
at with more nodes, and the profile is made anew with more where they would move an end.

References
----------
Bates, Maechler, Bolker & Walker (2015), J. Stat. Softw. 67(1), section 5.1. Venzon & Moolgavkar (1988), Applied
Statistics 37, 87.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np

from jaxglmm.errors import ConvergenceWarning
from jaxglmm.inference.likelihood import Likelihood
from jaxglmm.inference.parameters import Parameter
from jaxglmm.model.centring import is_identity
from jaxglmm.model.family import AT_LIMIT
from jaxglmm.ops.computing import computing
from jaxglmm.ops.threads import calm
from jaxglmm.optimise.newton import least_squares, maximise
from jaxglmm.optimise.node_ladder import nodes_above, rung_above


# Zeta is found to this share of its target.
_TOLERANCE = 1e-5
_MOST_MAXIMA = 30
# A correlation nearer to +-1 than this is reported as +-1.
_EDGE = 1e-6
# More nodes make no difference to an end that they move by less than this share of its distance from the estimate.
_SAME_END = 0.01


def profile_intervals(state, problem, wanted: list[Parameter], quantile: float) -> list[tuple[float, float]]:
    """(lower, upper) of each parameter; all of [-1, 1] for a correlation beside a variance of zero.

    Under REML the profile is that of the ordinary likelihood. Of a fit by quadrature it is with as many nodes as make
    no difference, at least the fit's; a fit by Laplace's approximation has that of this approximation.

    Warns
    -----
    ConvergenceWarning
        Where the most nodes that are tried are too few for an end.
    """
    models: dict[tuple[int | None, int], tuple[Likelihood, np.ndarray]] = {}
    # With several factors it is the only effect of the largest that has nodes.
    n_effects = len(state.terms[0].names) if len(state.terms) == 1 else 1

    def model(first, nodes):
        if (first, nodes) not in models:
            models[first, nodes] = _model(state, problem, first, nodes)
        return models[first, nodes]

    def interval(parameter, first):
        nodes = state.estimate.n_agq or 1
        while True:
            made, ends = _interval(*model(first, nodes), parameter, quantile)
            above = None if nodes == 1 else nodes_above(nodes, n_effects)
            moved = 0.0
            if made is not None and above is not None:
                moved = made.moved(Likelihood(state, problem, first, above), quantile)
            more = None if moved < _SAME_END else rung_above(nodes, n_effects)
            if more is None:
                break
            nodes = more
        if made is not None and made.higher > 1e-6 * (1 + abs(made.best)):
            _warn(
                f"the likelihood is higher by {made.higher:.3g} away from the estimate: the fit is not at its maximum, "
                "and this interval is not to be trusted"
            )
        if not moved < _SAME_END:
            by = f"about {moved:.2g} of its distance from the estimate" if math.isfinite(moved) else "far"
            _warn(
                f"{nodes} nodes, the most that are tried, are not enough for the profile interval of "
                f"{parameter.name!r}: {above} nodes move an end by {by}"
            )
        return ends

    out = []
    with computing(), calm():
        for parameter in wanted:
            # The sd of a block's first effect is an entry of Lambda, as are correlations with it up to that scale.
            first = parameter.effects[-1] if parameter.kind in ("sd", "cor") else None
            out.append(interval(parameter, first))
    return out


def _warn(text: str):
    warnings.warn(text, ConvergenceWarning, stacklevel=7)


def _model(state, problem, first, nodes):
    likelihood = Likelihood(state, problem, first, nodes)
    at = likelihood.at
    if state.estimate.method != "reml" and is_identity(at.loads) and nodes == (state.estimate.n_agq or 1):
        return likelihood, at.x
    # Another likelihood than the fit's, more quadrature nodes, or nodes laid in another order.
    x, free = at.x.copy(), np.flatnonzero(at.free)

    def evaluate(part):
        x[free] = part
        value, gradient, hessian = likelihood(x)
        return value, gradient[free], hessian[np.ix_(free, free)]

    x[free] = maximise(evaluate, x[free], log_coordinates=at.even[free]).x
    return likelihood, x


def _interval(likelihood, best, parameter, quantile):
    """The profile, None where there is nothing to follow, and (lower, upper)."""
    at = likelihood.at
    if parameter.kind in ("beta", "dispersion"):
        j = parameter.effects[0] if parameter.kind == "beta" else len(best) - 1
        if parameter.kind == "dispersion" and not at.free[j]:  # at its limit: from close by
            profile = _Profile(likelihood, _Identity(at), np.append(best[:-1], likelihood.limit.near), j)
            profile.se = 1.0
            return profile, (math.exp(profile.end(-1, quantile, -math.inf, math.inf)), math.inf)
        mapping = _Identity(at) if parameter.kind == "dispersion" else _Coefficient(at, parameter.loads[0], j)
        profile = _Profile(likelihood, mapping, best, j)
        high = math.inf if parameter.kind == "beta" or likelihood.limit is None else AT_LIMIT
        ends = [profile.end(sign, quantile, -math.inf, high) for sign in (-1, 1)]
        natural = lambda v: math.inf if v == AT_LIMIT else math.exp(v)
        return profile, tuple(natural(v) for v in ends) if parameter.kind == "dispersion" else tuple(ends)
    place = {(int(r), int(c)): at.p + k for k, (r, c) in enumerate(zip(*at.entries, strict=True))}
    row = int(np.flatnonzero(at.order == parameter.effects[0])[0])
    if parameter.kind == "sd":
        column = [k for (r, c), k in place.items() if c == row and r != row]
        profile = _Profile(likelihood, _Identity(at), best, place[row, row], column)
        return profile, tuple(profile.end(sign, quantile, 0.0, math.inf) for sign in (-1, 1))
    columns = [c for r, c in place if r == row]
    mapping = _Spherical(at, [place[row, c] for c in columns[:-1]], place[row, row])
    if not np.isfinite(mapping.inverse(best)).all() or best[place[columns[0], columns[0]]] == 0:
        return None, (-1.0, 1.0)
    profile = _Profile(likelihood, mapping, best, place[row, columns[0]])
    return profile, tuple(profile.end(sign, quantile, -1.0, 1.0) for sign in (-1, 1))


class _Identity:
    """y = x: the first sd of a block, log dispersion."""

    def __init__(self, at):
        self.even = at.even

    def inverse(self, x):
        return x.copy()

    def __call__(self, y):
        return y, np.eye(len(y)), None


class _Coefficient:
    """y = x but for one coefficient, which is that of a column as written: loads'x of those of the columns in use."""

    def __init__(self, at, loads, j):
        self.even, self.loads, self.j = at.even, np.pad(loads, (0, len(at.x) - len(loads))), j

    def inverse(self, x):
        y = x.copy()
        y[self.j] = self.loads @ x
        return y

    def __call__(self, y):
        x, J, j = y.copy(), np.eye(len(y)), self.j
        J[j] = -self.loads / self.loads[j]
        J[j, j] = 1 / self.loads[j]
        x[j] = J[j] @ y
        return x, J, None


class _Spherical:
    """One row of Lambda as sd (m, sqrt(1 - |m|^2)): the first m is the correlation with the block's first effect.

    The place of the diagonal entry holds the sd.
    """

    def __init__(self, at, others, diagonal):
        self.even = at.even.copy()
        self.even[diagonal] = False
        self.others, self.diagonal = others, diagonal

    def inverse(self, x):
        y = x.copy()
        row = [*self.others, self.diagonal]
        y[self.diagonal] = math.sqrt(np.sum(np.square(x[row])))
        with np.errstate(invalid="ignore", divide="ignore"):
            y[self.others] = x[self.others] / y[self.diagonal]
        return y

    def __call__(self, y):
        """x, dx/dy, and the function g -> sum_k g_k d2x_k/dy2; x = None outside of the domain."""
        others, d = self.others, self.diagonal
        sd, m = y[d], y[others]
        x, J = y.copy(), np.eye(len(y))
        if np.sum(np.square(m)) >= 1:
            return None, J, None
        w = math.sqrt(1 - np.sum(np.square(m)))
        x[others], x[d] = sd * m, sd * w
        J[others, others], J[others, d] = sd, m
        J[d, d], J[d, others] = w, -sd * m / w

        def bend(g):
            out = np.zeros((len(y), len(y)))
            out[others, d] = out[d, others] = g[others] - g[d] * m / w
            out[np.ix_(others, others)] = -g[d] * sd * (np.eye(len(m)) / w + np.outer(m, m) / w**3)
            return out

        return x, J, bend


class _Held(NamedTuple):
    """The maximum with one coordinate held: all coordinates, value, gradient and Hessian."""

    y: np.ndarray
    value: float
    gradient: np.ndarray
    hessian: np.ndarray


class _Profile:
    """Maxima with coordinate j of y held; `column` are the coordinates that mean nothing where y_j = 0.

    `ends` are the maxima at the ends that were found, and whether the likelihood has dropped there; `higher` is by how
    much it was found to be higher than at the estimate.
    """

    def __init__(self, likelihood, mapping, best, j, column=()):
        self.likelihood, self.mapping, self.j, self.column = likelihood, mapping, j, list(column)
        self.x, self.ends, self.higher = best, [], 0.0
        self.y = mapping.inverse(best)
        self.best = likelihood(best)[0]
        free = likelihood.at.free.copy()
        free[j] = True
        self.others = np.flatnonzero(free & (np.arange(len(free)) != j))
        value, _, hessian = self._at(self.y)
        # A correlation of 1 in size lies outside of its own parametrisation: nothing to go by there.
        self.along = self._along(hessian) if math.isfinite(value) else np.zeros(len(self.others))
        information = 0.0
        if math.isfinite(value):
            information = -hessian[j, j] - hessian[j, self.others] @ self.along
        self.se = 1 / math.sqrt(information) if information > 0 else 0.1

    def _at(self, y):
        x, J, bend = self.mapping(y)
        if x is None:
            return -math.inf, np.zeros(len(y)), -np.eye(len(y))
        value, gradient, hessian = self.likelihood(x)
        hessian = J.T @ hessian @ J
        return value, J.T @ gradient, hessian if bend is None else hessian + bend(gradient)

    def _along(self, hessian):
        """d(others)/d(y_j) along the profile."""
        inner, cross = hessian[np.ix_(self.others, self.others)], hessian[self.others, self.j]
        return -least_squares(inner, cross)

    def end(self, sign, target, low, high) -> float:
        """Where zeta is sign x target; the parameter's own bound where it does not get there."""
        bound = high if sign > 0 else low
        edge = bound * (1 - _EDGE) if abs(bound) == 1 else bound
        at, others, along = self.y[self.j], self.y[self.others], self.along
        if sign * (at - edge) >= 0:
            return float(bound)
        v = at + sign * target * self.se
        inside, outside, passed = at, edge, False
        for _ in range(_MOST_MAXIMA):
            if sign * (v - edge) >= 0:
                v = edge
            held = self._maximum(v, others + along * (v - at))
            zeta = sign * math.sqrt(max(2 * (self.best - held.value), 0.0))
            if abs(zeta - sign * target) <= _TOLERANCE * target:
                self.ends.append((held, True))
                return float(v)
            if abs(zeta) >= target:
                outside, passed = v, True
            elif v == edge:
                self.ends.append((held, False))
                return float(bound)
            else:
                inside = v
            at, others, along = v, held.y[self.others], self._along(held.hessian)
            slope = -held.gradient[self.j] / zeta if zeta else 0.0
            v = at + (sign * target - zeta) / slope if slope > 0 else sign * math.inf
            if sign * (v - inside) <= 0 or (passed and sign * (v - outside) >= 0):
                v = 0.5 * (inside + outside) if math.isfinite(outside) else math.inf
            if math.isinf(v) and math.isinf(edge):
                v = inside + 2 * ((inside - self.y[self.j]) or sign * self.se)
        return math.nan

    def moved(self, finer, target) -> float:
        """Largest share of its distance from the estimate by which a finer likelihood moves an end, to first order.

        At a maximum over the others, L moves by its change at a point that is held; infinite where a bound, or an end
        that the search did not find, may be another.
        """
        away = finer(self.x)[0] - self.best
        if not math.isfinite(away):
            return math.inf
        share = 0.0
        for held, dropped in self.ends:
            there = finer(self.mapping(held.y)[0])[0]
            distance = abs(held.y[self.j] - self.y[self.j])
            rate = abs(held.gradient[self.j]) * distance
            if not dropped:
                share = max(share, math.inf if 2 * (self.best + away - there) >= target**2 else 0.0)
            elif not math.isfinite(there) or rate == 0:
                share = math.inf
            else:
                share = max(share, abs(there - held.value - away) / rate)
        return share

    def _maximum(self, v, start) -> _Held:
        y, others = self.y.copy(), self.others
        y[self.j], y[others] = v, start
        if v == 0 and self.column:
            y[self.column] = 0.0
            others = np.setdiff1d(others, self.column)

        def evaluate(part):
            y[others] = part
            value, gradient, hessian = self._at(y)
            return value, gradient[others], hessian[np.ix_(others, others)]

        y[others] = maximise(evaluate, y[others], tol=1e-10, log_coordinates=self.mapping.even[others]).x
        value, gradient, hessian = self._at(y)
        self.higher = max(self.higher, value - self.best)
        return _Held(y, value, gradient, hessian)
