"""Effects of the groups of a fit: posterior means and variances, with the parameters' uncertainty, and intervals."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from jaxglmm.fitted.history import History
from jaxglmm.fitted.mixtures import Mixtures, quantiles
from jaxglmm.fitted.rules import Rule
from jaxglmm.fitted.state import State
from jaxglmm.model.centring import is_identity


# What `sd_eb` is, by the way it was reached.
HOW = {
    "delta": "delta method: posterior variance + d'V d, V the covariance of the parameters",
    "integrated": "integrated over the posterior of the parameters, {prior} on the sd between groups",
    "updated": "given all rows, with the parameters' uncertainty before update()",
    "approximated": "given N(mode, curvature) and the further rows, with the parameters' uncertainty before update()",
    "given": "not available: with several grouping factors posteriors are normal and given the parameters",
}


@dataclass(frozen=True)
class Mixture:
    """Posterior of (tau, beta) and every level's effect, one a group: K values of tau, at each beta and effects.

    Attributes
    ----------
    weights, sds : (K,)
    beta : (K, p)
        Coefficients of the columns in use, (X - center) / scale.
    vcov : (K, p, p)
        Of these.
    mean, variance, third : (K, G)
        First three central moments of each level's effect at each tau, the uncertainty of beta in the variance.
    with_beta : (K, L, p)
        Covariance with beta of the effects of levels (L,), at each tau.
    """

    weights: np.ndarray
    sds: np.ndarray
    beta: np.ndarray
    vcov: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    third: np.ndarray
    with_beta: np.ndarray

    def of_levels(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean and variance (G,), (G,) of every level's effect, covariance (L, p) of those of `levels` with beta."""
        mean = self.weights @ self.mean
        away, moved = self.mean - mean, self.beta - self.weights @ self.beta
        cross = self.with_beta + away[:, levels, None] * moved[:, None]
        return mean, self.weights @ (self.variance + away**2), np.einsum("k,klp->lp", self.weights, cross)

    @property
    def effects(self) -> Mixtures:
        """Every level's effect."""
        variance = np.maximum(self.variance, 1e-300)
        return Mixtures(self.weights, self.mean.T, variance.T, (self.third / variance**1.5).T)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (p,) and covariance (p, p) of beta."""
        mean = self.weights @ self.beta
        away = self.beta - mean
        return mean, np.einsum("k,kab->ab", self.weights, self.vcov + away[:, :, None] * away[:, None])


@dataclass(frozen=True)
class Effects:
    """Posterior of every level's effects, level order, of the centred columns (`model.centring`).

    Attributes
    ----------
    mean : (G, S)
        Given the parameters.
    covariance : (G, S, S)
        Given the parameters.
    mean_eb, covariance_eb : (G, S), (G, S, S)
        With the parameters' uncertainty.
    how : str
        "delta": covariance_eb = covariance + d'V d. "integrated": over the posterior of the parameters. "given":
        several grouping factors, normal posteriors given the parameters, no covariance_eb (NaN). "updated",
        "approximated": after further rows of an exact posterior or of a normal one, the parameters' uncertainty that of
        before.
    levels : int (L,)
        Levels whose covariance with the fixed effects is known: all, or of very many those where it matters.
    with_beta : (L, S, p)
        Covariance of these levels' effects with the coefficients of the columns in use.
    mixture : Mixture or None
        What was integrated over.
    prior : str
        Of the standard deviation, where it was integrated over.
    """

    mean: np.ndarray
    covariance: np.ndarray
    mean_eb: np.ndarray
    covariance_eb: np.ndarray
    how: str
    levels: np.ndarray
    with_beta: np.ndarray
    mixture: Mixture | None = None
    prior: str = ""

    @property
    def variance(self) -> np.ndarray:
        """Given the parameters, (G, S)."""
        return np.diagonal(self.covariance, axis1=1, axis2=2)

    @property
    def variance_eb(self) -> np.ndarray:
        """With the parameters' uncertainty, (G, S)."""
        return np.diagonal(self.covariance_eb, axis1=1, axis2=2)

    def vcov_of_beta(self, state: State) -> np.ndarray:
        """Covariance (p, p) of the coefficients of the columns in use that `with_beta` goes with."""
        p = len(state.estimate.beta)
        return state.estimate.covariance[:p, :p] if self.mixture is None else self.mixture.moments()[1]

    def of_columns(self, basis: np.ndarray) -> "Effects":
        """Those of the columns as they were written, which tables show."""
        if is_identity(basis):
            return self
        turned = lambda covariance: np.einsum("sa,gab,tb->gst", basis, covariance, basis, optimize=True)
        return replace(
            self, mean=self.mean @ basis.T, covariance=turned(self.covariance), mean_eb=self.mean_eb @ basis.T,
            covariance_eb=turned(self.covariance_eb), with_beta=np.einsum("st,ltp->lsp", basis, self.with_beta),
        )  # fmt: skip

    def told(self) -> str:
        """What `variance_eb` is."""
        return HOW[self.how].format(prior=self.prior)

    def arrays(self) -> dict[str, np.ndarray]:
        """What is saved, by name."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "mixture"}
        parts = {} if self.mixture is None else vars(self.mixture)
        return {k: np.asarray(v) for k, v in (own | {f"mixture.{k}": v for k, v in parts.items()}).items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Effects":
        """What `arrays` gave."""
        parts = {field.name: arrays[f"mixture.{field.name}"] for field in fields(Mixture) if "mixture.sds" in arrays}
        own = {field.name: arrays[field.name] for field in fields(cls) if field.name != "mixture"}
        own |= {"how": str(own["how"]), "prior": str(own["prior"]), "mixture": Mixture(**parts) if parts else None}
        return cls(**own)


def given_effects(mean: np.ndarray, covariance: np.ndarray, how: str, p: int) -> Effects:
    """Effects without the parameters' uncertainty."""
    none = np.zeros((0, mean.shape[1], p))
    return Effects(mean, covariance, mean, np.full_like(covariance, np.nan), how, np.zeros(0, np.int64), none)


@dataclass
class Kept:
    """What a fit has worked out of its groups, or was loaded with.

    Attributes
    ----------
    effects : dict of int to Effects
        By term.
    history : History or None
        Its rows, if they were saved.
    joint : Joint or None
        Of several grouping factors.
    rule : Rule or None
        What posteriors of one factor's effects are averaged over by.
    """

    effects: dict[int, Effects]
    history: History | None
    joint: Any = None
    rule: Rule | None = None


def intervals(state: State, effects: Effects, rule: Rule | None, level: float, uncertain: bool) -> np.ndarray:
    """Ends (G, S, 2) of equal-tailed posterior intervals.

    With the parameters' uncertainty the posterior given the parameters is moved and stretched to `mean_eb` and
    `variance_eb`; where it is integrated over the ends are quantiles of the mixture.

    Parameters
    ----------
    rule : Rule or None
        As in `standard_quantiles`.
    uncertain : bool
        With the parameters' uncertainty.
    """
    uncertain = uncertain and not np.isnan(effects.variance_eb).any()
    if uncertain and effects.mixture is not None:
        return quantiles(effects.mixture.effects, (0.5 * (1 - level), 0.5 * (1 + level)))[:, None]
    z = standard_quantiles(state, effects, rule, level)
    if uncertain:
        return effects.mean_eb[..., None] + np.sqrt(effects.variance_eb)[..., None] * z
    return effects.mean[..., None] + np.sqrt(np.maximum(effects.variance, 0))[..., None] * z


def standard_quantiles(state: State, effects: Effects, rule: Rule | None, level: float, groups=None) -> np.ndarray:
    """Quantiles (G, S, 2) at both ends of an interval, as (quantile - mean) / sd of each posterior.

    Of the exact posterior for one effect, other than with Gaussian responses; normal otherwise.

    Parameters
    ----------
    rule : Rule or None
        The posteriors; None where they are normal.
    level : float
        Of the interval.
    groups : int (L,), optional
        Some levels: (L, S, 2).
    """
    from scipy.special import ndtri

    groups = np.arange(len(effects.mean)) if groups is None else groups
    tail = 0.5 * (1 - level)
    sd = np.sqrt(np.maximum(effects.variance[groups], 0))
    if rule is None or sd.shape[1] > 1 or len(state.terms) > 1:
        return np.broadcast_to(ndtri([tail, 1 - tail]), (*sd.shape, 2))
    return rule.standard_quantiles(groups, effects.mean[groups, 0], sd[:, 0], (tail, 1 - tail))[:, None]
