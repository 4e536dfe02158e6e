"""Maximise very many marginal likelihoods at once: start, boundary and number of nodes of every lane.

What `optimise.marginal_fit` does for one fit, in the same coordinates and by the same rules, for all lanes of a
`Batch` together. Lanes with several effects a group that end near a boundary, and lanes that do not get to an end,
are fitted again one by one, by that very code.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.batch import Batch
from jaxglmm.errors import ConvergenceError, DataError
from jaxglmm.objectives.evaluate_many import evaluate_glm_many, evaluate_many, information_many
from jaxglmm.optimise.batch_newton import BatchResult, maximise_many
from jaxglmm.optimise.marginal_fit import (
    BOUNDED_LINKS,
    LARGEST_SD,
    LITTLE,
    NODE_LADDER,
    NOTHING,
    base_factor,
    check_separation,
    fit_glm,
    fit_marginal,
    padded_nodes,
)


# Lanes that are evaluated together: as fewer remain they move to smaller arrays, one program for each size.
CAPACITIES = (8, 32, 128, 512, 2048)
# A linear predictor of this size may mean a perfect prediction (`check_separation` decides).
_LARGE_ETA = 12.0


@dataclass
class BatchSolution:
    """Optima in the designs' coordinates.

    Attributes
    ----------
    psi : (B, m)
        (beta, free entries of Lambda, log dispersion).
    free : bool (B, m)
        Which were estimated and are not on the boundary.
    hessian : (B, m, m)
        Exact, in psi.
    value : (B,)
    decrement : (B,)
    evaluations : int (B,)
    n_agq : int (B,)
        Nodes per effect; 0 without random effects.
    singular : bool (B,)
    score : (B,)
        Derivative of the value in the variance at zero; NaN unless there is one effect a group.
    reasons : list of str or None
        Why a fit failed; None where it did not.
    """

    psi: np.ndarray
    free: np.ndarray
    hessian: np.ndarray
    value: np.ndarray
    decrement: np.ndarray
    evaluations: np.ndarray
    n_agq: np.ndarray
    singular: np.ndarray
    score: np.ndarray
    reasons: list


def fit_lanes(
    family, batch: Batch, *, intercept: int | None, names, n_agq: int = 1, auto: bool = False, tol: float = 1e-12,
    max_iterations: int = 100,
) -> BatchSolution:  # fmt: skip
    """Fit every lane; at most `CAPACITIES[-1]` of them. Needs x64.

    Parameters
    ----------
    n_agq : int
        Nodes per effect; 1 is Laplace.
    auto : bool
        Climb `NODE_LADDER` in each lane until more nodes make no difference there.
    """
    fitter = _Fitter(family, batch, intercept, names, tol, max_iterations)
    fitter.fit_glm()
    if fitter.S:
        fitter.fit_marginal(n_agq, auto)
        fitter.settle()
        fitter.check_growth()
    fitter.finish(n_agq, auto)
    return fitter.out


class _Lanes:
    """Evaluations of some lanes, on arrays that shrink with their number, with warm-started modes."""

    def __init__(self, family, batch: Batch):
        self.family, self.B = family, batch.size
        self.shared, self.own = jax.device_put(batch.shared), jax.device_put(batch.own)
        design = batch.lane(0)
        self.S, self.slots = (design.terms[0].z.shape if design.terms else (0, 0))
        self.modes = jnp.zeros((self.B, self.S, self.slots))
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
        points = self._points(which, psi)
        *found, self.part_modes = evaluate_many(self.family, self.shared, self.part, nodes, points, self.part_modes)
        return [np.asarray(v)[self.place[which]] for v in found]

    def glm(self, which, psi):
        """Without random effects, which the designs do not have."""
        points = self._points(which, psi)
        found = evaluate_glm_many(self.family, self.shared, self.part, points)
        return [np.asarray(v)[self.place[which]] for v in found]

    def information(self, psi):
        """Of all lanes."""
        which = np.arange(self.B)
        points = self._points(which, psi)
        found = information_many(self.family, self.shared, self.part, points)
        return [np.asarray(v)[self.place[which]] for v in found]


@jax.jit
def _take(arrays, which):
    return jax.tree.map(lambda v: jnp.take(v, which, axis=0, mode="clip"), arrays)


@jax.jit
def _put(array, which, values):
    return array.at[which].set(values, mode="drop")


class _Fitter:
    """The steps of a fit, for all lanes that have not failed."""

    def __init__(self, family, batch, intercept, names, tol, max_iterations):
        self.family, self.batch, self.intercept, self.names = family, batch, intercept, names
        self.tol, self.max_iterations = tol, max_iterations
        self.lanes = _Lanes(family, batch)
        design = batch.lane(0)
        self.B, self.p, self.S = batch.size, design.X.shape[1], self.lanes.S
        self.covariance = design.terms[0].covariance if self.S else None
        diagonal = self.covariance.diagonal if self.covariance else np.zeros(0, bool)
        self.part = slice(self.p, self.p + len(diagonal))
        m = self.p + len(diagonal) + 1
        self.even = np.concatenate([np.zeros(self.p, bool), diagonal, [False]])
        self.all_free = np.ones(m, bool)
        self.all_free[-1] = family.dispersion_name is not None
        self.jacobian = np.broadcast_to(np.eye(m), (self.B, m, m)).copy()
        self.out = BatchSolution(
            psi=np.full((self.B, m), np.nan), free=np.tile(self.all_free, (self.B, 1)),
            hessian=np.full((self.B, m, m), np.nan), value=np.full(self.B, np.nan),
            decrement=np.full(self.B, np.nan), evaluations=self.lanes.evaluations,
            n_agq=np.zeros(self.B, int), singular=np.zeros(self.B, bool), score=np.full(self.B, np.nan),
            reasons=[None] * self.B,
        )  # fmt: skip
        self.again, self.converged = np.zeros(self.B, bool), np.zeros(self.B, bool)

    def open(self) -> np.ndarray:
        """Lanes that have neither failed nor been put off."""
        return np.flatnonzero([r is None for r in self.out.reasons] & ~self.again)

    # --- Without random effects ----------------------------------------------------------------------------

    def fit_glm(self):
        x0 = np.zeros((self.B, len(self.even)))
        for i in range(self.B):
            self._start(self.batch.lane(i), x0[i])
        free = self.all_free & ~np.isin(np.arange(len(self.even)), np.arange(len(self.even))[self.part])
        if self.S:
            nodes = padded_nodes(1, self.S)
            evaluate = lambda which, x: self.lanes(which, x, nodes)
        else:
            evaluate = self.lanes.glm
        result = maximise_many(evaluate, x0, free=free, even=np.zeros_like(self.even), tol=self.tol)
        self.glm = result
        self.store(np.arange(self.B), result, np.tile(free, (self.B, 1)))
        at = np.concatenate([result.x[:, : self.p], result.x[:, -1:]], 1)
        self.level, self.rows, largest = self.lanes.information(at)
        for i in np.flatnonzero(~(largest < _LARGE_ETA)):
            one = SimpleNamespace(x=result.x[i], step=result.step[i])
            self.attempt(i, lambda i=i, one=one: check_separation(self.batch.lane(i), one, self.names, self.intercept))
        if not self.S:
            self.again |= ~result.converged
        elif self.S == 1:
            # Half the second derivative in tau at zero is the derivative in the variance.
            self.out.score = 0.5 * result.hessian[:, self.p, self.p]

    def _start(self, design, x):
        eta, x[-1] = self.family.start(design.y, design.weights)
        if self.intercept is not None:
            x[self.intercept] = eta - np.average(design.offset, weights=design.weights)
        elif self.family.positive_eta and self.p:
            x[: self.p] = np.linalg.lstsq(design.X, np.full(len(design.y), eta), rcond=None)[0]

    def attempt(self, i, check):
        """Keep why a check refuses a lane."""
        try:
            return check()
        except (ConvergenceError, DataError) as error:
            self.out.reasons[i] = str(error)

    # --- With random effects -------------------------------------------------------------------------------

    def fit_marginal(self, n_agq, auto):
        a = self.open()
        if self.S == 1:
            with np.errstate(invalid="ignore", divide="ignore"):
                base = np.sqrt(self.rows / self.level[:, 0])
                first = np.sqrt(np.maximum(2 * self.out.score * self.groups(), 0.0)) / self.level[:, 0]
            self.jacobian[:, self.p, self.p] = base
            factor = np.clip(first / base, 0.1, 1.0)[:, None]
        else:
            rows, columns = self.covariance.entries
            for i in a:
                base = base_factor(self.batch.lane(i), (None, None, self.level[i]))
                block = base[np.ix_(rows, rows)] * (columns[:, None] == columns[None, :])
                self.jacobian[i, self.part, self.part] = block
            factor = np.tile(self.covariance.raw(np.eye(self.S)), (self.B, 1))
        self.x = self.glm.x.copy()
        self.x[:, self.part] = factor
        if not auto:
            self.climb(a, n_agq)
            return
        self.climb(a, 1, tol=1e-4)
        ladder = NODE_LADDER[self.S]
        for here, above in zip(ladder, (*ladder[1:], None), strict=True):
            self.climb(a, here)
            if above is None:
                break
            a = a[~self.agrees(a, padded_nodes(above, self.S))]
            if not len(a):
                break

    def groups(self):
        """Groups of each lane."""
        head = self.batch.own.terms[0].index.head
        head = self.batch.shared.terms[0].index.head[None] if head is None else head
        return np.sum(np.asarray(head), axis=-1)

    def at(self, which, x, nodes):
        """Values, gradients and Hessians in x, with psi = J x."""
        J = self.jacobian[which]
        value, gradient, hessian = self.lanes(which, np.einsum("bij,bj->bi", J, x), nodes)
        turned = np.swapaxes(J, 1, 2)
        return value, np.einsum("bij,bj->bi", turned, gradient), turned @ hessian @ J

    def climb(self, which, n_agq, tol=None):
        """From x on, with this number of nodes."""
        if not len(which):
            return
        nodes = padded_nodes(n_agq, self.S)
        result = maximise_many(
            lambda k, x: self.at(which[k], x, nodes), self.x[which], free=self.all_free, even=self.even,
            tol=tol or self.tol, max_iterations=self.max_iterations,
        )  # fmt: skip
        self.x[which] = result.x
        self.out.n_agq[which] = n_agq
        self.store(which, result, np.tile(self.all_free, (len(which), 1)))

    def store(self, which, result: BatchResult, free):
        J = self.jacobian[which]
        back = np.linalg.inv(J)
        self.out.psi[which] = np.einsum("bij,bj->bi", J, result.x)
        self.out.hessian[which] = np.swapaxes(back, 1, 2) @ result.hessian @ back
        self.out.value[which], self.out.decrement[which] = result.value, np.maximum(result.decrement, 0.0)
        self.out.free[which] = free
        self.converged[which] = result.converged

    def agrees(self, which, nodes):
        """As in `marginal_fit`: more nodes change neither the value nor any parameter to speak of."""
        x = self.x[which]
        value, gradient, hessian = self.at(which, x, nodes)
        kept = self.all_free & ~(self.even & (np.abs(x) < NOTHING))
        both = kept[:, :, None] & kept[:, None, :]
        information = np.where(both, -hessian, 0.0) + np.eye(x.shape[1]) * ~kept[:, :, None]
        inverse = np.linalg.pinv(information, hermitian=True)
        step = np.einsum("bij,bj->bi", inverse, np.where(kept, gradient, 0.0))
        errors = np.sqrt(np.maximum(np.einsum("bii->bi", inverse), 1e-300))
        largest = np.max(np.abs(step) / errors, axis=1)
        return (np.abs(value - self.out.value[which]) < 1e-3) & (largest < 0.01)

    def settle(self):
        """Hold at zero what is as good there, and put off what takes more than that."""
        a = self.open()
        value, glm = self.out.value[a], self.glm.value[a]
        with np.errstate(invalid="ignore"):
            better = glm > value + 1e-9 * np.abs(glm)
        if self.S > 1:
            size = np.abs(self.x[a][:, self.part][:, self.covariance.diagonal])
            self.again[a] = ~self.converged[a] | (size < LITTLE).any(1) | better | self._turned(a)
            return
        tau = self.x[a, self.p]
        as_good = (np.abs(tau) < NOTHING) & (glm >= value - 1e-10 * (1 + np.abs(value)))
        zero = self.glm.converged[a] & (as_good | better)
        self.again[a] = ~self.converged[a] & ~zero
        self.out.psi[a, self.p] = np.abs(self.out.psi[a, self.p])
        z = a[zero]
        self.out.singular[z] = True
        n_agq = self.out.n_agq[z]
        part = BatchResult(**{name: array[z] for name, array in vars(self.glm).items()})
        self.jacobian[z] = np.eye(len(self.even))
        free = np.tile(self.all_free, (len(z), 1))
        free[:, self.p] = False
        self.store(z, part, free)
        self.out.n_agq[z] = n_agq

    def _turned(self, a):
        """Lanes whose factor has a negative diagonal."""
        return (self.x[a][:, self.part][:, self.covariance.diagonal] < 0).any(1)

    def check_growth(self):
        """Random effects of a size beyond any that the link can show are fitted again, for the reason."""
        if self.S == 1 and self.family.link in BOUNDED_LINKS:
            a = self.open()
            # z is scaled to unit mean square.
            self.again[a] |= ~(np.abs(self.out.psi[a, self.p]) < LARGEST_SD)

    def finish(self, n_agq, auto):
        """Fit one by one what the batch could not."""
        for i in np.flatnonzero(self.again):
            if self.out.reasons[i] is None:
                self.attempt(i, lambda i=i: self._fit_alone(i, n_agq, auto))

    def _fit_alone(self, i, n_agq, auto):
        design = jax.device_put(self.batch.lane(i))
        out = self.out
        glm, groups = fit_glm(self.family, design, self.intercept, names=self.names, tol=self.tol)
        if not self.S:
            psi, free, hessian, value = glm.x, self.all_free, glm.hessian, glm.value
            converged, reason, decrement, evaluations = glm.converged, glm.reason, glm.decrement, glm.iterations + 1
        else:
            solution = fit_marginal(
                self.family, design, glm, groups, n_agq=n_agq, auto=auto, tol=self.tol,
                max_iterations=self.max_iterations,
            )  # fmt: skip
            told = solution.convergence
            psi, free, hessian, value = solution.psi, solution.free, solution.hessian, solution.value
            converged, reason, decrement, evaluations = told.converged, told.reason, told.decrement, told.iterations
            out.n_agq[i], out.singular[i] = told.n_agq or 0, told.singular
        out.psi[i], out.free[i], out.hessian[i], out.value[i] = psi, free, hessian, value
        out.decrement[i] = max(decrement, 0.0)
        out.evaluations[i] += evaluations
        if not converged:
            raise ConvergenceError(f"the optimiser stopped ({reason}) with a Newton decrement of {decrement:.2g}")
