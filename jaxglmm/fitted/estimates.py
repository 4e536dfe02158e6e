"""What a fit found, as plain numbers and names."""

import math
from functools import cached_property
from typing import Any

import numpy as np

from jaxglmm.arguments import choice
from jaxglmm.errors import DataError
from jaxglmm.fitted.posterior import variance_table
from jaxglmm.fitted.state import State
from jaxglmm.fitted.vcov import Vcov


class Estimates:
    """The estimates of a fit. Documented with `Fit`, which adds what is worked out from them."""

    state: State
    _problem: Any

    @property
    def formula(self) -> str:
        return self.state.spec.formula

    @property
    def family(self):
        return self.state.family

    @property
    def method(self) -> str:
        return self.state.estimate.method

    @property
    def n_agq(self) -> int | None:
        return self.state.estimate.n_agq

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.state.spec.fixed.names)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Columns of factors that were left out because the data determine no estimate for them: empty cells of an
        interaction, levels that are nested in others."""
        return tuple(self.state.spec.fixed.dropped)

    @property
    def n(self) -> int:
        return self.state.n

    @property
    def n_dropped(self) -> int:
        return self.state.n_dropped

    @property
    def groups(self) -> dict[str, int]:
        return {term.group: len(term.levels) for term in self.state.terms}

    @property
    def modelled(self) -> str | None:
        return self.state.modelled

    @property
    def convergence(self):
        return self.state.estimate.convergence

    @property
    def fixef(self) -> dict[str, float]:
        """Fixed effects on the link scale, by name."""
        return dict(zip(self.names, self.state.estimate.beta.tolist(), strict=True))

    @property
    def fixef_se(self) -> dict[str, float]:
        """Their standard errors: square roots of the diagonal of `vcov`."""
        return dict(zip(self.names, np.sqrt(np.diag(self.vcov)).tolist(), strict=True))

    @cached_property
    def vcov(self) -> Vcov:
        """Covariance of the fixed effects (p, p).

        From the observed information of all parameters together; under REML given the variance parameters, as lmer
        has it. An array that may also be called: `fit.vcov("cluster")` is the cluster-robust covariance (see
        `jaxglmm.inference.cluster`), `fit.vcov("model")` the array itself.
        """
        return Vcov.of(self.state.estimate.vcov, self._vcov)

    def _vcov(self, kind: str = "model") -> np.ndarray:
        choice("model", "cluster")("kind", kind)
        if kind == "model":
            return np.array(self.vcov)
        from jaxglmm.inference.cluster import cluster_vcov

        self._training("the cluster-robust covariance")
        self._unpenalised("the cluster-robust covariance")
        return cluster_vcov(self.state, self._problem)

    @property
    def loglik(self) -> float:
        return float(self.state.estimate.loglik)

    @property
    def deviance(self) -> float:
        """-2 loglik (not lme4's conditional deviance)."""
        return -2 * self.loglik

    @property
    def penalised(self) -> Any:
        """Of a penalty or prior, a dict: "text", "df", "kkt", "lam", "alpha" (see `Estimate`); else None."""
        return self.state.estimate.penalised

    @property
    def df(self) -> float:
        estimate = self.state.estimate
        if estimate.penalised is not None:
            return float(estimate.penalised["df"])
        estimated = np.diag(estimate.covariance) > 0
        if self.family.at_limit(self.state.log_dispersion):
            estimated[-1] = True
        # What the caller held has no variance either, but it was not estimated.
        return int(np.sum(estimated | (estimate.boundary & estimate.convergence.singular)))

    @property
    def aic(self) -> float:
        """-2 loglik + 2 df."""
        return -2 * self.loglik + 2 * self.df

    @property
    def bic(self) -> float:
        """-2 loglik + df log n, n the number of rows."""
        return -2 * self.loglik + math.log(self.n) * self.df

    @property
    def varcorr(self) -> list[dict]:
        """Random effects: a list of {group, name, variance, sd, corr: {other: r}}, on the link scale."""
        return variance_table(self.state)

    @property
    def dispersion(self) -> dict | None:
        """{name, value}, or None for families without one.

        "sigma": residual sd (Gaussian). "theta": Var = mu + mu^2/theta (negative binomial). "shape": Var = mu^2/shape
        (gamma). "phi": Var = mu(1-mu)/(1+phi) (beta). theta is infinite where there is no overdispersion and the
        Poisson fit, the limit, is as good as any: an estimate on the boundary, without a standard error.
        """
        value = self.state.estimate.dispersion
        if value is None:
            return None
        limit = self.family.at_limit(self.state.log_dispersion)
        return {"name": self.family.dispersion_name, "value": np.inf if limit else float(value)}

    def _unpenalised(self, what: str) -> None:
        """Refuse what is defined for maximum likelihood.

        Raises
        ------
        DataError
        """
        if self.penalised is not None:
            raise DataError(f"{what} is defined for fits by maximum likelihood; this one has a penalty or a prior")

    def _training(self, what: str):
        """The rows of the fit.

        Raises
        ------
        DataError
            When the fit was loaded from a file.
        """
        if self._problem is None:
            raise DataError(
                f"{what} needs the rows of the fit, which a saved model does not hold: pass the data to predict(), or "
                "fit again"
            )
        return self._problem.frame
