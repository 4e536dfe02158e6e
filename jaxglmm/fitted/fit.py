"""The fitted model that users hold. Everything it holds or returns is numpy or a table of the caller's kind."""

import math
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from jaxglmm.arguments import (
    a_prior,
    choice,
    flag,
    names,
    number,
    numbers,
    optional,
    path as paths,
    seed as seeds,
    share,
    takes,
    text,
    whole,
)
from jaxglmm.errors import DataError
from jaxglmm.fitted.effects import Kept, intervals
from jaxglmm.fitted.estimates import Estimates
from jaxglmm.fitted.group_effects import effects_of
from jaxglmm.fitted.history import history_of
from jaxglmm.fitted.posterior import check_level, ranef_table, term_index
from jaxglmm.fitted.predict import check_options, new_rows, predict_rows, simulate, training_rows
from jaxglmm.fitted.refits import Refits
from jaxglmm.fitted.rules import Rule, rule_of
from jaxglmm.fitted.scoring import only_factor, own_prior, score_table
from jaxglmm.fitted.state import State, state_of
from jaxglmm.fitted.tables import native_table


class Fit(Estimates, Refits):
    """A fitted generalized linear mixed model, made by `jaxglmm.fit` or `jaxglmm.load`.

    Attributes
    ----------
    formula : str
    family : family object
    method : str
        "laplace", "agq", "ml", "reml", "joint" or "glm".
    n_agq : int or None
        Quadrature nodes per effect.
    names : tuple of str
        Of the fixed effects.
    dropped : tuple of str
        Columns of factors that were left out, as lme4 does: empty cells, nested levels.
    n, n_dropped : int
        Rows used, and rows left out for missing values. Rows of weight zero are neither; where weights are copies of a
        row (see `jaxglmm.fit`) and whole numbers, the copies are counted.
    groups : dict of str to int
        Levels of each grouping factor.
    modelled : str or None
        The event whose probability is modelled: "P(outcome = severe)".
    loglik : float
        Maximised log-likelihood with all constants; the restricted one under REML.
    df : int
        Parameters estimated: fixed effects, covariance parameters (those on the boundary too), dispersion. Of a
        penalised fit the effective number.
    convergence : Convergence
        How the estimate was reached: decrement, passes, nodes and gap to Laplace, singular, warnings, timings.
    state : State
        What `save` writes: estimates, posteriors and the formula.
    """

    def __init__(self, state: State, problem: Any = None, kept: Kept | None = None):
        self.state = state
        self._problem = problem
        self._kept = kept or Kept({}, None)

    @classmethod
    def from_training(cls, problem, estimate, posteriors) -> "Fit":
        """From the optimiser's results (see `jaxglmm.fitting`)."""
        return cls(state_of(problem, estimate, posteriors), problem)

    # --- Effects of the groups ---------------------------------------------------------------------------

    @takes(group=optional(text), interval=optional(share()), uncertainty=flag, prior=optional(a_prior))
    def ranef(
        self, group: str | None = None, *, interval: float | None = None, uncertainty: bool = True, prior=None
    ) -> Any:
        """Effects of every level of a grouping factor given the estimated parameters.

        Parameters
        ----------
        group : str, optional
            Not needed when there is only one.
        interval : float, optional
            Level of equal-tailed posterior intervals, such as 0.95: quantiles of the exact posterior for one effect a
            group, normal ones for several.
        uncertainty : bool
            Whether the intervals hold the uncertainty of the parameters: the posterior is stretched to `sd_eb`, or is a
            mixture over them (see `effects_method`).
        prior : prior of a standard deviation, optional
            Such as `jg.HalfStudentPrior(3, 2.5)`: that which `sd_eb` is integrated under, where it is (see
            `effects_method`). By default the prior of the fit, or the default one.

        Returns
        -------
        table of the caller's kind
            One row a level and effect: `level`, `term`, `n` (rows), `estimate` and `sd` (conditional mode and the
            curvature's standard deviation, lme4's), `mean` and `sd_mean` (of the posterior given the parameters),
            `sd_eb` (with the parameters' uncertainty; how is told by `effects_method`), `reliability` =
            1 - Var(b | y)/Var(b), within [0, 1]; `lower` and `upper` where an interval is asked for.

        Raises
        ------
        DataError
            For a factor that the model does not have, or intervals of a fit that was saved without its rows.
        """
        at = term_index(self.state, group)
        effects = self._effects(at, prior).of_columns(self.state.terms[at].basis)
        if interval is None:
            return ranef_table(self.state, at, effects, None)
        check_level(interval)
        if len(self.state.terms) == 1 and not self.has_rows and self._rule() is not None:
            self._history("ranef(interval=...)")
        rule = self._rule() if len(self.state.terms) == 1 else None
        ends = intervals(self.state, effects, rule, interval, uncertainty)
        return ranef_table(self.state, at, effects, ends)

    @takes(group=optional(text))
    def effects_method(self, group: str | None = None) -> str:
        """How `sd_eb` of `ranef` was reached.

        "delta" is Var(b | y, psi) + d'V d, with d the derivatives of the posterior mean in the parameters psi and V
        their covariance. "integrated", where the standard error of the logarithm of the groups' standard deviation is
        0.22 or more (one effect a group), is the variance over the posterior of the parameters, and intervals end at
        quantiles of the mixture. The prior of that standard deviation is the one that the fit was given, or
        `UniformShrinkagePrior(0.75)` (times the standard deviation of the response for the identity link), whose median
        is 0.75; `summary` names it.
        "given": none, several factors. "updated", "approximated": with the parameters as uncertain as before `update`.
        """
        return self._effects(term_index(self.state, group)).how

    @property
    def sd_prior(self) -> str | None:
        """Prior of the standard deviation that effects are integrated under, where they are; else None."""
        if 0 in self._kept.effects or self._problem is None:
            return (self._kept.effects[0].prior if 0 in self._kept.effects else "") or None
        from jaxglmm.inference.theta_posterior import needs_integration, sd_prior

        return str(sd_prior(self.state, self._problem)) if needs_integration(self.state) else None

    def _effects(self, term: int, prior=None):
        """Effects of a term; under another `prior` of the standard deviation than the default one they are not kept."""
        if prior is not None:
            if self._problem is None:
                raise DataError("prior= needs the rows of the fit, which a saved model does not hold: leave it out")
            return effects_of(self.state, self._problem, term, prior)
        if term not in self._kept.effects:
            found = effects_of(self.state, self._problem, term)
            several = len(self.state.terms) > 1 and self._problem is not None
            self._kept.effects[term] = self._joint().effects(term, self.state, found) if several else found
        return self._kept.effects[term]

    def _rule(self) -> Rule | None:
        """What posteriors of the only grouping factor's effects are averaged over by; None where they are normal."""
        if self._kept.rule is None and self.has_rows:
            history, layout = self._history("posteriors of groups")
            self._kept.rule = rule_of(self.state, history, own_prior(self.state), layout)
        return self._kept.rule

    def _joint(self):
        """The effects of several factors together."""
        if self._kept.joint is None:
            from jaxglmm.fitted.joint import joint_of

            self._training("the covariance of several factors' effects")
            self._kept.joint = joint_of(self.state, self._problem)
        return self._kept.joint

    def _history(self, what: str):
        """The rows that posteriors need, with their layout where there is one."""
        only_factor(self.state, what)
        if self._kept.history is not None:
            return self._kept.history, None
        if self._problem is None:
            raise DataError(
                f"{what} needs the rows of the fit, which this saved model does not hold: pass data=, or save the fit "
                "with rows=True"
            )
        return history_of(self._problem.frame, 0, self.state.estimate.beta), self._problem.storage

    @takes(
        group=optional(text),
        term=optional(text),
        top=optional(number(above=0)),
        alpha=share(0.1),
        threshold=optional(number()),
        interval=share(),
        r_values=flag,
        order=text,
    )
    def rank(
        self, group: str | None = None, *, term: str | None = None, top: float | int | None = None, alpha: float = 0.1,
        order: str = "rank", threshold: float | None = None, interval: float = 0.95, r_values: bool = False, data=None,
    ) -> Any:  # fmt: skip
        """Rank the levels of a grouping factor; see `jaxglmm.fitted.rank_table.rank_table`."""
        from jaxglmm.fitted.rank_table import rank_table

        return rank_table(
            self, group, term=term, top=top, alpha=alpha, order=order, threshold=threshold, interval=interval,
            r_values=r_values, data=data,
        )  # fmt: skip

    @property
    def has_rows(self) -> bool:
        """Whether the fit has its rows: it was made in this process, or saved with `rows=True`."""
        return self._problem is not None or self._kept.history is not None

    def update(self, rows) -> "Fit":
        """This fit after further rows of its groups, the parameters frozen.

        The new rows come on top of what the fit knows of its members: exactly where it has its rows (`has_rows`) or
        responses are Gaussian; otherwise a normal prior of conditional mode and curvature stands for their earlier
        rows, which is an approximation. Members that it does not know start from N(0, Sigma). `effects_method` says
        which; updates one after the other are as one of all rows where they are exact.

        Parameters
        ----------
        rows : table, mapping of arrays or path
            With the response and all columns of the formula.

        Returns
        -------
        Fit
            With the posteriors given all rows, to predict, rank, save and update again. Parameters, standard errors and
            log-likelihood are those of this fit, and so is the parameters' uncertainty in `sd_eb` and intervals; it has
            no training rows for what needs these (residuals, profiles).

        Raises
        ------
        DataError
            Naming the column.
        """
        from jaxglmm.fitted.update import updated

        state, kept = updated(self, rows)
        return Fit(state, kept=kept)

    @takes(interval=optional(share()), out=optional(paths))
    def score(self, history, *, interval: float | None = None, out=None) -> Any:
        """Posteriors of members from their own rows, with the parameters of this fit frozen.

        Members need not have been in the fit; those who were are scored from the rows of `history` alone.

        Parameters
        ----------
        history : table, mapping of arrays or path
            Rows with the response and all columns of the formula.
        interval : float, optional
            Level of the posterior intervals `lower`, `upper`.
        out : path, optional
            A .parquet or .csv file to write instead of returning a table. `history` is then a file of any length, read
            in chunks; what was done before a crash is not done again (see `jaxglmm.fitted.stream.score_file`).

        Returns
        -------
        table of the kind of `history`, or None with `out`
            One row a member and effect, sorted: `level`, `term`, `n`, `estimate`, `sd`, `mean`, `sd_mean`,
            `reliability`; see `ranef`.

        Raises
        ------
        DataError
            Naming the column.
        """
        if interval is not None:
            check_level(interval)
        if out is not None:
            from jaxglmm.fitted.stream import score_file

            return score_file(self.state, history, out, interval=interval)
        return score_table(self.state, history, interval)

    # --- Predictions ---------------------------------------------------------------------------------------

    @takes(
        kind=choice("response", "link"),
        effects=choice("conditional", "mode", "marginal", "population"),
        interval=optional(share()),
        new_levels=choice("integrate", "population", "error"),
        uncertainty=flag,
        prior=optional(a_prior),
    )
    def predict(
        self, new=None, kind="response", effects="conditional", interval=None, new_levels="integrate",
        uncertainty=True, prior=None,
    ) -> Any:  # fmt: skip
        """Predict rows.

        Parameters
        ----------
        new : table, mapping of arrays or path, optional
            The rows of the fit by default.
        kind : {"response", "link"}
            mu, or eta = offset + X beta + z'b.
        effects : {"conditional", "mode", "marginal", "population"}
            On the response scale: "conditional" is the posterior mean of mu given the estimates; "mode" plugs in the
            conditional modes (lme4's predict); "marginal" averages mu over N(0, Sigma) in every row; "population"
            sets b = 0. On the link scale the first two use the conditional modes and the others b = 0. "marginal" and
            "population" need no group: the rows' levels may be missing, and so may the column.
        interval : float, optional
            Level of intervals for mu or eta, such as 0.95, with what is not known of a row's group in them: the
            posterior of a known level's effect, N(0, Sigma) for new levels and under "marginal", Sigma uncertain too;
            see `jaxglmm.fitted.predict_intervals.ends`.
        new_levels : {"integrate", "population", "error"}
            Rows whose group the fit has not seen: averaged over N(0, Sigma) on the response scale (b = 0 on the link
            scale), b = 0, or an error.
        uncertainty : bool
            Whether intervals hold the uncertainty of the parameters.
        prior : prior of a standard deviation, optional
            As in `ranef`.

        Returns
        -------
        (m,), or a table of the caller's kind
            NaN in rows with a missing value. With an interval a table of `prediction`, `lower` and `upper`.

        Raises
        ------
        DataError
            Naming the column, level or option.
        """
        check_options(kind, effects, interval, new_levels)
        if new is None:
            rows = training_rows(self._training("predict() without new rows"), self.state.estimate.beta)
        else:
            rows = new_rows(self.state, new, groups=effects in ("conditional", "mode"), slopes=effects != "population")
        found = predict_rows(self, rows, kind, effects, new_levels)
        if interval is None:
            return found
        from jaxglmm.fitted.predict_intervals import ends

        lower, upper = ends(self, rows, effects, new_levels, kind, interval, uncertainty, prior)
        return native_table(self.state.native, {"prediction": found, "lower": lower, "upper": upper})

    def marginal_coefficients(self, data=None) -> Any:
        """Population-averaged coefficients: of g(E mu), the mean over groups, where `fixef` are those within a group.

        Parameters
        ----------
        data : table, mapping of arrays or path, optional
            Rows whose columns the mean is projected on; those of the fit, with their weights, by default.

        Returns
        -------
        table of the caller's kind
            `name`, `estimate`, `se` (delta method), `conditional` (that of `fixef`); see
            `jaxglmm.fitted.marginal_coefficients` for the formula.

        Raises
        ------
        DataError
            For a fit that was loaded and no data, or naming the column.
        """
        from jaxglmm.fitted.marginal_coefficients import marginal_coefficients

        if data is None:
            frame = self._training("marginal_coefficients() without data")
            return marginal_coefficients(self.state, training_rows(frame, self.state.estimate.beta), frame.weights)
        rows = new_rows(self.state, data, groups=False)
        return marginal_coefficients(self.state, rows, np.ones(len(rows.eta)))

    @takes(kind=choice("response", "link"))
    def loo(self, kind: str = "response") -> np.ndarray:
        """Predict each row of the fit from the other rows of its group; see `leave_one_out`.

        Parameters
        ----------
        kind : {"response", "link"}
            The posterior mean of mu, or eta at the conditional mode.

        Returns
        -------
        (n,)

        Raises
        ------
        DataError
            For a fit that was saved without its rows.
        """
        from jaxglmm.fitted.leave_one_out import leave_one_out

        return leave_one_out(self.state, self._history("loo()")[0], kind)

    @cached_property
    def fitted(self) -> np.ndarray:
        """mu at the conditional modes in the rows of the fit, (n,): lme4's fitted()."""
        return self.predict(effects="mode")

    @takes(kind=text, seed=seeds)
    def residuals(self, kind: str = "response", seed=0) -> np.ndarray:
        """Residuals of the rows of the fit; see `jaxglmm.fitted.residuals.residuals`."""
        from jaxglmm.fitted.residuals import residuals

        return residuals(self, kind, seed)

    @takes(n=whole(1, 10**7), seed=seeds)
    def simulate(self, n: int = 1, seed=None) -> np.ndarray:
        """Responses from the fitted model, with random effects drawn anew.

        Parameters
        ----------
        n : int
            Number of data sets.
        seed : int or numpy.random.Generator, optional

        Returns
        -------
        (rows, n)
            In the form that the family uses: 0/1 or proportions for the binomial, means of as many counts as a row's
            weight says for Poisson (see `jaxglmm.fit` for what a weight is).

        Raises
        ------
        DataError
            For a fit that was loaded; and for weights that are copies of a row where one response cannot stand for
            them (negative binomial, gamma, beta).
        """
        return simulate(self.state, self._training("simulate"), n, seed)

    # --- Inference -----------------------------------------------------------------------------------------

    def summary(self):
        """What was fitted and found, in the manner of lme4; prints as a table, shows as HTML in notebooks."""
        from jaxglmm.fitted.summary import summarise

        return summarise(self)

    @takes(method=choice("auto", "wald", "profile"), level=share(), parameters=optional(names))
    def confint(self, method: str = "auto", level: float = 0.95, parameters=None) -> Any:
        """Confidence intervals of fixed effects, standard deviations, correlations and dispersion.

        Parameters
        ----------
        method : {"auto", "wald", "profile"}
            "wald": estimate +- normal quantile x standard error; sds and dispersion on the log scale, correlations on
            the scale of atanh. Where an estimate is on its boundary there is no standard error: what is known is one
            end (0 of an sd, -1 or 1 of a correlation), the other is NaN; a correlation beside a variance of zero may
            be anything in [-1, 1]. "profile": the values that a likelihood-ratio test at this level keeps (under REML,
            of the ordinary likelihood; by quadrature with as many nodes as the ends need, at least the fit's).
            "auto": "wald" for fixed effects, and "profile" for sds, correlations and a
            negative binomial's theta, where the log-likelihood is no parabola. Those whose standard error on that scale
            is below 0.05 have Wald limits, which are then close and cost no evaluation of millions of rows; so have
            fits for which there is no profile: loaded ones, whose rows are not there, those with a penalty or a prior,
            and those of several grouping factors by conjugate gradients. The column `method` tells, "boundary" where
            an end is NaN: fit the rows anew for it, with `method="profile"`.
        level : float
        parameters : list of str, optional
            Names as in the table; all by default.

        Returns
        -------
        table of the caller's kind
            `parameter`, `estimate`, `lower`, `upper`, `method`.
        """
        from jaxglmm.inference.intervals import confint

        return confint(self, method, level, parameters)

    @takes(rhs=numbers)
    def test(self, contrasts, rhs=0.0):
        """Wald tests of linear combinations of the fixed effects; see `jaxglmm.inference.contrasts.test_contrasts`."""
        from jaxglmm.inference.contrasts import test_contrasts

        return test_contrasts(self.state, contrasts, rhs)

    @takes(group=optional(text))
    def icc(self, group: str | None = None) -> float:
        """Intraclass correlation on the latent scale; see `jaxglmm.fitted.residuals.intraclass`."""
        from jaxglmm.fitted.residuals import intraclass

        return intraclass(self.state, group)

    @property
    def overdispersion(self) -> dict[str, float]:
        """Pearson chi-squared of rows given the others of their groups, over its degrees of freedom.

        Near 1 where the family's variance fits; see `jaxglmm.fitted.residuals.overdispersion`.
        """
        from jaxglmm.fitted.residuals import overdispersion

        return overdispersion(self)

    # --- Outside -------------------------------------------------------------------------------------------

    @takes(path=paths, rows=flag)
    def save(self, path, *, rows: bool = False) -> None:
        """Write the model to a folder, without training rows unless asked; see `jaxglmm.fitted.io.save`."""
        from jaxglmm.fitted.io import save

        save(self, path, rows=rows)

    def to_dict(self) -> dict:
        """The fit as plain values for JSON; what cannot be a number there (NaN) is None."""
        plain = {
            "formula": self.formula,
            "family": _family_name(self.family),
            "method": self.method,
            "n_agq": self.n_agq,
            "n": self.n,
            "groups": self.groups,
            "loglik": self.loglik,
            "aic": self.aic,
            "bic": self.bic,
            "df": self.df,
            "fixef": self.fixef,
            "fixef_se": self.fixef_se,
            "varcorr": self.varcorr,
            "dispersion": self.dispersion,
            "convergence": asdict(self.convergence),
        }
        return {name: _finite(value) for name, value in plain.items()}

    def __repr__(self) -> str:
        return (
            f"<jaxglmm.Fit {self.formula!r}, {self.family.name}({self.family.link}), {self.method}, "
            f"loglik {self.loglik:.4f}>"
        )


def _family_name(family) -> str:
    """ "binomial", or "binomial(probit)" where the link is not the default one."""
    return family.name if family.link == type(family)().link else f"{family.name}({family.link})"


def _finite(value):
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
