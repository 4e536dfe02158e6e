"""From a formula and a table to a fitted model: frame, problem, estimate, fit, one after the other."""

import contextlib
import time

import numpy as np

from jaxglmm.arguments import choice, devices as several_devices, flag, mapping, number, optional, takes, whole
from jaxglmm.design.aliases import without_aliases
from jaxglmm.design.checks import values_far_outside
from jaxglmm.design.sizes import what_stands_out
from jaxglmm.errors import UNFINISHED, ColumnsError, ConvergenceError, DataError, NotYetError
from jaxglmm.estimation import estimate_problem
from jaxglmm.fitted.fit import Fit
from jaxglmm.formula.frame import model_frame
from jaxglmm.model.families import get_family
from jaxglmm.modes.choice import SOLVERS
from jaxglmm.objectives.marginal import MOST_NODES
from jaxglmm.ops.computing import anywhere, computing
from jaxglmm.ops.threads import calm
from jaxglmm.problem import is_linear, make_problem
from jaxglmm.progress import Progress


METHODS = ("auto", "laplace", "agq", "joint")
PRECISIONS = ("double", "mixed", "single")
# Newton decrement at which a fit in single precision stops: a three-hundredth of a standard error.
_SINGLE_TOLERANCE = 1e-5
# How a search ended, in words.
_ENDS = {
    "limit": "limit of evaluations", "stalled": "no step improves beyond rounding",
    "not finite": "the log-likelihood, its gradient or its Hessian is no finite number where the search stands",
}  # fmt: skip


# What every function that fits takes alike.
RULES = {
    "method": choice(*METHODS),
    "n_agq": optional(whole(1, MOST_NODES)),
    "levels": optional(mapping),
    "full_rank": flag,
    "tol": number(above=0, at_most=1),
    "max_iterations": whole(0),
    "progress": optional(flag),
}


@takes(
    **RULES,
    reml=flag,
    precision=choice(*PRECISIONS),
    solver=choice(*SOLVERS),
    devices=optional(several_devices),
    throw=flag,
)
def fit(
    formula, data, *, family="gaussian", method="auto", n_agq=None, reml=False, weights=None, offset=None,
    penalty=None, prior=None, theta=None, levels=None, full_rank=True, precision="double",
    solver="auto", devices=None, tol=1e-12, max_iterations=100, progress=None, throw=True,
) -> Fit:  # fmt: skip
    """Fit a generalized linear mixed model.

    Maximises the marginal likelihood of

        eta = offset + X beta + z'b[g],   b[g] ~ N(0, Sigma),   y | eta ~ family

    Parameters
    ----------
    formula : str
        lme4 syntax, such as `"y ~ age + (1 + age | member)"`. Without a bar, a plain generalized linear model.
    data : pandas, polars or pyarrow table, mapping of arrays, or path to CSV(.gz) or Parquet
    family : str or family
        "gaussian", "binomial", "poisson", "negativebinomial", "gamma", "beta", or an object such as
        `Binomial(link="probit")`.
    method : {"auto", "laplace", "agq", "joint"}
        "auto": exact for Gaussian responses; otherwise quadrature with as many nodes as make a difference for one or
        two effects a group, and Laplace's approximation for more. With several grouping factors "agq" integrates the
        effects of the factor with most levels, one a level, and applies Laplace's approximation to the others, nested
        or crossed, of at most 10,000 effects where they cross; "auto" does so where Laplace's approximation would be
        off by a tenth of a standard error. "joint" maximises the joint likelihood of (beta, b) at a held `theta`,
        which is ridge regression on one-hot groups.
    n_agq : int, optional
        Nodes per effect for "agq", by default as many as make a difference; 1 is Laplace. Every fit is looked at once
        with more nodes: `fit.convergence` has the gap, and a warning where it matters.
    reml : bool
        Restricted maximum likelihood (Gaussian only).
    weights : str or array, optional
        Prior weights, at least 0. What a weight w of a row means is the same in fits, simulations, bootstrap and
        residuals:

        ==================  ==========  ===========================================================
        family              w is        that is
        ==================  ==========  ===========================================================
        gaussian            precision   Var(y) = sigma^2 / w
        binomial            trials      y is the proportion of w trials
        poisson             copies      w rows alike; y is their mean, which may have fractions of w
        negative binomial,  copies      w rows alike, with the response y each: not simulated, and in
        gamma, beta                     the bootstrap written out, for which w must be whole
        ==================  ==========  ===========================================================

        Rows of weight zero, and those without a trial, count nowhere: it is as if the table did not have them.
        So are those in which a column of weights is missing, which `n_dropped` counts.
    offset : str or array, optional
        Added to eta.
    penalty : ElasticNet, optional
        Penalty on the fixed effects: `jg.Ridge(lam)`, `jg.Lasso(lam)` or `jg.ElasticNet(lam, alpha)`, which state the
        criterion. Standard errors are then those of the penalised information for ridge (the posterior's under the
        normal prior that ridge is; they leave out the bias), and NaN for a lasso or elastic net. `fit.loglik` is the
        log-likelihood without the penalty, `fit.df` the effective number of parameters.
    prior : dict, optional
        {name: prior}: of a column, or of all fixed effects but the intercept under "beta", a `jg.NormalPrior` or
        `jg.StudentPrior`; of the standard deviations of a grouping factor's effects, or of all under "sd", a
        `jg.HalfStudentPrior`, `jg.HalfCauchyPrior`, or one that keeps them from zero, `jg.GammaPrior` and
        `jg.UniformShrinkagePrior`. The fit is at the posterior mode of (beta, sds, dispersion), flat in what has no
        prior, and standard errors come from the curvature there. `fit.loglik` is the log-likelihood alone.
    theta : dict, optional
        Covariance parameters to hold: {group: sd or covariance matrix}, absolute, on the link scale.
    levels : dict, optional
        Column -> list of levels in order, or "categorical". Such columns, grouping factors and `factor(x)` keep the
        text of a CSV file, leading zeros too.
    full_rank : bool
        False keeps a dummy column for every level. Otherwise, and without a penalty or prior, columns of factors for
        which the data determine no estimate are left out with a `DataWarning`: `fit.dropped`.
    precision : {"double", "mixed", "single"}
        "mixed" stores rows in float32, half of the memory, and computes in float64. "single" computes with rows in
        float32 too where there is no native kernel, and stops at a decrement of 1e-5. Gaussian models, and those of
        several grouping factors or with a penalty, compute in float64 always.
    solver : {"auto", "separable", "schur", "krylov"}
        With several grouping factors, how systems with all effects are solved; by default as the data's structure
        calls for, which `fit.convergence.solver` tells.
    devices : sequence of jax.Device, optional
        Spread the groups over these devices (one grouping factor, responses that are not Gaussian).
    tol : float
        Newton decrement at which to stop.
    max_iterations : int
    progress : bool, optional
        Show a progress line; by default on a terminal, when a fit takes long.
    throw : bool
        Raise when the optimiser did not converge; otherwise the fit says so in `fit.convergence`.

    Returns
    -------
    Fit

    Raises
    ------
    FormulaError, DataError
        Naming the column or argument, what was found and what to do.
    SeparationError, ConvergenceError

    References
    ----------
    Bates, Maechler, Bolker & Walker (2015), J. Stat. Softw. 67(1). Pinheiro & Bates (1995), J. Comp. Graph.
    Stat. 4, 12. Breslow & Clayton (1993), JASA 88, 9.
    """
    began = time.perf_counter()
    family = get_family(family)
    check_options(family, method, n_agq, reml, penalty, prior, precision, theta)
    frame = model_frame(
        formula, data, family=family, weights=weights, offset=offset, levels=levels, full_rank=full_rank
    )
    framed = laid_out = time.perf_counter()
    # Systems are of the columns here; where there are larger ones, `estimate_problem` knows of their order.
    order = np.inf if is_linear(family) or len(frame.terms) > 1 else len(frame.names)
    with computing(), calm(order), anywhere(), Progress(progress) as line, _ended(frame):
        if penalty is not None or prior is not None:
            if devices is not None:
                raise NotYetError("devices= goes with neither penalty= nor prior= yet: leave one of them out")
            from jaxglmm.penalised import estimate_penalised

            problem, estimate, posteriors = estimate_penalised(
                frame, family, penalty=penalty, prior=prior, method=method, n_agq=n_agq, theta=theta, solver=solver,
                precision=precision, max_iterations=max_iterations,
            )  # fmt: skip
        else:
            layout = {"estimated": theta is None, "precision": precision, "devices": devices}
            try:
                problem = make_problem(frame, family, **layout)
            except ColumnsError as error:
                frame = without_aliases(frame, error)
                problem = make_problem(frame, family, **layout)
            tol = max(tol, _SINGLE_TOLERANCE) if precision == "single" else tol
            laid_out = time.perf_counter()
            estimate, posteriors = estimate_problem(
                problem, method=method, n_agq=n_agq, reml=reml, theta=theta, solver=solver, tol=tol,
                max_iterations=max_iterations, callback=line.update,
            )  # fmt: skip
    convergence = estimate.convergence
    convergence.trace = line.steps
    convergence.warnings += values_far_outside(frame)
    convergence.timings["design"] = framed - began
    convergence.timings["layout"] = laid_out - framed
    convergence.timings["fit"] = time.perf_counter() - laid_out
    if throw and not convergence.converged:
        raise _unfinished(
            frame, _ENDS.get(convergence.reason, convergence.reason), f"after {convergence.iterations} evaluations, "
            f"with a Newton decrement of {convergence.decrement:.2g}", "raise max_iterations, or pass throw=False to "
            "inspect the fit",
        )  # fmt: skip
    return Fit.from_training(problem, estimate, posteriors)


def _unfinished(frame, why: str, where: str = "", remedy: str = "") -> ConvergenceError:
    """What a fit raises whose search did not end."""
    return ConvergenceError(
        f"{UNFINISHED} ({why}){where and ' '}{where}: {what_stands_out(frame)}. Look for values on another scale than "
        "the model's, as an exposure without its log, for columns that are nearly collinear, or groups whose "
        f"responses are all alike{remedy and '; '}{remedy}"
    )


@contextlib.contextmanager
def _ended(frame):
    """Where no system of a search can be solved any more, say what of the data may be why."""
    try:
        yield
    except np.linalg.LinAlgError as error:
        raise _unfinished(frame, str(error)) from error


def check_options(family, method, n_agq, reml, penalty, prior, precision, theta):
    """Refuse options of a fit that do not go together.

    Raises
    ------
    DataError, NotYetError
    """
    if n_agq is not None and method not in ("agq", "auto"):
        raise DataError(f"n_agq={n_agq} goes with method='agq'; found method={method!r}")
    if reml and (family.name, family.link) != ("gaussian", "identity"):
        raise DataError(f"reml=True is defined for gaussian responses; found family {family.name!r}")
    if precision == "single" and (penalty is not None or prior is not None):
        raise DataError(
            "precision='single' is too coarse for the optimality conditions of penalty= and prior=: use 'mixed', which "
            "stores rows in single precision and computes in double"
        )
    if reml and (penalty is not None or prior is not None):
        raise DataError("reml=True integrates over the fixed effects, which penalty= and prior= act on: leave it out")
    if method == "joint" and theta is None:
        raise DataError("method='joint' cannot estimate the covariance: pass theta={group: sd}, or use method='auto'")
