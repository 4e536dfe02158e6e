"""The likelihood of several grouping factors and a response that is not Gaussian, with gradient and Hessian.

By the approximation that the fit was made with: Laplace's, or nodes over the largest factor's effects.
"""

import math
from dataclasses import replace

import numpy as np

from jaxglmm.inference.coordinates import to_scaled
from jaxglmm.model.centring import is_identity
from jaxglmm.modes.choice import choose_solver
from jaxglmm.objectives.factor_quadrature import FactorQuadrature
from jaxglmm.objectives.marginal import gauss_hermite
from jaxglmm.objectives.nested_laplace import NestedLaplace
from jaxglmm.objectives.nested_nodes import NestedNodes
from jaxglmm.optimise.node_ladder import padded_nodes
from jaxglmm.optimise.several_search import Search
from jaxglmm.problem import with_rows


class SeveralLikelihood:
    """`likelihood(psi) -> (value, gradient (m,), hessian (m, m))`, psi = (coefficients, entries of each Lambda in the
    formula's order, log dispersion) in the design's scaled columns.

    Of nested intercepts the Hessian is exact; of others it is by differences of the exact gradient, and serves for as
    long as it predicts that.

    Parameters
    ----------
    nodes : int
        At least so many for the largest factor's effects.

    Attributes
    ----------
    z_scale : (S,)
        Of all terms' effects.
    """

    def __init__(self, state, problem, at, nodes: int):
        nodes, family = max(state.estimate.n_agq or 1, nodes), problem.family
        if problem.nested is not None:
            self.z_scale = np.concatenate([term.z_scale for term in problem.nested.terms])
            self._evaluate = _Nested(family, problem.nested, nodes, at.p)
            return
        design = with_rows(problem).rows
        assert design is not None
        self.z_scale = np.concatenate([term.z_scale for term in design.terms])
        if not is_identity(at.loads):
            design = _turned(design, at, self.z_scale)
        start = to_scaled(self.z_scale, at) * at.x
        self._evaluate = _Crossed(family, design, choose_solver(design), nodes, start)

    def __call__(self, psi):
        return self._evaluate(psi)


def _turned(design, at, z_scale):
    """The design of the effects `loads` b, in the order in which Lambda takes them."""
    M = np.linalg.inv(at.loads).T * z_scale / z_scale[at.order][:, None]
    terms, begin = [], 0
    for term in design.terms:
        part = slice(begin, begin + term.n_effects)
        columns = [1.0 if z is None else z for z in term.z]
        made = (sum((m * z for m, z in zip(row, columns, strict=True) if m), 0.0) for row in M[part, part])
        terms.append(replace(term, z=tuple(np.broadcast_to(z, design.y.shape) for z in made)))
        begin += term.n_effects
    return replace(design, terms=tuple(terms))


class _Nested:
    """Two nested factors: the finer one comes first there."""

    def __init__(self, family, design, nodes, p):
        self.objective = (
            NestedLaplace(family, design) if nodes == 1 else NestedNodes(family, design, padded_nodes(nodes, 1))
        )
        fine, coarse = design.order
        self.place = np.arange(p + 3)
        self.place[[p, p + 1]] = p + fine, p + coarse

    def __call__(self, psi):
        e = self.objective.evaluate(psi[self.place])
        back = np.argsort(self.place)
        return float(e.value), np.asarray(e.gradient)[back], np.asarray(e.hessian)[np.ix_(back, back)]


class _Crossed:
    """Any factors, by the search's own evaluations, whose modes are warm."""

    def __init__(self, family, design, solver, nodes, x):
        self.search = Search(family, design, solver, True, 0.0, 0, None)
        self.free = self.search.all_free()
        if nodes > 1:
            quadrature = FactorQuadrature(family, design, gauss_hermite(nodes, 1), nested=solver.name == "separable")
            self.search.use_quadrature(quadrature, solver, x, self.free, lambda: x)

    def __call__(self, psi):
        e, m = self.search.at(psi), self.search.m
        if not math.isfinite(e.value):
            return -math.inf, np.zeros(m), np.zeros((m, m))
        return e.value, self.search.gradient(e), self.search.model(psi, e, self.free)
