"""A fit after further rows of its groups, its parameters frozen: what `Fit.update` returns."""

from dataclasses import replace

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.effects import Effects, Kept, given_effects
from jaxglmm.fitted.history import History, Prior, is_normal, nodes_for, of_levels, posteriors
from jaxglmm.fitted.rules import rule_of
from jaxglmm.fitted.scoring import complete_rows, only_factor, own_prior, posterior_moments
from jaxglmm.fitted.state import State, fingerprint, terms_of
from jaxglmm.ops.computing import computing
from jaxglmm.ops.rows import FamilyRows
from jaxglmm.optimise.estimate import Posterior


def updated(fit, data) -> tuple[State, Kept]:
    """State and effects of a fit with further rows; see `Fit.update`."""
    state: State = fit.state
    only_factor(state, "update()")
    new = complete_rows(state, data)
    if not len(new.y):
        raise DataError("no row is complete: there is nothing to update with")
    state, level = _with_levels(state, new)
    term, old, exact = state.terms[0], fit.state.posteriors[0], is_normal(state.family) or fit.has_rows
    more = History(level, new.y, new.weights, new.eta, new.z, len(term.levels))
    touched = np.unique(level)
    whole, prior = None, own_prior(state)
    if fit.has_rows:
        whole = _joined(fit._history("update()")[0], more)
        history, _ = of_levels(whole, touched)
    else:
        (history, _), prior = of_levels(more, touched), _priors(old, prior, touched)

    effects = fit._effects(0)
    mean, covariance = (_grown(v, len(term.levels)) for v in (effects.mean, effects.covariance))
    covariance[len(old.n) :] = state.covariances[0]
    before = covariance.copy()
    mean[touched], covariance[touched] = posterior_moments(state, history, prior)
    approximate = effects.how == "approximated" or not exact
    how = "approximated" if approximate and not is_normal(state.family) else "updated"
    levels, cross = _with_beta(state, effects, state.estimate.scaling.rows(new.X), more, mean, before, touched)
    kept = given_effects(mean, covariance, how, len(state.estimate.beta))
    mixture = None
    if effects.mixture is not None:
        of = effects.mixture
        wider = ((0, 0), (0, len(term.levels) - len(old.n)))
        moments = {name: np.pad(getattr(of, name), wider) for name in ("mean", "variance", "third")}
        moments["variance"][:, len(old.n) :] = np.square(of.sds)[:, None]
        cross_each = np.zeros((len(of.weights), len(levels), of.beta.shape[1]))
        cross_each[:, np.searchsorted(levels, effects.levels)] = of.with_beta
        mixture = replace(of, **moments, with_beta=cross_each)
    kept = replace(kept, levels=levels, with_beta=cross, mixture=mixture, prior=effects.prior)
    posterior = _posterior(state, old, history, prior, touched)
    posterior = replace(posterior, n=_grown(old.n, len(term.levels)) + np.bincount(level, minlength=len(term.levels)))
    checksum = fingerprint(new.y, new.weights, state.fingerprint)
    state = replace(state, posteriors=(posterior,), n=state.n + len(new.y), fingerprint=checksum)
    rule = None
    if whole is None and (known := fit._rule()) is not None:
        touched_rule = rule_of(state, history, prior)
        rule = None if touched_rule is None else known.replaced(touched, touched_rule, len(term.levels))
    return state, Kept({0: kept}, whole, rule=rule)


def _with_beta(state: State, old: Effects, X, more: History, mean, before, touched):
    """Covariance of effects with the coefficients after further rows: levels (L,) and (L, S, p). X are columns in use.

    Of what precision P an effect has, the slopes of its mean in beta are -P^-1 sum z w x', exactly for Gaussian
    responses. Further rows add dP = sum z w z' to it and to the sum: with the covariance C = P^-1 before, which may be
    singular, covariances K become (I + C dP)^-1 (K - C sum z w x' V).
    """
    p, S = X.shape[1], before.shape[1]
    cross = np.zeros((len(before), S, p))
    cross[old.levels] = old.with_beta
    known = np.zeros(len(before), bool)
    known[old.levels] = known[touched] = True
    vcov = old.vcov_of_beta(state)
    eta = more.eta + np.einsum("sm,ms->m", more.z, mean[more.codes])
    with computing():
        w = FamilyRows(state.family, more.y, more.weights).newton(eta, state.log_dispersion)[2]
    sums = np.zeros((len(before), S, p))
    np.add.at(sums, more.codes, np.einsum("sm,m,mp->msp", more.z, w, X))
    added = np.zeros((len(before), S, S))
    np.add.at(added, more.codes, np.einsum("sm,m,tm->mst", more.z, w, more.z))
    C = before[touched]
    cross[touched] = np.linalg.solve(np.eye(S) + C @ added[touched], cross[touched] - C @ sums[touched] @ vcov)
    levels = np.flatnonzero(known)
    return levels, cross[levels]


def _with_levels(state: State, new) -> tuple[State, np.ndarray]:
    """The state with the levels of new members behind the others, and the level of each row."""
    level, unknown = np.array(new.levels), np.asarray(new.levels) < 0
    if not unknown.any():
        return state, level
    labels, codes = np.unique(new.labels[unknown], return_inverse=True)
    level[unknown] = len(state.terms[0].levels) + codes
    spec = state.spec
    term = replace(spec.terms[0], grouping=spec.terms[0].grouping.extended(labels))
    spec = replace(spec, terms=(term,))
    return replace(state, spec=spec, terms=terms_of(spec)), level


def _joined(old: History, more: History) -> History:
    join = lambda a, b: np.concatenate([a, b], -1)
    return History(
        join(old.codes, more.codes), join(old.y, more.y), join(old.weights, more.weights), join(old.eta, more.eta),
        join(old.z, more.z), more.n_groups,
    )  # fmt: skip


def _priors(old: Posterior, prior: Prior, levels: np.ndarray) -> Prior:
    """N(mode, curvature^-1) of the levels that the fit knows, N(0, Sigma) of others."""
    known = levels < len(old.n)
    at = np.where(known, levels, 0)
    values, vectors = np.linalg.eigh(old.covariance[at])
    roots = vectors * np.sqrt(np.maximum(values, 0))[:, None]
    return Prior(np.where(known[:, None], old.mode[at], 0.0), np.where(known[:, None, None], roots, prior.factor))


def _posterior(state: State, old: Posterior, history: History, prior: Prior, levels: np.ndarray) -> Posterior:
    """Posteriors of all levels, those of `levels` from their rows."""
    size = len(state.terms[0].levels)
    normal, factor = is_normal(state.family), own_prior(state).factor
    fields = {name: _grown(getattr(old, name), size) for name in ("mode", "covariance", "mean", "covariance_mean")}
    for name in ("covariance", "covariance_mean"):
        fields[name][len(old.n) :] = factor @ factor.T
    if factor.any():
        nodes = nodes_for(state.family, prior, history, n_agq=state.estimate.n_agq)
        for groups, p in posteriors(state.family, state.log_dispersion, history, prior, nodes):
            at = levels[groups]
            fields["mode"][at], fields["covariance"][at] = p.mode.T, np.moveaxis(p.curvature, -1, 0)
            fields["mean"][at] = (p.mode if normal else p.mean).T
            fields["covariance_mean"][at] = np.moveaxis(p.curvature if normal else p.covariance, -1, 0)
    return Posterior(**fields, n=old.n)


def _grown(values: np.ndarray, size: int) -> np.ndarray:
    """A copy with zeros for further levels."""
    values = np.asarray(values)
    out = np.zeros((size, *values.shape[1:]), values.dtype)
    out[: len(values)] = values
    return out
