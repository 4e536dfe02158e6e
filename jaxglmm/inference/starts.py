"""A fit begun anew from many places at once: is its optimum the best one?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxglmm.errors import ConvergenceWarning, NotYetError
from jaxglmm.fitted.tables import native_table
from jaxglmm.inference.bootstrap import prepare
from jaxglmm.ops.computing import computing
from jaxglmm.optimise.node_ladder import nodes_above


# What counts as the same optimum, relative to the size of the log-likelihood.
_SAME = 1e-8
# Share of a rival's lead over the fit that more nodes may change without a word.
_SAME_LEAD = 0.1


@dataclass(frozen=True)
class Starts:
    """Where climbs from many places ended.

    Attributes
    ----------
    fit : float
        The fit's own log-likelihood.
    loglik : (n,)
    converged : bool (n,)
    sd : (n, S)
        The effects' standard deviations.
    """

    fit: float
    loglik: np.ndarray
    converged: np.ndarray
    sd: np.ndarray
    names: tuple[str, ...]
    native: str

    @property
    def best(self) -> float:
        """The largest log-likelihood that any has found."""
        return float(np.max(self.loglik[self.converged], initial=self.fit))

    @property
    def is_best(self) -> bool:
        """Whether none has found more than the fit."""
        return self.best <= self.fit + _SAME * (1 + abs(self.fit))

    def table(self) -> Any:
        """`start`, `loglik`, `converged`, and the standard deviations."""
        sds = {f"sd[{name}]": column for name, column in zip(self.names, self.sd.T, strict=True)}
        return native_table(self.native, {
            "start": np.arange(len(self.loglik)), "loglik": self.loglik, "converged": self.converged, **sds,
        })  # fmt: skip


def multistart(fit, n: int, seed) -> Starts:
    """See `Fit.multistart`."""
    from jaxglmm.design.design import column_scaling, make_design
    from jaxglmm.objectives.params import Params
    from jaxglmm.objectives.quadrature import AdaptiveQuadrature
    from jaxglmm.optimise.solution import solve

    frame, options, _ = prepare(fit, "multi-start")
    if options.reml:
        raise NotYetError("multi-start takes fits by maximum likelihood; this one is by REML: fit it with reml=False")
    groups, z = {}, None
    for term in frame.terms:
        z = term.z
        groups = {"codes": term.codes, "n_groups": len(term.levels), "z": z, "blocks": term.blocks}
    scaling = column_scaling(frame.X, frame.weights, z)
    rng, estimate = np.random.default_rng(seed), fit.state.estimate
    phi = 0.0 if fit.dispersion is None else float(np.log(fit.dispersion["value"]))
    size = np.exp(phi) if fit.family.name == "gaussian" else 1.0
    with computing():
        design, _ = make_design(
            frame.y, frame.X, weights=frame.weights, offset=frame.offset, scaling=scaling,
            constant=fit.family.constant(frame.y, frame.weights), **groups,
        )  # fmt: skip
        diagonal = design.terms[0].covariance.diagonal if design.terms else np.zeros(0, bool)
        beta = np.linalg.solve(scaling.to_columns(), np.asarray(estimate.beta))
        noise = lambda *shape: rng.normal(size=(n, *shape))
        # Standard deviations from a tenth to ten times the natural size of the linear predictor.
        theta = np.where(diagonal, np.log(size) + 1.2 * noise(len(diagonal)), 0.3 * size * noise(len(diagonal)))
        start = Params(beta + size * noise(len(beta)), theta, phi + 0.5 * noise() * (fit.dispersion is not None))
        objective = AdaptiveQuadrature(fit.family, fit.n_agq or 1)
        found = jax.vmap(lambda start: solve(objective, design, start=start))(start)
        loads = fit.state.basis / scaling.z_scale if design.terms else np.zeros((0, 0))
        sd = np.sqrt(np.square(loads @ np.asarray(found.factor)).sum(2))
        loglik, converged = np.asarray(found.value), np.asarray(found.converged)
        first, S = int(np.argmax(np.where(converged, loglik, -np.inf))), sd.shape[1]
        above = nodes_above(objective.nodes, S) if S else None
        lead = float(loglik[first]) - fit.loglik
        if converged[first] and above is not None and lead > _SAME * (1 + abs(fit.loglik)):
            at = AdaptiveQuadrature(fit.family, above).at
            own = at(beta, estimate.factors[0] * scaling.z_scale[:, None], phi, design)
            rival = at(found.beta[first], found.factor[first], found.log_dispersion[first], design)
            finer = float(rival - own)
            if not abs(finer - lead) <= _SAME_LEAD * lead:
                warnings.warn(
                    f"start {first} ended {lead:.3g} above the fit by {objective.nodes} nodes for each effect, which "
                    f"are not enough there: with {above} nodes it lies {abs(finer):.3g} "
                    f"{'above' if finer > 0 else 'below'} it; fit with more nodes (n_agq), or leave n_agq and method "
                    "out",
                    ConvergenceWarning,
                    stacklevel=4,
                )
    names = tuple(f"{name}|{term.group}" for term in frame.terms for name in term.names)
    return Starts(fit.loglik, loglik, converged, sd, names, fit.state.native)
