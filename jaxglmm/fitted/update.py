"""A fit after further rows of its groups, its parameters frozen: what `Fit.update` returns."""

from dataclasses import replace

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.effects import Effects, Kept, given_effects
from jaxglmm.fitted.history import History, Prior, is_normal, moments, nodes_for, of_levels, posteriors, third_moments
from jaxglmm.fitted.rules import rule_of
from jaxglmm.fitted.scoring import complete_rows, only_factor, own_prior, posterior_moments
from jaxglmm.fitted.state import State, fingerprint, terms_of
from jaxglmm.inference.coordinates import coordinates, raw_covariance
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
    kept = replace(given_effects(mean, covariance, how, len(state.estimate.beta)), prior=effects.prior)
    further = _Further(state, more, state.estimate.scaling.rows(new.X), touched)
    kept = (
        further.integrated(kept, effects, history if fit.has_rows else None)
        if effects.mixture
        else further.moved(kept, effects, before)
    )
    posterior = _posterior(state, old, history, prior, touched)
    posterior = replace(posterior, n=_grown(old.n, len(term.levels)) + np.bincount(level, minlength=len(term.levels)))
    checksum = fingerprint(new.y, new.weights, state.fingerprint)
    state = replace(state, posteriors=(posterior,), n=state.n + len(new.y), fingerprint=checksum)
    rule = None
    if whole is None and (known := fit._rule()) is not None:
        touched_rule = rule_of(state, history, prior)
        rule = None if touched_rule is None else known.replaced(touched, touched_rule, len(term.levels))
    return state, Kept({0: kept}, whole, rule=rule)


class _Further:
    """What further rows of some levels do to what the parameters' uncertainty adds to the levels' effects.

    Of what precision P an effect has, the slopes of its mean in beta are -P^-1 sum z w x', exactly for Gaussian
    responses. Further rows add dP = sum z w z' to it and to the sum: with the covariance C = P^-1 before, which may be
    singular, slopes D become (I + C dP)^-1 (D - C sum z w x').
    """

    def __init__(self, state: State, more: History, X: np.ndarray, touched: np.ndarray):
        self.state, self.more, self.X, self.touched = state, more, X, touched

    def _slopes(self, mean: np.ndarray, D: np.ndarray, C: np.ndarray) -> np.ndarray:
        """D (T, S, p) of the touched levels after the further rows, with w at the means (G, S)."""
        more, (S, p) = self.more, D.shape[1:]
        eta = more.eta + np.einsum("sm,ms->m", more.z, mean[more.codes])
        with computing():
            w = FamilyRows(self.state.family, more.y, more.weights).newton(eta, self.state.log_dispersion)[2]
        sums, added = np.zeros((more.n_groups, S, p)), np.zeros((more.n_groups, S, S))
        np.add.at(sums, more.codes, np.einsum("sm,m,mp->msp", more.z, w, self.X))
        np.add.at(added, more.codes, np.einsum("sm,m,tm->mst", more.z, w, more.z))
        return np.linalg.solve(np.eye(S) + C @ added[self.touched], D - C @ sums[self.touched])

    def _crossed(self, old: Effects, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Levels (L,) of which the covariance with beta is known, with its values (L, ...) before, and touched ones."""
        G = self.more.n_groups
        out, known = np.zeros((G, *values.shape[1:])), np.zeros(G, bool)
        out[old.levels] = values
        known[old.levels] = known[self.touched] = True
        return np.flatnonzero(known), out, out[self.touched]

    def moved(self, kept: Effects, old: Effects, before: np.ndarray) -> Effects:
        """By the delta method.

        The slopes of a mean m in the entries of Lambda follow from the posterior alone: with the covariance C they are
        C Sigma^-1 dSigma Sigma^-1 m of a normal one, and those in log sigma of a Gaussian response -2 C Sigma^-1 m.

        Parameters
        ----------
        before : (G, S, S)
            Covariances before.
        """
        state, touched = self.state, self.touched
        V, at = raw_covariance(state), coordinates(state)
        p, free = at.p, np.arange(len(V)) >= at.p
        levels, cross, own = self._crossed(old, old.with_beta)
        mean_before = _grown(old.mean, len(kept.mean))
        rest = self._of_covariances(mean_before[touched], before[touched], at)
        vcov = V[:p, :p]
        D = np.zeros((len(touched), before.shape[1], len(V)))
        if rest is not None:
            D[..., free] = rest
        D[..., :p] = (own - D[..., free] @ V[free, :p]) @ np.linalg.pinv(vcov, hermitian=True)
        D[..., :p] = self._slopes(kept.mean, D[..., :p], before[touched])
        after = self._of_covariances(kept.mean[touched], kept.covariance[touched], at)
        if after is None:  # of beta alone
            cross[touched] = D[..., :p] @ vcov
            return replace(kept, levels=levels, with_beta=cross[levels])
        D[..., free] = after
        cross[touched] = D @ V[:, :p]
        covariance = _grown(old.covariance_eb, len(kept.mean))
        covariance[touched] = kept.covariance[touched] + np.einsum("gsa,ab,gtb->gst", D, V, D, optimize=True)
        return replace(kept, covariance_eb=covariance, levels=levels, with_beta=cross[levels])

    def _of_covariances(self, mean, covariance, at) -> np.ndarray | None:
        """Slopes (T, S, q + 1) in the entries of Lambda and the log dispersion; None where Lambda is singular."""
        factor = self.state.factor
        if not np.diag(factor).all():
            return None
        inverse = np.linalg.inv(factor @ factor.T)
        solved = mean @ inverse
        out = np.zeros((*mean.shape, len(at.entries[0]) + 1))
        for e, (r, c) in enumerate(zip(*at.entries, strict=True)):
            change = np.zeros_like(factor)
            change[r] = factor[:, c]
            out[..., e] = np.einsum("gst,gt->gs", covariance @ inverse, solved @ (change + change.T))
        if is_normal(self.state.family):
            out[..., -1] = -2 * np.einsum("gst,gt->gs", covariance, solved)
        return out

    def integrated(self, kept: Effects, old: Effects, history: History | None) -> Effects:
        """Each part of the mixture over the parameters.

        Parameters
        ----------
        history : History or None
            All rows of the touched levels; without them effects given the parameters are taken as normal before.
        """
        state, touched, more, of = self.state, self.touched, self.more, old.mixture
        assert of is not None
        family, log_phi = state.family, state.log_dispersion
        G, estimate = more.n_groups, state.estimate.scaling.beta_from_columns(state.estimate.beta)
        wider = ((0, 0), (0, G - of.mean.shape[1]))
        mean, variance, third = (np.pad(v, wider) for v in (of.mean, of.variance, of.third))
        variance[:, of.mean.shape[1] :] = np.square(of.sds)[:, None]
        levels, cross = old.levels, []
        for k, (sd, beta, V) in enumerate(zip(of.sds, of.beta, of.vcov, strict=True)):
            levels, every, own = self._crossed(old, of.with_beta[k])
            D = (own @ np.linalg.pinv(V, hermitian=True))[:, None]
            C = variance[k, touched, None, None] - np.einsum("gsa,ab,gtb->gst", D, V, D, optimize=True)
            C = np.maximum(C, 0.0)
            D = self._slopes(mean[k, :, None], D, C)
            if history is None:
                shifted, _ = of_levels(replace(more, eta=more.eta + self.X @ (beta - estimate)), touched)
                found, after = moments(family, log_phi, shifted, Prior(mean[k, touched, None], np.sqrt(C)))
                third[k, touched] *= np.divide(after, C, out=np.ones_like(C), where=C > 0)[:, 0, 0] ** 3
            else:
                prior = Prior(np.zeros(1), np.array([[sd]]))
                found, after = moments(family, log_phi, history, prior)
                found = found + D @ (beta - estimate)
                third[k, touched] = third_moments(family, log_phi, history, prior)
            mean[k, touched] = found[:, 0]
            variance[k, touched] = (after + np.einsum("gsa,ab,gtb->gst", D, V, D, optimize=True))[:, 0, 0]
            every[touched] = (D @ V)[:, 0]
            cross.append(every[levels])
        of = replace(of, mean=mean, variance=variance, third=third, with_beta=np.stack(cross))
        mean, variance, with_beta = of.of_levels(levels)
        return replace(
            kept, mean_eb=mean[:, None], covariance_eb=variance[:, None, None], levels=levels,
            with_beta=with_beta[:, None], mixture=of,
        )  # fmt: skip


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
