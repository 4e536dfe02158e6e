"""Maximise very many marginal likelihoods at once: start, boundary and number of nodes of every lane.

What `optimise.marginal_fit` does for one fit, in the same coordinates and by the same rules, for all lanes together.
Lanes with several effects a group that end near a boundary, and lanes that do not get to an end, are fitted again one
by one, by that very code.
"""

from dataclasses import dataclass, replace

import jax
import numpy as np

from jaxglmm.errors import UNFINISHED, ConvergenceError, DataError
from jaxglmm.model.family import AT_LIMIT
from jaxglmm.optimise.batch_lanes import DesignLanes, RowLanes
from jaxglmm.optimise.batch_newton import BatchResult, maximise_many
from jaxglmm.optimise.boundary import MULTIPLES, any_promising, few_rule, profiled_many
from jaxglmm.optimise.effect_units import INFORMATION, base_factor, first_sizes
from jaxglmm.optimise.glm_fit import fit_glm
from jaxglmm.optimise.growth import BOUNDED_LINKS, LARGEST_SD
from jaxglmm.optimise.marginal_fit import LITTLE, NOTHING, fit_marginal
from jaxglmm.optimise.node_ladder import NODE_LADDER, Look, look_many, nodes_above, nothing_to_see, padded_nodes
from jaxglmm.optimise.separation import check_separation, may_diverge


# Decrement at which a fit without random effects is good for a start.
_LOOSE = 1e-3
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
    gap : (B,)
        Log-likelihood by quadrature minus Laplace's at the same parameters.
    checked_nodes : int (B,)
        Nodes per effect with which a fit was looked at; 0 where it was not.
    checked_gap, checked_move, moved : (B,)
        What they say (`optimise.node_ladder.Look`).
    warnings : list of lists of str
        Of a fit that was done alone.
    singular : bool (B,)
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
    gap: np.ndarray
    checked_nodes: np.ndarray
    checked_gap: np.ndarray
    checked_move: np.ndarray
    moved: np.ndarray
    warnings: list
    singular: np.ndarray
    reasons: list

    def keep(self, which, seen: Look):
        """What a look at some fits has shown."""
        self.checked_nodes[which] = seen.nodes
        self.checked_gap[which], self.checked_move[which], self.moved[which] = seen.gap, seen.move, seen.which

    def look(self, i: int) -> Look | None:
        """What was seen at one fit."""
        if not self.checked_nodes[i]:
            return None
        told = self.checked_gap[i], self.checked_move[i], self.moved[i]
        return Look(int(self.checked_nodes[i]), float(told[0]), float(told[1]), int(told[2]))


def fit_lanes(
    family, lanes: RowLanes | DesignLanes, *, intercept: int | None, names, n_agq: int = 1, auto: bool = False,
    tol: float = 1e-12, max_iterations: int = 100,
) -> BatchSolution:  # fmt: skip
    """Fit every lane. Needs x64.

    Parameters
    ----------
    n_agq : int
        Nodes per effect; 1 is Laplace.
    auto : bool
        Climb `NODE_LADDER` in each lane until more nodes make no difference there.
    """
    fitter = _Fitter(family, lanes, intercept, names, tol, max_iterations)
    fitter.fit_glm()
    if fitter.S:
        fitter.fit_marginal(n_agq, auto)
        fitter.settle()
        fitter.check_growth()
        fitter.look_around(n_agq)
    fitter.finish(n_agq, auto)
    fitter.check_ends()
    return fitter.out


class _Fitter:
    """The steps of a fit, for all lanes that have not failed."""

    def __init__(self, family, lanes, intercept, names, tol, max_iterations):
        self.family, self.lanes, self.intercept, self.names = family, lanes, intercept, names
        self.tol, self.max_iterations = tol, max_iterations
        self.B, self.p, self.S, self.covariance = lanes.B, lanes.p, lanes.S, lanes.covariance
        diagonal = self.covariance.diagonal
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
            n_agq=np.zeros(self.B, int), gap=np.full(self.B, np.nan), checked_nodes=np.zeros(self.B, int),
            checked_gap=np.full(self.B, np.nan), checked_move=np.full(self.B, np.nan), moved=np.full(self.B, -1),
            warnings=[[] for _ in range(self.B)], singular=np.zeros(self.B, bool),
            reasons=[None] * self.B,
        )  # fmt: skip
        self.again, self.converged = np.zeros(self.B, bool), np.zeros(self.B, bool)
        self.limits = None if family.limit is None else lanes.dispersion_limits()

    def open(self) -> np.ndarray:
        """Lanes that have neither failed nor been put off."""
        return np.flatnonzero([r is None for r in self.out.reasons] & ~self.again)

    # --- Without random effects ----------------------------------------------------------------------------

    def fit_glm(self):
        """Without random effects; loosely where that is only a start."""
        self.glm = self.climb_glm(np.arange(self.B), self._start(), _LOOSE if self.S else self.tol)
        self.groups = self.lanes.spread(self.glm.x)
        for i in np.flatnonzero(~(self.groups.largest < _LARGE_ETA)):
            self.attempt(i, lambda i=i: self.check_separation(i, self.glm.x[i, : self.p]))
        if not self.S:
            self.store(np.arange(self.B), self.glm, np.tile(self.all_free, (self.B, 1)))
            self.again |= ~self.glm.converged

    def climb_glm(self, which, x, tol) -> BatchResult:
        """In (beta, log dispersion)."""
        begun = self.lanes.climb_glm(which, x, tol=tol, max_iterations=self.max_iterations)
        free = np.append(np.ones(self.p, bool), self.all_free[-1])
        return self._maximise(self.lanes.glm, which, x, free, np.zeros(self.p + 1, bool), tol, begun)

    def _maximise(self, at, which, x, free, even, tol, begun, stop=None) -> BatchResult:
        """Maximise lanes; where a dispersion grows without bound, at its limit (`optimise.dispersion`)."""
        options = {"even": even, "tol": tol, "max_iterations": self.max_iterations}
        if self.limits is None:
            evaluate = lambda k, x: at(which[k], x)
            return maximise_many(evaluate, x, free=free, stop=stop, begun=begun, **options)
        near = np.array([self.limits[i].near for i in which])
        x = np.concatenate([x[:, :-1], np.minimum(x[:, -1:], near[:, None] - 1)], 1)
        beyond = lambda k, x: x[:, -1] >= near[k]
        ends = beyond if stop is None else lambda k, x: beyond(k, x) | stop(k, x)
        result = maximise_many(lambda k, x: at(which[k], x), x, free=free, stop=ends, **options)
        some = np.flatnonzero(beyond(np.arange(len(which)), result.x))
        if len(some):
            x = np.concatenate([result.x[some, :-1], np.full((len(some), 1), AT_LIMIT)], 1)
            held = np.append(free[:-1], False)
            rival = maximise_many(lambda k, x: at(which[some[k]], x), x, free=held, stop=stop, **options)
            better = rival.value >= result.value[some] - 1e-10 * (1 + np.abs(result.value[some]))
            for name, array in vars(result).items():
                array[some[better]] = getattr(rival, name)[better]
            looks = [self.limits[i].looks for i in which[some]]
            for look in np.transpose(looks):
                points = np.concatenate([rival.x[:, :-1], look[:, None]], 1)
                higher = at(which[some], points)[0] > rival.value + 1e-10 * (1 + np.abs(rival.value))
                result.converged[some[higher]] = False  # to be fitted alone
        return result

    def _start(self):
        """Where the fits without random effects begin, as in `glm_fit.fit_glm`."""
        x = np.zeros((self.B, self.p + 1))
        eta, x[:, -1] = self.lanes.start()
        if self.intercept is not None:
            x[:, self.intercept] = eta
        elif self.family.positive_eta and self.p:
            for i in range(self.B):
                X = np.asarray(self.lanes.design(i).X)
                x[i, : self.p] = np.linalg.lstsq(X, np.full(len(X), eta[i]), rcond=None)[0]
        return x

    def check_separation(self, i, beta):
        check_separation(self.family, self.lanes.design(i), beta, names=self.names, intercept=self.intercept)

    def check_ends(self):
        """Refuse what ended on its way to infinity; lanes fitted alone were asked."""
        a = np.flatnonzero([r is None for r in self.out.reasons] & ~self.again)
        information = -self.out.hessian[a][:, : self.p, : self.p]
        for i in a[may_diverge(information, np.asarray(self.groups.rows)[a], self.tol)]:
            self.attempt(i, lambda i=i: self.check_separation(i, self.out.psi[i, : self.p]))

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
                information = np.nan_to_num(self.groups.level[:, 0] / self.groups.rows)
                base = 1 / np.sqrt(np.clip(information, *INFORMATION))
                first = first_sizes(self.groups.score, self.groups.spread)
            self.jacobian[:, self.p, self.p] = self.base = base
            factor = np.clip(first / base[:, None], 0.1, 1.0)
        else:
            rows, columns = self.covariance.entries
            for i in a:
                design = self.lanes.design(i)
                z = np.asarray(design.terms[0].z)[:, np.asarray(design.weights) > 0]
                base = base_factor(self.covariance, z, self.groups.level[i])
                block = base[np.ix_(rows, rows)] * (columns[:, None] == columns[None, :])
                self.jacobian[i, self.part, self.part] = block
            factor = np.tile(self.covariance.raw(np.eye(self.S)), (self.B, 1))
        self.x = np.concatenate([self.glm.x[:, : self.p], factor, self.glm.x[:, self.p :]], 1)
        if not auto:
            self.climb(a, n_agq)
            return
        self.climb(a, 1, tol=1e-4)
        ladder = NODE_LADDER[self.S]
        for here, above in zip(ladder, (*ladder[1:], nodes_above(ladder[-1], self.S)), strict=True):
            self.climb(a, here)
            if above is None or not len(a):
                break
            a = a[~self.look(a, above).agrees]

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
        nodes, tol = padded_nodes(n_agq, self.S), tol or self.tol
        begun = self.lanes.climb(
            which, self.x[which], self.jacobian[which], nodes, even=self.even, tol=tol,
            max_iterations=self.max_iterations, nothing=NOTHING if self.S == 1 else 0.0,
        )  # fmt: skip
        result = self._maximise(
            lambda k, x: self.at(k, x, nodes), which, self.x[which], self.all_free, self.even, tol, begun,
            stop=self.nothing if self.S == 1 else None,
        )  # fmt: skip
        self.x[which] = result.x
        self.out.n_agq[which] = n_agq
        self.store(which, result, np.tile(self.all_free, (len(which), 1)))

    def nothing(self, which, x):
        """Where zero is as good as the only effect; what is decided in the end is decided by values (`settle`)."""
        return np.abs(x[:, self.p]) < NOTHING

    def store(self, which, result: BatchResult, free):
        J = self.jacobian[which]
        back = np.linalg.inv(J)
        self.out.psi[which] = np.einsum("bij,bj->bi", J, result.x)
        self.out.hessian[which] = np.swapaxes(back, 1, 2) @ result.hessian @ back
        self.out.value[which], self.out.decrement[which] = result.value, np.maximum(result.decrement, 0.0)
        if self.family.limit is not None:
            free[:, -1] &= result.x[:, -1] < AT_LIMIT
        self.out.free[which] = free
        self.converged[which] = result.converged

    def look(self, which, nodes) -> Look:
        """At the ends of climbs, with more nodes; kept."""
        x, J = self.x[which], self.jacobian[which]
        kept = self.all_free & ~(self.even & (np.abs(x) < NOTHING))
        own = np.swapaxes(J, 1, 2) @ self.out.hessian[which] @ J
        seen = look_many(nodes, self.out.value[which], own, kept, *self.at(which, x, padded_nodes(nodes, self.S)))
        self.out.keep(which, seen)
        return seen

    def look_around(self, n_agq):
        """What more nodes say of the fits that have not been asked, and what Laplace's approximation says of all."""
        a, out = self.open(), self.out
        zero = out.singular[a]
        for used in np.unique(out.n_agq[a]).tolist():
            at = a[~zero & (out.n_agq[a] == used)]
            above = nodes_above(used, self.S)
            unseen = at[out.checked_nodes[at] == 0]
            if above is not None and len(unseen):
                self.look(unseen, above)
            if used > 1 and len(at):
                value = self.lanes(at, out.psi[at], padded_nodes(1, self.S))[0]
                out.gap[at] = out.value[at] - value
            elif len(at):
                out.gap[at] = out.checked_gap[at]
            if above is not None:
                out.keep(a[zero & (out.n_agq[a] == used)], nothing_to_see(above))
        out.gap[a[zero]] = 0.0

    def settle(self):
        """Hold at zero what is as good there, and put off what takes more than that."""
        a = self.open()
        size = np.abs(self.x[a][:, self.part][:, self.covariance.diagonal])
        # The fit without random effects is within this of its optimum.
        rival = (size < LITTLE).any(1) | (self.glm.value[a] + _LOOSE > self.out.value[a])
        if self.S > 1:
            self.again[a] = ~self.converged[a] | rival | self._turned(a)
            return
        self.again[a] = ~self.converged[a] & ~rival
        few = few_rule(self.groups.level[a, 0], self.groups.spread[a, 0])
        self._look_along(a[~rival & self.converged[a] & few])
        a = a[rival]
        if not len(a):
            return
        glm = self.climb_glm(a, self.glm.x[a], self.tol)
        value = self.out.value[a]
        with np.errstate(invalid="ignore"):
            as_good = (np.abs(self.x[a, self.p]) < NOTHING) & (glm.value >= value - 1e-10 * (1 + np.abs(value)))
            zero = glm.converged & (as_good | (glm.value > value + 1e-9 * np.abs(glm.value)))
        self.again[a] = ~self.converged[a] & ~zero
        self._hold_at_zero(a[zero], BatchResult(**{name: array[zero] for name, array in vars(glm).items()}))
        self._look_along(a[zero])

    def _look_along(self, which):
        """Put off lanes that may have a higher maximum elsewhere (`optimise.boundary`)."""
        if not len(which):
            return
        nodes, looks = padded_nodes(int(self.out.n_agq[which].max()), self.S), []
        for size in MULTIPLES:
            psi = self.out.psi[which].copy()
            psi[:, self.p] = size * self.base[which]
            value, gradient, hessian = self.lanes(which, psi, nodes)
            value, slope = profiled_many(value, gradient, hessian, self.p, self.all_free)
            looks.append((value, slope * psi[:, self.p]))
        values, slopes = np.swapaxes(looks, 0, 1)
        known = np.abs(self.out.psi[which, self.p] / self.base[which])
        self.again[which] |= any_promising(MULTIPLES, values, slopes, self.out.value[which], known)

    def _hold_at_zero(self, which, glm: BatchResult):
        wide = lambda v: np.concatenate([v[..., : self.p], np.zeros((*v.shape[:-1], 1)), v[..., self.p :]], -1)
        tall = np.swapaxes(wide(np.swapaxes(wide(glm.hessian), 1, 2)), 1, 2)
        free = np.tile(self.all_free, (len(which), 1))
        free[:, self.p], self.out.singular[which] = False, True
        self.jacobian[which] = np.eye(len(self.even))
        self.store(which, replace(glm, x=wide(glm.x), hessian=tall), free)

    def _turned(self, a):
        """Lanes whose factor has a negative diagonal."""
        return (self.x[a][:, self.part][:, self.covariance.diagonal] < 0).any(1)

    def check_growth(self):
        """Random effects of a size beyond any that the link can show are fitted again, for the reason."""
        a = self.open()
        if self.S == 1:
            self.out.psi[a, self.p] = np.abs(self.out.psi[a, self.p])
        if self.S == 1 and self.family.link in BOUNDED_LINKS:
            # z is scaled to unit mean square.
            self.again[a] |= ~(np.abs(self.out.psi[a, self.p]) < LARGEST_SD)

    def finish(self, n_agq, auto):
        """Fit one by one what the batch could not."""
        for i in np.flatnonzero(self.again):
            if self.out.reasons[i] is None:
                self.attempt(i, lambda i=i: self._fit_alone(i, n_agq, auto))

    def _fit_alone(self, i, n_agq, auto):
        design = jax.device_put(self.lanes.design(i))
        out = self.out
        glm, groups = fit_glm(self.family, design, self.intercept, names=self.names, tol=self.tol)
        if not self.S:
            psi, free, hessian, value = glm.x, self.all_free.copy(), glm.hessian, glm.value
            free[-1] &= not self.family.at_limit(psi[-1])
            converged, reason, decrement, evaluations = glm.converged, glm.reason, glm.decrement, glm.iterations + 1
        else:
            solution = fit_marginal(
                self.family, design, glm, groups, n_agq=n_agq, auto=auto, check=True, names=self.names,
                intercept=self.intercept, tol=self.tol, max_iterations=self.max_iterations,
            )  # fmt: skip
            told = solution.convergence
            psi, free, hessian, value = solution.psi, solution.free, solution.hessian, solution.value
            converged, reason, decrement, evaluations = told.converged, told.reason, told.decrement, told.iterations
            out.n_agq[i], out.singular[i], out.warnings[i] = told.n_agq or 0, told.singular, told.warnings
            seen = solution.look
            if seen is not None:
                out.keep(i, seen)
            out.gap[i] = seen.gap if told.n_agq == 1 and seen is not None else np.nan if told.gap is None else told.gap
        out.psi[i], out.free[i], out.hessian[i], out.value[i] = psi, free, hessian, value
        out.decrement[i] = max(decrement, 0.0)
        out.evaluations[i] += evaluations
        if not converged:
            raise ConvergenceError(f"{UNFINISHED} ({reason}) with a Newton decrement of {decrement:.2g}")
