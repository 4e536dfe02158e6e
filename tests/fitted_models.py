"""Fits that several test files look at, made once a process: compiling takes longer than fitting."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

import jaxglmm as jg


CBPP = "cbind(incidence, size - incidence) ~ period + (1 | herd)"


def of_columns(fit: jg.Fit, covariance: np.ndarray) -> np.ndarray:
    """Covariance of a fit's parameters, those of the columns as written in place of those of the columns in use."""
    J, p = np.eye(len(covariance)), len(fit.names)
    J[:p, :p] = fit.state.estimate.scaling.to_columns()
    return J @ covariance @ J.T


@cache
def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv")


@cache
def cbpp(folder: Path, formula: str = CBPP, method: str = "laplace") -> jg.Fit:
    return jg.fit(formula, table(folder, "cbpp"), family="binomial", method=method, levels={"period": "categorical"})


@cache
def sleepstudy(folder: Path, formula: str = "Reaction ~ Days + (Days | Subject)", reml: bool = False) -> jg.Fit:
    return jg.fit(formula, table(folder, "sleepstudy"), reml=reml)


@cache
def visits() -> pd.DataFrame:
    """Binary visits of 40 named members, 1 to 9 a member, with an exposure and a missing value."""
    rng = np.random.default_rng(4)
    member = np.repeat([f"m{i:02d}" for i in range(40)], rng.integers(1, 10, 40))
    n = len(member)
    x, arm = rng.normal(size=n), rng.choice(["placebo", "drug"], n)
    b = dict(zip(np.unique(member), 1.5 * rng.normal(size=40), strict=True))
    eta = 0.3 + x - 0.5 * (arm == "drug") + np.array([b[m] for m in member])
    data = pd.DataFrame({"sick": np.where(rng.uniform(size=n) < 1 / (1 + np.exp(-eta)), "yes", "no"), "x": x})
    data["arm"], data["member"], data["effort"] = arm, member, rng.uniform(0, 1, n)
    data.loc[5, "x"] = np.nan
    return data


@cache
def members() -> jg.Fit:
    return jg.fit("sick ~ x + arm + offset(effort) + (1 | member)", visits(), family="binomial", n_agq=25, method="agq")
