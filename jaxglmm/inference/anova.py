"""Likelihood-ratio tests of nested models."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from jaxglmm.arguments import a_fit
from jaxglmm.errors import DataError
from jaxglmm.fitted.tables import native_table, text_column
from jaxglmm.inference.beside_zeros import Cone, beside_zeros, split
from jaxglmm.inference.boundary import Component, WorkingModel, reference
from jaxglmm.inference.parameters import parameters
from jaxglmm.ops.computing import computing


# What is simulated counts as larger than what is not from this factor on.
_LARGER = 1.1
# Share of the largest working weight below which rows say nothing, so that their variance is finite.
_LEAST = 1e-10
# Change of the statistic by more quadrature nodes that is said.
_NOTED = 0.1


def anova(*fits) -> Any:
    """Compare nested models by likelihood ratio.

    Parameters
    ----------
    *fits : Fit
        Two or more, fitted to the same rows by the same method; they are put in order of their parameters.

    Returns
    -------
    table of the first fit's kind
        One row a model: `formula`, `df`, `loglik`, `aic`, `bic`, and against the model above it `chisq` = 2 (difference
        of loglik), `chisq_df`, `p` and `reference`, the distribution that p comes from. A variance that the smaller
        model has at zero is at the end of its range, and so is 1/theta of a negative binomial model against the Poisson
        one; fixed effects and correlations between effects that vary already are not. With f parameters inside of
        their range and one variance at zero, its covariances with other effects among the f, the reference is half
        chi2(f), half chi2(f + 1); with several variances, a mixture with weights from the information at the smaller
        fit (see `jaxglmm.inference.boundary`). Where the smaller model itself has a variance at zero, or a correlation
        at +-1, there are two references: of a model that is there (see `jaxglmm.inference.beside_zeros`), and of one
        whose variance is positive and only its estimate zero. `p` is the larger, `reference` tells both.
        NaN where the models are not nested.

    Raises
    ------
    DataError
        When a fit has a penalty or a prior, or the fits are of different rows, links, families (other than Poisson and
        negative binomial) or kinds of likelihood, or REML fits of different fixed parts.

    References
    ----------
    Self & Liang (1987), JASA 82, 605. Shapiro (1988), Int. Stat. Rev. 56, 49. Stram & Lee (1994), Biometrics 50, 1171.
    """
    if len(fits) < 2:
        raise DataError("anova compares two or more fits: anova(smaller, larger)")
    for fit in fits:
        a_fit("each argument of anova", fit)
        fit._unpenalised("a likelihood-ratio test")
    for other in fits[1:]:
        _check(fits[0], other)
    fits = sorted(fits, key=_count)
    chisq, extra, p, reference = [np.nan], [np.nan], [np.nan], [""]
    for smaller, larger in pairwise(fits):
        statistic, difference = 2 * (larger.loglik - smaller.loglik), _count(larger) - _count(smaller)
        value, text = _reference(smaller, larger, statistic, difference)
        chisq.append(statistic)
        extra.append(difference)
        p.append(value)
        reference.append(text)
    return native_table(
        fits[0].state.native,
        {
            "formula": text_column([fit.formula for fit in fits]),
            "df": np.array([fit.df for fit in fits]),
            "loglik": np.array([fit.loglik for fit in fits]),
            "aic": np.array([fit.aic for fit in fits]),
            "bic": np.array([fit.bic for fit in fits]),
            "chisq": np.array(chisq, float),
            "chisq_df": np.array(extra, float),
            "p": np.array(p, float),
            "reference": text_column(reference),
        },
    )


def _reference(smaller, larger, statistic, extra) -> tuple[float, str]:
    if extra == 0:
        return np.nan, "none: the models have equally many parameters"
    added = _added(smaller, larger)
    if isinstance(added, str):
        return np.nan, f"none: the models are not nested ({added})"
    missing = [name for name in smaller.names if name not in larger.names]
    note = f"; are the models nested? {missing[0]!r} is only in the smaller one" if missing else ""
    gaps = [fit.convergence.checked_gap or 0.0 for fit in (smaller, larger)]
    if abs(change := 2 * (gaps[1] - gaps[0])) > _NOTED:
        note += f"; more quadrature nodes at the same parameters change chisq by {change:+.2g}"
    rows = larger._problem is not None and smaller._problem is not None
    information = _information(smaller, larger, added) if rows and added.sizes and added.sizes != [1] else None
    found = reference(statistic, added.free, added.sizes, information)
    if smaller.convergence.singular:
        try:
            there = _beside_zeros(smaller, larger, statistic, added) if rows else None
        except np.linalg.LinAlgError:  # there the rows tell nothing of some entry
            there = None
        if there is None:
            note += "; a variance of the smaller model is itself at its boundary, which this leaves out"
        else:
            first, second = (there, found) if there.p > _LARGER * found.p else (found, there)
            beside = f"; the larger of two, the other is p = {second.p:.3g} by {second.text}"
            found = first if first.p == second.p else replace(first, text=first.text + beside)
    return found.p, found.text + note


def _count(fit) -> int:
    """Parameters that were estimated."""
    return len(fit.names) + (len(fit.state.structure.diagonal) if _estimated(fit) else 0) + (fit.dispersion is not None)


def _estimated(fit) -> bool:
    """Whether covariances were, and not held by the caller."""
    return any(parameter.kind == "sd" for parameter in parameters(fit.state))


@dataclass(frozen=True)
class _Block:
    """Effects of the larger model that covary, in a basis whose first `old` effects vary in the smaller one too.

    The basis is `combinations` (S, S of the block) of the effects' columns; `names` are those of the `old` effects,
    where both models write them alike.
    """

    term: int
    effects: tuple[int, ...]
    combinations: np.ndarray
    old: int
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Added:
    """What the larger model has beyond the smaller one.

    Attributes
    ----------
    free : int
        Parameters that are inside of their range under the smaller model.
    blocks : list of _Block
    overdispersion : bool
        A negative binomial's 1/theta, zero under the Poisson model.
    """

    free: int
    blocks: list[_Block]
    overdispersion: bool

    @property
    def sizes(self) -> list[int]:
        """New effects of each covariance matrix that has some."""
        new = [len(block.effects) - block.old for block in self.blocks]
        return [1] * self.overdispersion + [size for size in new if size]


def _added(smaller, larger) -> _Added | str:
    """What is added, or why the models' random parts are not nested."""
    blocks, before = [], {}
    for term, factor in zip(smaller.state.terms, smaller.state.estimate.factors, strict=True):
        varies = _estimated(smaller) | (np.square(factor).sum(1) > 0)  # held at zero is not there
        before[term.group] = [name for name, kept in zip(term.names, varies, strict=True) if kept]
    for k, term in enumerate(larger.state.terms if _estimated(larger) else ()):
        found = _blocks(smaller, larger, k, before.pop(term.group, []))
        if isinstance(found, str):
            return found
        blocks += found
    lost = [group for group, effects in before.items() if effects and group not in larger.groups]
    if lost:
        return f"effects by {lost[0]!r} are only in the smaller one"
    overdispersion = larger.dispersion is not None and smaller.dispersion is None
    added = _Added(0, blocks, overdispersion)
    cone = sum(size * (size + 1) // 2 for size in added.sizes)
    return replace(added, free=_count(larger) - _count(smaller) - cone)


def _blocks(smaller, larger, k, effects) -> list[_Block] | str:
    """The blocks of the larger model's term k, given the effects by the same group in the smaller one."""
    term, out, lost = larger.state.terms[k], [], set(effects)
    for block in term.blocks:
        names = [term.names[a] for a in block]
        order = sorted(range(len(block)), key=lambda j, names=names: names[j] not in effects)
        written = np.linalg.inv(term.basis[np.ix_(block, block)]).T  # the columns as written, of the centred ones
        old = [names[j] for j in order if names[j] in effects]
        out.append(_Block(k, block, written[order], len(old), tuple(old)))
        lost -= set(names)
    own = next((t for t in smaller.state.terms if t.group == term.group), None)
    known = () if own is None else own.names
    for block in () if own is None or not _estimated(smaller) else own.blocks:
        names = {known[a] for a in block} - lost
        if sum(bool(names & {term.names[a] for a in other}) for other in term.blocks) > 1:
            return f"effects by {term.group!r} that are correlated in the smaller one are not in the larger"
    if own is None or not lost:
        return out
    why = f"{sorted(lost)[0]!r} by {term.group!r} is only in the smaller one"
    if len(term.blocks) > 1 or larger._problem is None or smaller._problem is None:
        return why
    # Other columns for the same effects, such as dummies of all levels of a factor for its intercept.
    z = larger._problem.frame.terms[k].z
    theirs = next(t for t in smaller._problem.frame.terms if t.group == term.group)
    wanted = theirs.z[[theirs.names.index(name) for name in effects]]
    combinations = np.linalg.lstsq(z.T, wanted.T, rcond=None)[0].T
    if np.abs(combinations @ z - wanted).max() > 1e-8 * np.abs(wanted).max():
        return why
    rest = np.linalg.svd(combinations)[2][len(combinations) :]
    return [_Block(k, term.blocks[0], np.vstack([combinations, rest]), len(combinations))]


def _information(smaller, larger, added: _Added) -> np.ndarray:
    """On the entries of covariance matrices that are zero under the smaller model, given all other parameters."""
    new, other = _overdispersion(smaller, larger, added), []
    for block in added.blocks:
        term = larger._problem.frame.terms[block.term]
        z = list(block.combinations @ term.z[list(block.effects)])
        for c in range(len(z)):
            for r in range(c, len(z)):
                (new if c >= block.old else other).append(Component(term.codes, z[c], z[r]))
    return _given_others(smaller, larger, new, other)


def _beside_zeros(smaller, larger, statistic, added: _Added):
    """Reference of a smaller model at a boundary itself; None where the models write its effects differently."""
    moving, other, cones = [], [], [Cone(_overdispersion(smaller, larger, added), 1, ())] * added.overdispersion
    for block in added.blocks:
        group = larger.state.terms[block.term].group
        own = next((t for t, known in enumerate(smaller.state.terms) if block.old and known.group == group), None)
        if block.old and (block.names is None or own is None):
            return None
        term = larger._problem.frame.terms[block.term]
        z = block.combinations @ term.z[list(block.effects)]
        before = []
        if own is not None:
            known, covariance = smaller.state.terms[own], smaller.state.column_covariances[own]
            at = {name: i for i, name in enumerate(block.names)}
            for part in known.blocks:
                names = [known.names[a] for a in part]
                if set(names) <= set(at):
                    before.append(([at[name] for name in names], covariance[np.ix_(part, part)]))
        inside, kept, cone = split(term.codes, z, block.old, before)
        moving, other, cones = moving + inside, other + kept, [*cones, cone]
    free = len(larger.names) - len(smaller.names)
    information = _given_others(smaller, larger, moving + [v for cone in cones for v in cone.entries], other)
    return beside_zeros(statistic, free, len(moving), cones, information)


def _overdispersion(smaller, larger, added: _Added) -> list[Component]:
    n = len(larger._problem.frame.y)
    return [Component(np.arange(n), np.ones(n), np.ones(n))] if added.overdispersion else []


def _given_others(smaller, larger, wanted, other) -> np.ndarray:
    """Information on some components given others, a Gaussian residual variance and the fixed effects."""
    frame, state = larger._problem.frame, smaller.state
    with computing():
        eta = smaller.predict(kind="link", effects="mode")
        weights = np.asarray(smaller.family.expected(eta, frame.weights, state.log_dispersion))
    weights = np.maximum(weights, _LEAST * weights.max())
    effects = [
        (term.codes, term.z, np.asarray(factor))
        for term, factor in zip(smaller._problem.frame.terms, state.estimate.factors, strict=True)
    ]
    if larger.family.name == "gaussian":
        scale = 1 / np.sqrt(frame.weights)
        other = [*other, Component(np.arange(len(frame.y)), scale, scale)]
    X, m = larger.state.estimate.scaling.rows(frame.X), len(wanted)
    total = WorkingModel(weights, X, effects).information([*wanted, *other])
    inner, cross = total[m:, m:], total[:m, m:]
    return total[:m, :m] - cross @ np.linalg.pinv(inner, hermitian=True) @ cross.T


def _check(first, other):
    a, b = first.state, other.state
    if a.n != b.n:
        raise DataError(
            f"the fits use different rows ({a.n:,} and {b.n:,}): rows with missing values in a column that only one "
            "formula uses are dropped from that fit alone; drop them from the data first"
        )
    if a.fingerprint != b.fingerprint:
        raise DataError(
            "the fits have different responses, weights or rows: their likelihoods cannot be compared; fit both to the "
            "same data"
        )
    if a.family.name != b.family.name and {a.family.name, b.family.name} != {"poisson", "negativebinomial"}:
        raise DataError(
            f"the fits have different families ({a.family.name} and {b.family.name}), which are not nested: compare "
            "them by aic"
        )
    if a.family.link != b.family.link:
        raise DataError(
            f"the fits have different links ({a.family.link} and {b.family.link}), which are not nested: compare them "
            "by aic"
        )
    kinds = {_kind(first), _kind(other)}
    if "joint" in kinds:
        raise DataError("a fit with method='joint' has no marginal likelihood to compare: fit with method='auto'")
    if "reml" in kinds and len(kinds) == 2:
        raise DataError("one fit is by REML and the other is not: fit both with reml=False (or both with reml=True)")
    if kinds == {"laplace", "agq"}:
        raise DataError(
            "one fit is by Laplace's approximation and the other by quadrature: fit both with the same method="
        )
    if kinds == {"reml"} and set(first.names) != set(other.names):
        raise DataError(
            "REML likelihoods of models with different fixed effects cannot be compared "
            f"({_listed(first)} against {_listed(other)}): fit both with reml=False"
        )


def _kind(fit) -> str:
    # Without random effects the likelihood is exact, and compares with any approximation.
    return "glm" if not fit.groups and fit.method != "reml" else fit.method


def _listed(fit) -> str:
    return ", ".join(fit.names) or "no fixed effect"
