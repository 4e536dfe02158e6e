"""The likelihood of a fit as a function of x = (coefficients, entries of Lambda, log dispersion), see `coordinates`.

The optimisers work in scaled columns of the effects too and, for Gaussian models, with beta and sigma profiled out.
Profiles and scores need each parameter as a coordinate of its own: the same compiled evaluations serve, and small
matrices on the host change coordinates. No row is laid out again.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.factor_products import FactorProducts
from jaxglmm.errors import NotYetError
from jaxglmm.inference.coordinates import coordinates, to_scaled
from jaxglmm.inference.several_likelihood import SeveralLikelihood
from jaxglmm.model.centring import is_identity
from jaxglmm.modes.choice import choose_solver
from jaxglmm.objectives.evaluate import evaluate, evaluate_glm
from jaxglmm.objectives.gaussian_expansion import expand as expand_one
from jaxglmm.objectives.gaussian_several import Slopes, expand_factors
from jaxglmm.optimise.dispersion import LARGEST, dispersion_limit
from jaxglmm.optimise.node_ladder import padded_nodes
from jaxglmm.problem import with_rows


class Likelihood:
    """Log-likelihood with gradient and Hessian: `likelihood(x) -> (value, gradient (m,), hessian (m, m))`.

    Under REML it is the ordinary likelihood, as in lme4's profiles. For quadrature, with the fit's number of nodes
    unless more are asked for. Call with x64 on.

    Parameters
    ----------
    state, problem
        Of the fit.
    first : int, optional
        As in `coordinates`.
    nodes : int
        At least so many an effect.
    """

    def __init__(self, state, problem, first: int | None = None, nodes: int = 1):
        self.at = coordinates(state, first)
        self.limit = dispersion_limit(problem.family, problem.frame.y, problem.frame.weights)
        if problem.cross is not None:
            self._evaluate = _gaussian(problem, self.at)
        elif why := no_profile(state, problem):
            raise NotYetError(f"{why}: use method='wald'")
        elif len(state.terms) > 1:
            self._evaluate = _several(state, problem, self.at, nodes)
        elif not state.terms:
            evaluate_psi = lambda psi: evaluate_glm(problem.family, problem.design, psi)[:3]
            self._evaluate = _scaled(evaluate_psi, problem.scaling.z_scale, self.at)
        else:
            self._evaluate = _scaled(_Marginal(state, problem, self.at, nodes), problem.scaling.z_scale, self.at)

    def __call__(self, x):
        x = np.asarray(x, float)
        if abs(x[-1]) > LARGEST:
            return -math.inf, np.zeros_like(x), np.zeros((len(x),) * 2)
        return self._evaluate(x)


def no_profile(state, problem) -> str:
    """Why there are no values of the likelihood to profile; empty where there are."""
    if len(state.terms) < 2 or problem.cross is not None:
        return ""
    if problem.nested is None and not choose_solver(with_rows(problem).rows).exact:
        return "values by conjugate gradients are estimates, of which there is no profile"
    return ""


def _several(state, problem, at, nodes):
    made = SeveralLikelihood(state, problem, at, nodes)
    return _scaled(made, made.z_scale, at)


def _scaled(evaluate_psi, z_scale, at):
    a = to_scaled(z_scale, at)

    def evaluate_x(x):
        value, gradient, hessian = evaluate_psi(a * x)
        return float(value), a * np.asarray(gradient), np.asarray(hessian) * np.outer(a, a)

    return evaluate_x


class _Marginal:
    """Evaluations that begin the search for the modes where the last one ended."""

    def __init__(self, state, problem, at, nodes: int):
        self.family, self.design = problem.family, problem.design
        if not is_identity(at.loads):
            scale = problem.scaling.z_scale
            M = np.linalg.inv(at.loads).T * scale / scale[at.order][:, None]
            z = jnp.matmul(M, self.design.terms[0].z, precision="highest")
            self.design = eqx.tree_at(lambda d: d.terms[0].z, self.design, z)
        self.nodes = padded_nodes(max(state.estimate.n_agq or 1, nodes), len(state.terms[0].names))
        self.determinant = state.estimate.method != "joint"
        self.modes = jnp.zeros_like(problem.design.terms[0].z)

    def __call__(self, psi):
        e = evaluate(self.family, self.design, self.nodes, psi, self.modes, determinant=self.determinant)
        if np.isfinite(float(e.value)):
            self.modes = e.modes
        return e.value, e.gradient, e.hessian


def _gaussian(problem, at):
    """Closed forms in (beta, T, log sigma) from the expansion of the cross products, then Lambda = sigma T."""
    cross = problem.cross
    if not is_identity(at.loads):
        cross = cross.combined(np.linalg.inv(at.loads).T)
    if isinstance(cross, FactorProducts):
        expand = lambda raw: expand_factors(Slopes(raw, cross))
    else:
        arrays = jax.tree.map(jnp.asarray, cross)
        expand = lambda raw: expand_one(raw, arrays)
    p, q = at.p, len(at.entries[0])
    n, origin = float(cross.n), np.asarray(cross.origin)

    def evaluate_x(x):
        log_sigma = x[-1]
        s, T = math.exp(-2 * log_sigma), x[p:-1] * math.exp(-log_sigma)
        (log_det, Q), (log_det1, Q1), (log_det2, Q2) = expand(T)
        v = np.append(origin - x[:p], 1.0)
        Qv = Q @ v
        load = np.einsum("ijk,j->ik", Q1, v)
        rss, rss1, rss2 = v @ Qv, v @ load, np.einsum("i,ijkl,j->kl", v, Q2, v)
        value = 0.5 * (float(cross.log_weights) - log_det - s * rss) - n * (log_sigma + 0.5 * math.log(2 * math.pi))
        # In (coefficients, T, log sigma).
        g = np.concatenate([s * Qv[:p], -0.5 * (log_det1 + s * rss1), [s * rss - n]])
        H = np.zeros((p + q + 1,) * 2)
        H[:p, :p] = -s * Q[:p, :p]
        H[:p, p:-1] = s * load[:p]
        H[p:-1, p:-1] = -0.5 * (log_det2 + s * rss2)
        H[:p, -1], H[p:-1, -1], H[-1, -1] = -2 * s * Qv[:p], s * rss1, -2 * s * rss
        H = np.triu(H) + np.triu(H, 1).T
        # T = Lambda / sigma.
        J = np.eye(p + q + 1)
        J[p:-1, p:-1] *= math.exp(-log_sigma)
        J[p:-1, -1] = -T
        bend = np.zeros_like(H)
        bend[p:-1, -1] = bend[-1, p:-1] = -math.exp(-log_sigma) * g[p:-1]
        bend[-1, -1] = T @ g[p:-1]
        return float(value), J.T @ g, J.T @ H @ J + bend

    return evaluate_x
