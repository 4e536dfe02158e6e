"""Maximise a marginal likelihood anew after the weights of the rows have changed, as in the folds of a validation.

The optimum of all rows lies within a few standard errors of a fold's. Newton's method begins there and takes its last
step without another evaluation: the error of a step, in standard errors, is about the decrement before it times the
relative standard error of the standard deviation, so that with very many groups one evaluation is enough.
"""

import numpy as np

from jaxglmm.ops import fused
from jaxglmm.optimise.estimate import Convergence, Estimate
from jaxglmm.optimise.marginal_fit import Search, Solution, newton_step
from jaxglmm.optimise.node_ladder import padded_nodes


_ERROR, _LOOSEST = 3e-3, 3.0  # about, in standard errors, of the last step; the largest decrement before it
# Standard errors of log tau at which tau = 0 is out of the question: of the start, which saw more rows, and of the end.
_CLEAR, _STILL_CLEAR = 0.1, 0.2


def refit_marginal(problem, near: Estimate, *, held: bool) -> Solution | None:
    """Refit by quadrature or Laplace's approximation, on as many nodes as `near`, to a few thousandths of a
    standard error or better.

    Parameters
    ----------
    problem : Problem
        With one scalar effect a group and a design.
    near : Estimate
        Of the same model and rows under other weights.
    held : bool
        Whether the standard deviation stays what it is there.

    Returns
    -------
    Solution or None
        None where the start does not show that the optimum lies inside of the parameter space, and where Newton's
        method does not get there at once.
    """
    design, family, scaling, n_agq = problem.design, problem.family, problem.scaling, near.convergence.n_agq
    p, factor = len(near.beta), scaling.factor_from_columns(near.factors[0])
    if n_agq is None or factor.shape != (1, 1) or not (near.convergence.converged and factor[0, 0] > 0):
        return None
    errors = np.sqrt(np.diag(near.covariance)[p:])  # of log tau, which is 0 where it was held, and log dispersion
    if not (0 < errors[0] and errors.max() < _CLEAR):
        return None
    log_phi = 0.0 if near.dispersion is None else float(np.log(near.dispersion))
    x = np.concatenate([scaling.beta_from_columns(near.beta), np.ones(1), [log_phi]])
    free = np.concatenate([np.ones(p, bool), [not held, family.dispersion_name is not None]])
    tol = min(_ERROR / errors.max(), _LOOSEST)
    search = Search(family, design, True, None, free, np.arange(p + 2) == p, factor, tol, 10)
    result = search.climb(x, padded_nodes(n_agq, 1))
    if not result.converged:
        return None
    x = result.x + newton_step(result, free)
    if not held and not np.linalg.pinv(-result.hessian[np.ix_(free, free)])[p, p] < (_STILL_CLEAR * x[p]) ** 2:
        return None
    convergence = Convergence(
        converged=True, decrement=float(result.decrement), n_agq=n_agq, iterations=search.evaluations,
        passes=float(search.evaluations), kernels="native" if fused.covers(family, design) else "plain",
    )  # fmt: skip
    back = np.linalg.inv(search.jacobian)
    hessian = back.T @ result.hessian @ back
    return Solution(search.psi(x), free, hessian, result.value, np.asarray(search.modes), convergence)
