"""Evaluations of the fits of a batch at points of their own: by the native library, or by compiled programs.

Both kinds have the same face: `B`, `p`, `S`, `covariance`, `evaluations` (B,), and the methods below.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.batch import Batch
from jaxglmm.design.design import Design, make_design
from jaxglmm.model.covariance import Covariance
from jaxglmm.objectives.evaluate_many import GroupSpread, evaluate_glm_many, evaluate_many, group_spread_many
from jaxglmm.ops import fused, lane_pass
from jaxglmm.ops.lane_pass import LaneRows
from jaxglmm.optimise.batch_newton import BatchResult
from jaxglmm.optimise.dispersion import DispersionLimit, dispersion_limit
from jaxglmm.optimise.glm_fit import mean_offset


# Lanes that programs evaluate together: as fewer remain they move to smaller arrays, one program for each size.
CAPACITIES = (8, 64, 512)


class RowLanes:
    """By the native library, which `ops.lane_pass.covers` must say of the fits.

    Parameters
    ----------
    family : AbstractFamily
    rows : LaneRows
    covariance : Covariance
    constant : (B,)
        The part of the log-likelihood that depends on the data alone.
    """

    def __init__(self, family, rows: LaneRows, covariance: Covariance, constant: np.ndarray):
        self.family, self.rows, self.covariance, self.constant = family, rows, covariance, constant
        self.B, self.p, self.S = len(rows.design_row), rows.X.shape[1], rows.effects
        self.modes = np.zeros((self.B, rows.groups, max(self.S, 1)))
        self.evaluations = np.zeros(self.B, int)
        self._kept = fused.places(covariance, self.p)
        self._width = self.p + self.S * (self.S + 1) // 2 + 1
        self._spread = np.full((self.B, 3 * self.S + 1), np.nan)
        self._spread_at = np.full((self.B, self.p), np.nan)

    def __call__(self, which, psi, nodes):
        """Value (k,), gradient (k, m), Hessian (k, m, m) of the fits `which` at psi (k, m)."""
        self.evaluations[which] += 1
        whole = len(self._kept) == self._width
        if not whole:
            full = np.zeros((len(which), self._width))
            full[:, self._kept] = psi
            psi = full
        value, gradient, hessian = lane_pass.marginal(self.family, self.rows, nodes, which, psi, self.modes)
        if not whole:
            gradient, hessian = gradient[:, self._kept], hessian[:, self._kept[:, None], self._kept]
        return value + self.constant[which], gradient, hessian

    def glm(self, which, psi):
        """Without random effects, whether the designs have them or not."""
        self.evaluations[which] += 1
        value, gradient, hessian, *_ = lane_pass.fixed(self.family, self.rows, which, psi)
        return value + self.constant[which], gradient, hessian

    def climb(self, which, x, J, nodes, *, even, tol, max_iterations, nothing) -> BatchResult:
        """Newton's method from x (k, m), psi = J x, each fit at its own pace; `maximise_many` goes on from there."""
        triangle = np.zeros((len(which), self._width - self.p - 1, x.shape[1] - self.p - 1))
        triangle[:, self._kept[self.p : -1] - self.p] = J[:, self.p : -1, self.p : -1]
        return self._climb(which, x, even, tol, max_iterations, nodes=nodes, block=triangle, nothing=nothing)

    def climb_glm(self, which, x, *, tol, max_iterations) -> BatchResult:
        """The same without random effects."""
        return self._climb(which, x, np.zeros(x.shape[1], bool), tol, max_iterations)

    def _climb(self, which, x, even, tol, max_iterations, nodes=None, block=None, nothing=0.0):
        # These families have no dispersion, the last unknown.
        found = lane_pass.climb(
            self.family, self.rows, which, x[:, :-1], nodes=nodes, modes=None if nodes is None else self.modes,
            block=block, even=even[:-1], tol=tol, iterations=max_iterations, nothing=nothing,
        )  # fmt: skip
        self.evaluations[which] += found.evaluations
        if nodes is None:
            self._spread[which], self._spread_at[which] = found.spread, found.x
        wider = lambda v: np.concatenate([v, np.zeros((len(v), 1))], 1)
        hessian = np.zeros((len(x), x.shape[1], x.shape[1]))
        hessian[:, :-1, :-1] = found.hessian
        x = np.concatenate([found.x, x[:, -1:]], 1)
        return BatchResult(
            x, found.value + self.constant[which], wider(found.gradient), hessian, found.decrement, wider(found.move),
            np.zeros(len(x), bool), found.reason,
        )  # fmt: skip

    def spread(self, psi) -> GroupSpread:
        """Of all lanes."""
        new = np.flatnonzero((self._spread_at != psi[:, :-1]).any(1))
        if len(new):
            self._spread[new] = np.column_stack(lane_pass.fixed(self.family, self.rows, new, psi[new])[3:])
        score, spread, level, largest = np.split(self._spread, self.S * np.arange(1, 4), axis=1)
        weights = self.rows.weights
        live = self.rows.totals(None if weights is None else (weights > 0).astype(float))
        return GroupSpread(score, spread, level, live, largest[:, 0])

    def start(self):
        """Linear predictors (B,) and log dispersions (B,) to begin with, of fits with no column but an intercept."""
        weights, offset = self.rows.totals(self.rows.weights), self.rows.offset
        pairs, of_fit = np.unique(np.stack([weights, self.rows.response_totals()]), axis=1, return_inverse=True)
        # Families without a dispersion look at the total weight and at the mean alone.
        start = self.family.start
        eta = np.array([start(np.array([y / w]), np.array([w]))[0] for w, y in pairs.T])[of_fit.ravel()]
        if offset is not None:
            own = 1.0 if self.rows.weights is None else self.rows.weights
            shift = self.rows.totals(offset * own) / weights
            if self.family.link == "log":  # as `mean_offset`
                with np.errstate(divide="ignore"):
                    exact = offset.max() + np.log(self.rows.totals(np.exp(offset - offset.max()) * own) / weights)
                shift = np.where(np.isfinite(exact), exact, shift)
            eta = eta - shift
        return eta, np.zeros(self.B)

    def design(self, i: int) -> Design:
        """The design of one fit."""
        rows, (own, response) = self.rows, self.rows.place(i)
        sizes = np.diff(rows.begin[min(i, len(rows.begin) - 1)])
        groups = {}
        if self.S:
            codes = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
            z = None if rows.z is None else rows.z[:, own]
            groups = {"codes": codes, "n_groups": int((sizes > 0).sum()), "z": z, "blocks": self.covariance.blocks}
        part = lambda values: None if values is None else values[own]
        return make_design(
            rows.y[response], rows.X[own], weights=part(rows.weights), offset=part(rows.offset),
            constant=self.constant[i], **groups,
        )[0]  # fmt: skip


class DesignLanes:
    """By compiled programs, on arrays that shrink with the number of fits that are left.

    Parameters
    ----------
    family : AbstractFamily
    batch : Batch
        At most `CAPACITIES[-1]` designs.
    """

    def __init__(self, family, batch: Batch):
        self.family, self.batch, self.B = family, batch, batch.size
        self.shared, self.own = jax.device_put(batch.shared), jax.device_put(batch.own)
        design = batch.lane(0)
        self.p, (self.S, slots) = design.X.shape[1], design.terms[0].z.shape if design.terms else (0, 0)
        self.covariance = design.terms[0].covariance if self.S else Covariance(())
        self.modes = jnp.zeros((self.B, self.S, slots))
        self.evaluations = np.zeros(self.B, int)
        self._hold(np.arange(self.B))

    def _hold(self, which):
        """Move to arrays of these lanes alone."""
        capacity = next(c for c in CAPACITIES if c >= len(which))
        # Beyond the last lane: clipped when it is read, dropped when it is written.
        self.held = np.concatenate([which, np.full(capacity - len(which), self.B)])
        self.place = np.full(self.B, -1)
        self.place[which] = np.arange(len(which))
        self.part, self.part_modes = _take((self.own, self.modes), jnp.asarray(self.held))

    def _points(self, which, psi):
        """psi in the order of what is held, NaN elsewhere."""
        smaller = len(which) <= len(self.held) // 4 and len(self.held) > CAPACITIES[0]
        if smaller or (self.place[which] < 0).any():
            self.modes = _put(self.modes, jnp.asarray(self.held), self.part_modes)
            self._hold(which)
        out = np.full((len(self.held), psi.shape[1]), np.nan)
        out[self.place[which]] = psi
        self.evaluations[which] += 1
        return jnp.asarray(out)

    def __call__(self, which, psi, nodes):
        """Value (k,), gradient (k, m), Hessian (k, m, m) of the fits `which` at psi (k, m)."""
        points = self._points(which, psi)
        *found, self.part_modes = evaluate_many(self.family, self.shared, self.part, nodes, points, self.part_modes)
        return [np.asarray(v)[self.place[which]] for v in found]

    def glm(self, which, psi):
        """Without random effects, whether the designs have them or not."""
        points = self._points(which, psi)
        found = evaluate_glm_many(self.family, self.shared, self.part, points)
        return [np.asarray(v)[self.place[which]] for v in found]

    def spread(self, psi) -> GroupSpread:
        """Of all lanes."""
        points = self._points(np.arange(self.B), psi)
        found = group_spread_many(self.family, self.shared, self.part, points)
        return jax.tree.map(lambda v: np.asarray(v)[self.place], found)

    def start(self):
        """Linear predictors (B,) and log dispersions (B,) to begin with, of fits with no column but an intercept."""
        y, weights, offset = (self.batch.stacked(name) for name in ("y", "weights", "offset"))
        start = self.family.start  # looking up a method of an equinox module takes longer than this one does
        eta, log_phi = np.array([start(*pair) for pair in zip(y, weights, strict=True)]).T
        shifts = [mean_offset(self.family, *pair) for pair in zip(y, offset, weights, strict=True)]
        return eta - np.array(shifts), log_phi

    def dispersion_limits(self) -> list[DispersionLimit | None]:
        """Of each lane."""
        pairs = zip(self.batch.stacked("y"), self.batch.stacked("weights"), strict=True)
        return [dispersion_limit(self.family, *pair) for pair in pairs]

    def design(self, i: int) -> Design:
        """The design of one fit."""
        return self.batch.lane(i)

    def climb(self, *_, **__):
        """Each step is taken for all lanes: nothing is begun here."""

    climb_glm = climb


@jax.jit
def _take(arrays, which):
    return jax.tree.map(lambda v: jnp.take(v, which, axis=0, mode="clip"), arrays)


@jax.jit
def _put(array, which, values):
    return array.at[which].set(values, mode="drop")
