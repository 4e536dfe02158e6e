"""Gaussian models from cross products: many responses of one design, and many strata."""

import numpy as np

from jaxglmm.batching.options import Options
from jaxglmm.batching.stratum_lanes import StratumLanes
from jaxglmm.design.checks import PERFECT_FIT, is_perfect_fit
from jaxglmm.design.crossproducts import CrossProducts, cross_products
from jaxglmm.design.design import column_scaling
from jaxglmm.design.within import LITTLE, check_within
from jaxglmm.errors import DataError
from jaxglmm.fitted.lanes import LaneEstimates, columns_transform, parameter_table, unlooked
from jaxglmm.model.covariance import Covariance
from jaxglmm.objectives.gaussian_lanes import LaneProducts
from jaxglmm.ops.stratum_rows import StratumRows
from jaxglmm.optimise.batch_gaussian import LaneGaussianFit, fit_gaussian_lanes
from jaxglmm.optimise.gaussian_fit import fit_gaussian


# Fits together at most, and numbers in the largest array that they need.
_MOST, _NUMBERS = 2048, 4_000_000


class GaussianResponses:
    """Fits of one design: its own cross products are formed once, those with each response from its rows."""

    @property
    def workers(self) -> int:
        """Two: NumPy leaves the interpreter to others while it works."""
        return 2

    def __init__(self, frame, options: Options, parameters):
        self.frame, self.options, self.parameters = frame, options, parameters
        term = frame.terms[0] if frame.terms else None
        self.scaling = column_scaling(frame.X, frame.weights, None)
        self.groups = 0 if term is None else len(term.levels)
        self.named = "", () if term is None else (term.group,)
        self.rows = {"weights": frame.weights, "center": self.scaling.center, "scale": self.scaling.scale}
        if term is not None:
            self.rows |= {"codes": term.codes, "z": term.z, "n_groups": self.groups, "blocks": term.blocks}
            self.order = np.argsort(term.codes, kind="stable")
            self.starts = np.searchsorted(term.codes[self.order], np.arange(self.groups))
        shared = cross_products(np.zeros(len(frame.X)), frame.X, **self.rows)
        self.covariance, p = shared.covariance, frame.X.shape[1]
        flat = lambda v: np.concatenate([*v, np.zeros(v.shape[1:])], -1)[..., : self.groups, None]
        self.ztz, self.ztx = flat(np.asarray(shared.ztz)), flat(np.asarray(shared.ztv))[:p]
        self.xx, self.n, self.log_weights = shared.vtv[:p, :p], float(shared.n), float(shared.log_weights)
        self.X = (frame.X - self.scaling.center) / self.scaling.scale
        S = len(self.ztz)
        self.at_once = int(np.clip(_NUMBERS // max(len(self.X), self.groups * S**2 * (S + p)), 8, _MOST))

    def solve(self, Y: np.ndarray) -> LaneEstimates:
        """Fit responses (B, n). Needs x64."""
        frame, B = self.frame, len(Y)
        target = Y - frame.offset
        origin = np.linalg.solve(self.xx, ((target * frame.weights) @ self.X).T)
        residual = target - origin.T @ self.X.T
        weighted = residual * frame.weights
        ztr = np.zeros((len(self.ztz), self.groups, B))
        for a in range(len(ztr)):
            ztr[a] = np.add.reduceat((weighted * frame.terms[0].z[a])[:, self.order], self.starts, axis=1).T
        products = LaneProducts(
            ztz=self.ztz, ztx=self.ztx, ztr=ztr, xx=self.xx[:, :, None], xr=(weighted @ self.X).T,
            rr=np.einsum("bn,bn->b", weighted, residual), origin=origin, n=np.full(B, self.n),
            log_weights=np.full(B, self.log_weights), covariance=self.covariance,
        )  # fmt: skip
        T = columns_transform(self.scaling.center[None], self.scaling.scale[None], self.scaling.intercept)
        total = np.einsum("bn,bn,n->b", target, target, frame.weights)
        counts = np.full(B, len(frame.X)), np.full(B, self.groups)

        def alone(i):
            return cross_products(Y[i], frame.X, offset=frame.offset, **self.rows)

        return _estimates(products, total, self.options, self.parameters, T, *counts, alone, self.named)


class GaussianStrata(StratumLanes):
    """Fits of many strata; which of them can be fitted, and which together, is as for other families."""

    @property
    def workers(self) -> int:
        """Two: NumPy leaves the interpreter to others while it works."""
        return 2

    def lanes_at_once(self, lead: int) -> int:
        S, p = 0 if self.term is None else len(self.term.z), len(self.strata.frame.columns)
        numbers = max(int(self.at.rows[lead]), int(self.at.groups[lead]) * S**2 * (S + p), 1)
        return int(np.clip(_NUMBERS // numbers, 8, _MOST))

    def solve(self, which: np.ndarray, rows: StratumRows) -> LaneEstimates:
        """Fit strata. Needs x64."""
        B, at, X, begins, lane = len(which), self.at, rows.X, rows.begin[:-1], rows.lane
        weights = rows.ones if rows.weights is None else rows.weights
        target = rows.y if rows.offset is None else rows.y - rows.offset
        p, by_stratum = X.shape[1], lambda v: np.add.reduceat(v, begins, axis=0)
        xx = np.empty((B, p, p))
        for j in range(p):
            xx[:, j] = by_stratum(X * (weights * X[:, j])[:, None])
        rhs = by_stratum(X * (weights * target)[:, None])
        origin = np.linalg.solve(xx, rhs[:, :, None])[:, :, 0]
        residual = target - np.einsum("np,np->n", X, origin[lane])
        weighted = weights * residual

        S = 0 if self.term is None else len(self.term.z)
        G = int(at.groups[which].max()) if S else 0
        ztz, ztx, ztr = np.zeros((S, S, G, B)), np.zeros((p, S, G, B)), np.zeros((S, G, B))
        if self.term is not None:
            place = self._places(which)
            first = np.flatnonzero(at.within[place] == 0)
            group = at.rank[at.group[place[first]]], lane[first]
            z = np.ones((S, len(place))) if rows.z is None else rows.z
            by_group = lambda v: np.add.reduceat(v, first)
            for a in range(S):
                ztr[a][group] = by_group(z[a] * weighted)
                for b in range(S):
                    ztz[a, b][group] = by_group(weights * z[a] * z[b])
                for j in range(p):
                    ztx[j, a][group] = by_group(weights * z[a] * X[:, j])
        live = weights > 0
        logs = np.log(np.where(live, weights, 1.0))
        products = LaneProducts(
            ztz=ztz, ztx=ztx, ztr=ztr, xx=np.moveaxis(xx, 0, -1), xr=by_stratum(X * weighted[:, None]).T,
            rr=by_stratum(weighted * residual), origin=origin.T, n=by_stratum(live.astype(float)),
            log_weights=by_stratum(logs), covariance=self.covariance or Covariance(()),
        )  # fmt: skip
        groups = at.groups[which] if S else np.zeros(B, int)
        T = columns_transform(rows.center, rows.scale, self.intercept)
        total = by_stratum(weights * target**2)
        named = self.strata.frame.spec.response_text, () if self.term is None else (self.term.group,)

        def alone(i):
            own = np.flatnonzero(lane == i)
            codes = at.rank[at.group[self._places(which)[own]]]
            z, blocks = None if rows.z is None else rows.z[:, own], self.term.blocks if self.term else None
            return cross_products(target[own], X[own], weights=weights[own], codes=codes, z=z, blocks=blocks)

        return _estimates(products, total, self.options, self.parameters, T, at.rows[which], groups, alone, named)


def _estimates(products, total, options: Options, parameters, T, n, groups, alone, named) -> LaneEstimates:
    """Fit, and report for the caller's columns.

    Parameters
    ----------
    total : (B,)
        Sums of squares of the responses.
    alone : callable
        Number of a fit to its `CrossProducts`.
    named : (str, sequence of str)
        Response and groups.
    """
    rules = {"reml": options.reml, "tol": options.tol, "max_iterations": options.max_iterations}
    fit = fit_gaussian_lanes(products, **rules)
    perfect = is_perfect_fit(products.rr, total)
    if products.covariance.n_effects:
        # Where groups take up nearly all of a response, its fit alone sees what is left within them.
        with np.errstate(invalid="ignore"):
            doubtful = ~(fit.sigma**2 * products.n > 2 * LITTLE * products.rr) & ~perfect
        for i in np.flatnonzero(doubtful):
            _fit_alone(fit, i, alone(i), rules, named)
    reasons = [PERFECT_FIT if none else reason for none, reason in zip(perfect, fit.reasons, strict=True)]
    p = T.shape[1]
    J = np.broadcast_to(np.eye(fit.covariance.shape[1]), fit.covariance.shape).copy()
    J[:, :p, :p] = T
    beta = np.einsum("bij,bj->bi", np.broadcast_to(T, (len(n), p, p)), fit.beta)
    covariance = J @ fit.covariance @ np.swapaxes(J, 1, 2)
    entries = products.covariance.entries
    value, se = parameter_table(parameters, beta, fit.factor, fit.sigma, covariance, fit.free, entries)
    # The restricted likelihood integrates over beta, so that a change of columns changes its unit.
    unit = np.linalg.slogdet(T)[1] if options.reml else 0.0
    return LaneEstimates(
        value, se, fit.loglik + unit, fit.decrement, fit.evaluations, np.zeros(len(n), int), n, groups, fit.singular,
        **unlooked(len(n)), reasons=reasons,
    )  # fmt: skip


def _fit_alone(fit: LaneGaussianFit, i: int, cross: CrossProducts, rules: dict, named) -> None:
    """Put the fit of a response that hardly varies within groups in the place of one of many."""
    if cross.within is None:
        return
    try:
        check_within(cross, *named)
        found = fit_gaussian(cross, **rules)
    except DataError as error:
        fit.reasons[i] = str(error)
        return
    p, factor = len(found.beta), found.factor
    assert factor is not None
    # Of entries of Lambda, not of logarithms of its diagonal.
    by_entry = np.ones(len(found.covariance))
    by_entry[p:-1] = np.where(cross.covariance.diagonal, factor[cross.covariance.entries], 1.0)
    fit.beta[i], fit.factor[i], fit.sigma[i], fit.loglik[i] = found.beta, factor, found.sigma, found.loglik
    fit.covariance[i] = found.covariance * np.outer(by_entry, by_entry)
    fit.free[i], fit.singular[i], fit.decrement[i] = ~found.boundary, found.singular, max(found.decrement, 0.0)
    fit.evaluations[i] += found.iterations
    said = f"the optimiser stopped ({found.reason}) with a Newton decrement of {found.decrement:.2g}"
    fit.reasons[i] = None if found.converged else said
