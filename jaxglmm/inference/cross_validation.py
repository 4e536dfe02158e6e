"""Cross-validation of a fit: all folds are fitted together, and judged by the density of what each has not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxglmm.arguments import is_whole
from jaxglmm.errors import DataError
from jaxglmm.fitted.tables import native_table
from jaxglmm.inference.bootstrap import of_rows, prepare
from jaxglmm.model.centring import factor_from_columns
from jaxglmm.model.covariance import Covariance
from jaxglmm.objectives.quadrature import AdaptiveQuadrature
from jaxglmm.ops.computing import computing
from jaxglmm.ops.threads import calm


@dataclass(frozen=True)
class CrossValidation:
    """What the fits without one fold each say of it.

    Attributes
    ----------
    folds : int (n,)
        Fold of each row, from 0.
    loglik : (K,)
        Log predictive density of each fold's responses given all the others: log p(y_all) - log p(y_others) at the
        parameters that the others give, the random effects integrated out in both. NaN where the fit failed.
    rows : int (K,)
        Rows of each fold.
    parameters : tuple of str
    estimate : (K, P)
        Of the fits without the fold.
    failed : dict of int to str
        Why not.
    warnings : dict of int to list of str
        Of the fits that have any, as in the `convergence` of a fit: they take the nodes of the fit.
    """

    folds: np.ndarray
    loglik: np.ndarray
    rows: np.ndarray
    parameters: tuple[str, ...]
    estimate: np.ndarray
    failed: dict[int, str]
    warnings: dict[int, list[str]]
    native: str

    @property
    def total(self) -> float:
        """Log predictive density of all rows; larger is better, and comparable between models of the same responses."""
        return float(self.loglik.sum())

    def table(self) -> Any:
        """`fold`, `rows`, `loglik` and `loglik_per_row`."""
        return native_table(self.native, {
            "fold": np.arange(len(self.rows)), "rows": self.rows, "loglik": self.loglik,
            "loglik_per_row": self.loglik / self.rows,
        })  # fmt: skip


def cross_validate(fit, folds, by: str, seed) -> CrossValidation:
    """See `Fit.cross_validate`."""
    from jaxglmm.batch import solve_strata
    from jaxglmm.batching.strata import Strata

    frame, options, wanted = prepare(fit, "cross-validation")
    folds = _folds(frame, folds, by, seed)
    K, n = int(folds.max()) + 1, len(folds)
    kept = folds != np.arange(K)[:, None]
    code, rows = np.nonzero(kept)
    others = of_rows(frame, rows)
    with computing(), calm():
        found = solve_strata(Strata(others, np.arange(K), code, {}), fit.family, options, wanted)
        loglik = _densities(fit, frame, wanted, found.estimate, kept)
    failed = {k: reason for k, reason in enumerate(found.reasons) if reason is not None}
    names = tuple(parameter.name for parameter in wanted)
    warned = {k: texts for k, texts in enumerate(found.warnings) if texts}
    return CrossValidation(folds, loglik, n - kept.sum(1), names, found.estimate, failed, warned, fit.state.native)


def _folds(frame, folds, by: str, seed) -> np.ndarray:
    n = len(frame.y)
    if not is_whole(folds):
        several = isinstance(folds, list | tuple | np.ndarray) or hasattr(folds, "to_numpy")
        out = np.asarray(folds) if several else np.zeros(0)
        if out.dtype.kind not in "iufUSb" or out.shape != (n,):
            raise DataError(f"folds: expected a number, or a fold for each of the fit's {n:,} rows; found {out.shape}")
        values, out = np.unique(out, return_inverse=True)
        if len(values) < 2:
            raise DataError("folds: expected at least two of them; found one value in all rows")
        return out
    by_group = by == "groups" and frame.terms
    units = len(frame.terms[0].levels) if by_group else n
    if not 2 <= folds <= units:
        raise DataError(f"folds must lie between 2 and the number of {by}, {units:,}; found {folds}")
    drawn = np.random.default_rng(seed).permutation(np.arange(units) % folds)
    return drawn[frame.terms[0].codes] if by_group else drawn


def _densities(fit, frame, wanted, estimate, kept) -> np.ndarray:
    """log p(y_all) - log p(y_others), (K,), at the estimates (K, P) of each fold. Needs x64."""
    from jaxglmm.design.design import make_design

    groups = {}
    for term in frame.terms:
        groups = {"codes": term.codes, "n_groups": len(term.levels), "z": term.z, "blocks": term.blocks}
    design, layout = make_design(frame.y, frame.X, weights=frame.weights, offset=frame.offset, **groups)
    beta, factor, log_phi = _at(wanted, estimate, frame)
    some = np.stack([layout.scatter(np.where(one, frame.weights, 0.0)) for one in kept])
    value = np.asarray(_differences(fit.family, design, (beta, factor, log_phi, some), nodes=fit.n_agq or 1))
    constant = fit.family.constant
    return value + np.array([constant(frame.y[~one], frame.weights[~one]) for one in kept])


@jax.jit(static_argnames=("family", "nodes"))
def _differences(family, design, each, *, nodes):
    """log p(y) - log p(y, weights) for each of some parameters and weights: (beta, Lambda, log dispersion, weights)."""
    objective = AdaptiveQuadrature(family, nodes)

    def difference(one):
        beta, factor, log_phi, weights = one
        at = lambda design: objective.at(beta, factor, log_phi, design)
        return at(design) - at(replace(design, weights=weights))

    return jax.lax.map(difference, each)


def _at(wanted, estimate, frame):
    """beta (K, p), Lambda (K, S, S) and log dispersion (K,) from a table of parameters."""
    S, K = sum(len(term.z) for term in frame.terms), len(estimate)
    columns = [k for k, parameter in enumerate(wanted) if parameter.kind == "beta"]
    covariance, log_phi = np.tile(np.eye(S), (K, 1, 1)), np.zeros(K)
    sd = np.ones((K, S))
    for k, parameter in enumerate(wanted):
        if parameter.kind == "sd":
            sd[:, parameter.effects[0]] = estimate[:, k]
        elif parameter.kind == "cor":
            r, s = parameter.effects
            covariance[:, r, s] = covariance[:, s, r] = np.nan_to_num(estimate[:, k])
        elif parameter.kind == "dispersion":
            log_phi = np.log(estimate[:, k])
    # A correlation of 1 leaves a zero on the diagonal.
    factor = np.zeros_like(covariance)
    for j in range(S):
        rest = covariance[:, j:, j] - np.einsum("bik,bk->bi", factor[:, j:, :j], factor[:, j, :j])
        pivot = np.sqrt(np.maximum(rest[:, 0], 0.0))
        factor[:, j:, j] = np.divide(rest, pivot[:, None], out=np.zeros_like(rest), where=pivot[:, None] > 0)
        factor[:, j, j] = pivot
    factor *= sd[:, :, None]
    for term in frame.terms:  # one, whose rows are those of centred columns
        factor = np.stack([factor_from_columns(term.basis, one, Covariance(term.blocks)) for one in factor])
    return estimate[:, columns], factor, log_phi
