"""Generalized linear mixed models for very many groups, on JAX.

Every public name is found here and loaded on first use (PEP 562), so that `import jaxglmm` costs
milliseconds and `jaxglmm --help` does not start JAX.
"""

import os as _os
import sys as _sys
from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING


__version__ = "0.1.0"

if _TYPE_CHECKING:  # the table below, for type checkers; tests/test_architecture.py compares the two
    from .batch import fit_each as fit_each, fit_many as fit_many
    from .design.design import Design as Design, make_design as make_design
    from .errors import (
        ConvergenceError as ConvergenceError,
        ConvergenceWarning as ConvergenceWarning,
        DataError as DataError,
        DataWarning as DataWarning,
        FormulaError as FormulaError,
        NotYetError as NotYetError,
        SeparationError as SeparationError,
    )
    from .fitted.fit import Fit as Fit
    from .fitted.fits import Fits as Fits
    from .fitted.io import load as load
    from .fitting import fit as fit
    from .formula.frame import model_frame as model_frame
    from .inference.anova import anova as anova
    from .inference.pool import pool as pool
    from .model.families import (
        Bernoulli as Bernoulli,
        Beta as Beta,
        Binomial as Binomial,
        Gamma as Gamma,
        Gaussian as Gaussian,
        NegativeBinomial as NegativeBinomial,
        Poisson as Poisson,
    )
    from .model.penalties import ElasticNet as ElasticNet, Lasso as Lasso, Ridge as Ridge
    from .model.priors import (
        GammaPrior as GammaPrior,
        HalfCauchyPrior as HalfCauchyPrior,
        HalfStudentPrior as HalfStudentPrior,
        NormalPrior as NormalPrior,
        StudentPrior as StudentPrior,
        UniformShrinkagePrior as UniformShrinkagePrior,
    )
    from .objectives.gaussian import GaussianMarginal as GaussianMarginal
    from .objectives.joint import JointLikelihood as JointLikelihood
    from .objectives.laplace import LaplaceMarginal as LaplaceMarginal
    from .objectives.log_density import LogDensity as LogDensity
    from .objectives.params import Params as Params
    from .objectives.quadrature import AdaptiveQuadrature as AdaptiveQuadrature
    from .ops.native import native_status as native_status
    from .optimise.solution import Solution as Solution, solve as solve
    from .path_result import Path as Path
    from .paths import fit_path as fit_path
    from .pooling import ShrinkageComparison as ShrinkageComparison, compare_shrinkage as compare_shrinkage

_EXPORTS = {  # module -> its public names
    "batch": ("fit_each", "fit_many"),
    "design.design": ("Design", "make_design"),
    "errors": (
        "ConvergenceError",
        "ConvergenceWarning",
        "DataError",
        "DataWarning",
        "FormulaError",
        "NotYetError",
        "SeparationError",
    ),
    "fitted.fit": ("Fit",),
    "fitted.fits": ("Fits",),
    "fitted.io": ("load",),
    "fitting": ("fit",),
    "formula.frame": ("model_frame",),
    "inference.anova": ("anova",),
    "inference.pool": ("pool",),
    "model.families": ("Bernoulli", "Beta", "Binomial", "Gamma", "Gaussian", "NegativeBinomial", "Poisson"),
    "model.penalties": ("ElasticNet", "Lasso", "Ridge"),
    "model.priors": (
        "GammaPrior",
        "HalfCauchyPrior",
        "HalfStudentPrior",
        "NormalPrior",
        "StudentPrior",
        "UniformShrinkagePrior",
    ),
    "objectives.gaussian": ("GaussianMarginal",),
    "objectives.joint": ("JointLikelihood",),
    "objectives.laplace": ("LaplaceMarginal",),
    "objectives.log_density": ("LogDensity",),
    "objectives.params": ("Params",),
    "objectives.quadrature": ("AdaptiveQuadrature",),
    "ops.native": ("native_status",),
    "optimise.solution": ("Solution", "solve"),
    "path_result": ("Path",),
    "paths": ("fit_path",),
    "pooling": ("ShrinkageComparison", "compare_shrinkage"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


_forked = False  # whether this process was forked from one in which JAX ran, whose threads it lacks


def _note_fork() -> None:
    global _forked
    backends = _sys.modules.get("jax._src.xla_bridge")
    _forked = _forked or (backends is not None and getattr(backends, "backends_are_initialized", lambda: True)())


if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(after_in_child=_note_fork)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'jaxglmm' has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(_import_module(f"jaxglmm.{_HOME[name]}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
