"""Nested factors with quadrature over the finest one's effects, and Laplace's approximation over the others'.

Given the coarser effects, the effects of the finest factor's levels are independent scalars, each of which adaptive
Gauss-Hermite quadrature integrates out. What is left of a level g is one row: a log-density l_g(e) of the sum e of the
coarser effects that its rows share, with derivatives s_g = l_g', w_g = -l_g'', a_g = -l_g'''. Laplace's approximation
over the coarser factors then is that of any model with these rows. With the leverages h_g and the adjoint (Vk)_g of
`objectives.several`, the gradient in the other parameters psi = (beta, tau, log dispersion) is that of

    sum_g l_g + (Vk)_g l_g' + (h_g/2) l_g''

with h and Vk held: derivatives of the exact gradient of sum_g l_g along two directions of eta.
(Rabe-Hesketh, Skrondal & Pickles 2005, J. Econometrics 128, for quadrature on every factor.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.pairs import Pairs
from jaxglmm.design.rows import RowDesign, RowTerm, parent_pairs
from jaxglmm.errors import DataError
from jaxglmm.modes.nested import Nested
from jaxglmm.modes.several import find_modes
from jaxglmm.objectives.marginal import Nodes, group_gradient
from jaxglmm.objectives.several import SeveralEvaluation, laplace_over
from jaxglmm.ops.group import map_groups
from jaxglmm.ops.programs import program


class LevelDerivatives(NamedTuple):
    """Sum of the levels' log-densities, and derivatives of each in the shift of its rows' eta."""

    value: float
    s: np.ndarray
    w: np.ndarray
    a: np.ndarray


class NestedQuadrature:
    """The approximation for one data set.

    Parameters
    ----------
    family : AbstractFamily
    design : RowDesign
        Of nested factors, each with a single effect; the coarser ones' an intercept.
    tiles : Design
        The rows grouped by the finest factor.
    layout : Layout
        Of `tiles`.
    codes : int (n,)
        Finest level of each row, in the order that `tiles` was made of.
    nodes : Nodes

    Raises
    ------
    DataError
        Where the factors are not of this kind.
    """

    def __init__(self, family, design: RowDesign, tiles, layout, codes, nodes: Nodes):
        self.family, self.tiles, self.layout, self.codes, self.nodes = family, tiles, layout, codes, nodes
        self.constant = design.constant
        self.finest, *self.coarser = design.order
        self.design = _levels_as_rows(design)
        self.solver = Nested(reason="")
        self._modes = jnp.zeros_like(tiles.terms[0].z)

    def evaluate(self, beta, factors, log_phi, u) -> SeveralEvaluation:
        """Value and exact gradient; `u` (and the result's) holds the coarser factors' standardised modes.

        Parameters
        ----------
        beta : (p,)
        factors : sequence of (1, 1)
            Lambda of each term, in formula order.
        log_phi : float
        u : (q,)
            Where the search for the coarser factors' modes begins.
        """
        psi = jnp.asarray([*beta, factors[self.finest][0, 0], log_phi])
        above = [factors[t] for t in self.coarser]
        rows = _Rows(self, psi)
        shift = np.zeros(len(self.design.y))
        modes = find_modes(self.design, rows, self.solver, shift, above, log_phi, u)
        bad = SeveralEvaluation(-np.inf, np.zeros_like(beta), [np.zeros_like(f) for f in factors], 0.0, u)
        d = self._levels(psi, modes.eta)
        found = laplace_over(self.design, self.solver, above, d, modes.u) if modes.found else None
        if found is None:
            return bad
        slots = lambda v: self.layout.scatter(v[self.codes])
        inner = _gradient(
            self.family, self.tiles, self.nodes, psi, self._modes, slots(modes.eta), slots(found.bend),
            slots(np.sqrt(np.maximum(found.leverage, 0.0))),
        )  # fmt: skip
        p = len(beta)
        inner = np.asarray(inner)
        gradients = dict(zip(self.coarser, found.factors, strict=True))
        gradients[self.finest] = inner[p : p + 1, None]
        value = found.value + self.constant
        return SeveralEvaluation(
            value, inner[:p], [gradients[t] for t in range(len(factors))], float(inner[-1]), modes.u
        )

    def _levels(self, psi, shift) -> LevelDerivatives:
        slots = self.layout.scatter(shift[self.codes])
        value, (s, w, a, modes) = _derivatives(self.family, self.tiles, self.nodes, psi, self._modes, slots)
        if np.isfinite(float(value)):
            self._modes = modes
        first = self.layout.first
        return LevelDerivatives(float(value), *(np.asarray(v)[first] for v in (s, w, a)))


class _Rows:
    """The levels as rows of a family, for the search for the coarser factors' modes."""

    def __init__(self, quadrature: NestedQuadrature, psi):
        self.quadrature, self.psi = quadrature, psi

    def newton(self, eta, log_phi):
        d = self.quadrature._levels(self.psi, eta)
        return d.value, d.s, d.w


def _levels_as_rows(design: RowDesign) -> RowDesign:
    """A design of the coarser factors whose rows are the finest factor's levels."""
    finest, *coarser = design.order
    if not design.nested or any(design.terms[t].z != (None,) for t in coarser) or design.terms[finest].n_effects > 1:
        raise DataError(
            "quadrature with several grouping factors takes nested ones with an intercept each, (1 | a/b): use "
            "method='laplace'"
        )
    terms = []
    for t in coarser:
        term = design.terms[t]
        codes = design.pairs[finest, t].second.astype(np.intp)
        terms.append(RowTerm(codes, term.n_levels, (None,), term.z_scale, term.covariance))
    pairs: dict[tuple[int, int], Pairs] = {}
    for i in range(len(terms)):
        for j in range(i + 1, len(terms)):
            pairs[i, j] = parent_pairs(terms[i], terms[j])
    zero = np.zeros(design.terms[finest].n_levels)
    return RowDesign(
        zero, np.zeros((len(zero), 0)), zero, zero, tuple(terms), tuple(range(len(terms))), pairs, True, 0.0
    )


def _of_block(family, covariance, nodes, psi, p, total, head, rows, X):
    """The levels' gradient record as a function of a change of eta."""
    y, weight, offset, z, start, shift = rows
    eta = offset + shift + jnp.matmul(X, psi[:p], precision="highest")
    factor = covariance.raw_factor(psi[p:-1])
    return lambda change: group_gradient(
        total, head, family, eta + change, z, factor, psi[-1], y, weight, nodes, start, 1.0
    )


@program(static=("family",))
def _derivatives(family, tiles, nodes: Nodes, psi, start, shift):
    term, p = tiles.terms[0], tiles.X.shape[1]

    def body(total, head, rows, X):
        at = _of_block(family, term.covariance, nodes, psi, p, total, head, rows, X)

        def slope(t):
            g = at(t)
            return total(g.eta), (jnp.sum(g.value), g.modes)

        def curvature(t):
            s, w, rest = jax.jvp(slope, (t,), (jnp.ones_like(t),), has_aux=True)
            return (-w, s), rest

        zero = jnp.zeros_like(rows[0])
        (w, s), (a, _), (value, modes) = jax.jvp(curvature, (zero,), (jnp.ones_like(zero),), has_aux=True)
        return value, (s, w, a, modes)

    rows = (tiles.y, tiles.weights, tiles.offset, term.z, start, shift)
    return map_groups(body, tiles.index, rows, tiles.X)


@program(static=("family",))
def _gradient(family, tiles, nodes: Nodes, psi, start, shift, bend, root):
    term, p = tiles.terms[0], tiles.X.shape[1]

    def body(total, head, rows, X):
        *rows, bend, root = rows
        at = _of_block(family, term.covariance, nodes, psi, p, total, head, rows, X)

        def gradient(change):
            g = at(change)
            return g.eta, g.loadings * rows[3], g.log_phi

        zero = jnp.zeros_like(bend)
        along = lambda t: jax.jvp(gradient, (t * root,), (root,))[1]
        g, first = jax.jvp(gradient, (zero,), (bend,))
        second = jax.jvp(along, (0.0,), (1.0,))[1]
        eta, factor, phi = jax.tree.map(lambda a, b, c: a + b + 0.5 * c, g, first, second)
        parts = (jnp.matmul(X.T, eta, precision="highest"), jnp.sum(factor, axis=1), jnp.sum(phi)[None])
        return jnp.concatenate(parts), ()

    rows = (tiles.y, tiles.weights, tiles.offset, term.z, start, shift, bend, root)
    return map_groups(body, tiles.index, rows, tiles.X)[0]
