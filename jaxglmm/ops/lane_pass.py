"""Many fits of few rows each, evaluated by the native library with a lane for each fit.

Host code on NumPy arrays: nothing is traced, and nothing compiled, whatever the sizes are. What is computed is that of
`objectives.evaluate` and `objectives.glm`.
"""

import ctypes
from dataclasses import dataclass

import numpy as np

from jaxglmm.ops import fused, native
from jaxglmm.ops.memory import need


FAMILIES = (("binomial", "logit"), ("binomial", "probit"), ("binomial", "cloglog"), ("poisson", "log"))
# Effects a group, columns, and, where there are nodes, rows of a group: a matrix of pairs of rows is kept.
MOST_EFFECTS, MOST_COLUMNS, MOST_PAIRED_ROWS = 2, 64, 64


@dataclass(frozen=True)
class LaneRows:
    """Rows of B fits, one fit after the other, and group after group in each.

    Attributes
    ----------
    X : (n, p)
    y : (N,)
    weights, offset : (n,) or None
        None for ones, and for zeros.
    z : (S, n) or None
        None for ones.
    effects : int
        S.
    design_row, response_row : int64 (B,)
        Where a fit's rows begin in X, weights, offset and z, and in y.
    begin : int32 (B, G + 1), or (1, G + 1) for all fits
        Where its groups begin, counted from there; groups that it has not are empty.
    shared : bool
        All fits have the same rows of the design.
    threads : int
        That evaluate.
    """

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    offset: np.ndarray | None
    z: np.ndarray | None
    effects: int
    design_row: np.ndarray
    response_row: np.ndarray
    begin: np.ndarray
    shared: bool
    threads: int

    def __post_init__(self):
        """ValueError where arrays do not fit together, or rows of a fit are not there."""
        n, B, begin = len(self.X), len(self.design_row), self.begin
        need("X", self.X, n, None)
        need("y", self.y, None)
        need("response_row", self.response_row, B)
        need("weights", self.weights, n)
        need("offset", self.offset, n)
        need("z", self.z, self.effects, n)
        need("begin", begin, 1 if len(begin) == 1 else B, None)
        falls = begin[:, 0].any() or (begin[:, 1:] < begin[:, :-1]).any()
        ends = begin[:, -1].astype(np.int64)
        outside = (self.design_row < 0) | (self.design_row + ends > n)
        outside |= (self.response_row < 0) | (self.response_row + ends > len(self.y))
        if falls or outside.any():
            raise ValueError(f"fits have rows that are not there, of {n:,} in the design and {len(self.y):,} responses")

    @property
    def groups(self) -> int:
        return self.begin.shape[1] - 1

    def totals(self, values: np.ndarray | None) -> np.ndarray:
        """Sums (B,) of values (n,) of the design's rows, or of ones, over the rows of each fit."""
        if values is None:
            return np.broadcast_to(self.begin[:, -1].astype(float), len(self.design_row))
        if self.shared:
            return np.full(len(self.design_row), values.sum())
        return np.add.reduceat(values, self.design_row)

    def response_totals(self) -> np.ndarray:
        """Weighted sums (B,) of each fit's responses."""
        if self.shared:
            Y = self.y.reshape(len(self.response_row), -1)
            return Y.sum(1) if self.weights is None else Y @ self.weights
        return np.add.reduceat(self.y if self.weights is None else self.y * self.weights, self.response_row)

    def place(self, i: int) -> tuple[slice, slice]:
        """Rows of one fit in the design, and in the responses."""
        begin = self.begin[min(i, len(self.begin) - 1)]
        first, response, n = int(self.design_row[i]), int(self.response_row[i]), int(begin[-1])
        return slice(first, first + n), slice(response, response + n)


def covers(family, n_effects: int, columns: int, largest: int) -> bool:
    """Whether the native library has fits like these, and JAX computes on the CPU.

    Parameters
    ----------
    largest : int
        Rows of the largest group. With effects there are quadrature nodes, if only to look at Laplace's approximation.
    """
    return (
        (family.name, family.link) in FAMILIES
        and n_effects <= MOST_EFFECTS
        and columns <= MOST_COLUMNS
        and (n_effects == 0 or largest <= MOST_PAIRED_ROWS)
        and fused.default_platform() == "cpu"
        and native.use_native()
    )


def marginal(family, rows: LaneRows, nodes, which, psi, modes):
    """Value (k,), gradient (k, m) and exact Hessian (k, m, m) of some fits.

    Parameters
    ----------
    nodes : Nodes
    which : int64 (k,)
    psi : (k, m)
        (beta, the lower triangle of Lambda by columns, log dispersion).
    modes : (B, G, S)
        Where the search for the modes begins, and where it has ended.
    """
    points, log_weights = np.ascontiguousarray(nodes.points), np.ascontiguousarray(nodes.log_weights)
    value, gradient, hessian, _ = _call(family, rows, which, psi, points, log_weights, int(nodes.count), modes, 0)
    return value, gradient, hessian


def fixed(family, rows: LaneRows, which, psi):
    """Without random effects, psi (k, p + 1): value, gradient, Hessian; score, spread, level (k, S), largest |eta|."""
    *found, spread = _call(family, rows, which, psi, None, None, 1, None, 3 * rows.effects + 1)
    S = rows.effects
    assert spread is not None  # as asked for
    return (*found, spread[:, :S], spread[:, S : 2 * S], spread[:, 2 * S : 3 * S], spread[:, -1])


_NUMBERS = ("begin_stride", "rows", "columns", "effects", "groups", "shared", "family", "fits", "stride", "nodes")


class _Problem(ctypes.Structure):
    """LaneProblem of kernels/cpu/lane_pass.h."""

    _fields_ = tuple(
        (name, ctypes.c_int64 if name in _NUMBERS else ctypes.c_void_p)
        for name in (
            "X", "y", "weight", "offset", "z", "design_row", "response_row", "begin", "begin_stride", "rows", "columns",
            "effects", "groups", "shared", "family", "which", "fits", "psi", "points", "log_weights", "stride", "nodes",
            "modes", "value", "gradient", "hessian", "spread",
        )
    )  # fmt: skip


def _call(family, rows: LaneRows, which, psi, points, log_weights, nodes, modes, spread):
    which, psi = np.ascontiguousarray(which, np.int64), np.ascontiguousarray(psi, float)
    triangle = 0 if modes is None else rows.effects * (rows.effects + 1) // 2
    need("psi", psi, len(which), rows.X.shape[1] + triangle + 1)
    k, m = psi.shape
    value, gradient, hessian = np.empty(k), np.empty((k, m)), np.empty((k, m, m))
    told = np.empty((k, spread)) if spread else None
    problem = _problem(family, rows, which, points, log_weights, nodes, modes)
    problem.which, problem.fits, problem.psi = _at(which), k, _at(psi)
    problem.value, problem.gradient, problem.hessian, problem.spread = map(_at, (value, gradient, hessian, told))
    if native.library().jaxglmm_lanes(ctypes.byref(problem), ctypes.c_int64(rows.threads)):
        raise MemoryError(f"no memory for the evaluation of {k:,} fits")
    return value, gradient, hessian, told


def _at(array):
    return None if array is None else array.ctypes.data


def _problem(family, rows: LaneRows, which, points, log_weights, nodes, modes) -> _Problem:
    """Without the fits' numbers, parameters and results. ValueError where what there is does not fit."""
    B = len(rows.design_row)
    if len(which) and not 0 <= which.min() <= which.max() < B:
        raise ValueError(f"fits must lie in 0..{B - 1}; found {which.min()}..{which.max()}")
    need("modes", modes, B, rows.groups, rows.effects)
    need("points", points, rows.effects, None)
    need("log_weights", log_weights, None)
    if points is not None and not 1 <= nodes <= min(points.shape[1], len(log_weights)):
        raise ValueError(f"{nodes} nodes of {points.shape[1]} points and {len(log_weights)} weights")
    return _Problem(
        X=_at(rows.X), y=_at(rows.y), weight=_at(rows.weights), offset=_at(rows.offset), z=_at(rows.z),
        design_row=_at(rows.design_row), response_row=_at(rows.response_row), begin=_at(rows.begin),
        begin_stride=0 if len(rows.begin) == 1 else rows.begin.shape[1], rows=len(rows.X), columns=rows.X.shape[1],
        effects=rows.effects, groups=rows.groups, shared=rows.shared, family=fused.FAMILIES[family.name, family.link],
        points=_at(points), log_weights=_at(log_weights), stride=0 if points is None else points.shape[1], nodes=nodes,
        modes=_at(modes),
    )  # fmt: skip


@dataclass
class Climbed:
    """Where the native loop left each fit: as `optimise.batch_newton.BatchResult`, in the unknowns x (k, m).

    Attributes
    ----------
    x, gradient, move : (k, m)
    value, decrement : (k,)
    hessian : (k, m, m)
    reason, evaluations : int (k,)
        Index into `batch_newton.REASONS`; one more where that has to go on.
    spread : (k, 3 S + 1)
        Without random effects: score, spread, level and largest |eta| at x.
    """

    x: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    decrement: np.ndarray
    move: np.ndarray
    reason: np.ndarray
    evaluations: np.ndarray
    spread: np.ndarray


class _Climb(ctypes.Structure):
    """LaneClimb of kernels/cpu/lane_climb.h."""

    _fields_ = (
        ("lanes", _Problem),
        *((name, ctypes.c_void_p if name in ("which", "block", "even") else ctypes.c_int64)
          for name in ("which", "fits", "entries", "triangle", "block", "unknowns", "even")),
        ("tol", ctypes.c_double), ("iterations", ctypes.c_int64), ("watched", ctypes.c_int64),
        ("nothing", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "value", "gradient", "hessian", "decrement", "move", "reason",
                                               "evaluations", "spread")),
    )  # fmt: skip


def climb(
    family, rows: LaneRows, which, x, *, nodes=None, modes=None, block=None, even, tol: float, iterations: int,
    nothing: float = 0.0,
) -> Climbed:  # fmt: skip
    """Newton's method in the fits `which`, but for its hard case.

    Parameters
    ----------
    x : (k, m)
        (beta, entries e): where the lower triangle of Lambda, by columns, is block e.
    nodes, modes
        As in `marginal`; None without random effects.
    block : (k, triangle, entries), optional
    even : bool (m,)
        Parameters of which the functions are even, that step in the logarithm of their size.
    tol, iterations
        Largest decrement, evaluations after the first.
    nothing : float
        Where it is positive, a fit stops when the size of its last unknown is below it.
    """
    k, m = x.shape
    out = Climbed(
        np.array(x, float), np.empty(k), np.empty((k, m)), np.empty((k, m, m)), np.empty(k), np.empty((k, m)),
        np.empty(k, np.int64), np.empty(k, np.int64), np.full((k, 3 * rows.effects + 1), np.nan),
    )  # fmt: skip
    which, even = np.ascontiguousarray(which, np.int64), np.ascontiguousarray(even, np.uint8)
    points, log_weights, count = None, None, 1
    if nodes is not None:
        points, log_weights = np.ascontiguousarray(nodes.points), np.ascontiguousarray(nodes.log_weights)
        count = int(nodes.count)
    block = None if block is None else np.ascontiguousarray(block, float)
    p, S = rows.X.shape[1], rows.effects
    need("x", x, len(which), p if block is None else None)
    need("even", even, m)
    need("block", block, k, S * (S + 1) // 2, m - p)
    problem = _Climb(
        lanes=_problem(family, rows, which, points, log_weights, count, modes), which=_at(which), fits=k,
        entries=0 if block is None else block.shape[2], triangle=0 if block is None else block.shape[1],
        block=_at(block), unknowns=m, even=_at(even), tol=tol, iterations=iterations,
        watched=m - 1 if nothing > 0 else -1, nothing=nothing,
        **{name: _at(value) for name, value in vars(out).items() if name != "spread" or nodes is None},
    )  # fmt: skip
    if native.library().jaxglmm_lane_climb(ctypes.byref(problem), ctypes.c_int64(rows.threads)):
        raise MemoryError(f"no memory for {k:,} fits")
    return out
