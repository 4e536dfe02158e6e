"""Conditional modes of several factors' effects at once, by Newton's method with step halving.

The joint log-density f(u) = sum_i l_i(eta_i + v_i'u) - u'u/2 is strictly concave for log-concave families; v_i holds
Lambda'z_i for the level of each factor that row i has. Newton's system has the matrix H = I + V'WV (`modes.blocks`).
"""

from typing import NamedTuple

import numpy as np

from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, normal_equations, standardised
from jaxglmm.modes.solver import AbstractSolver
from jaxglmm.ops.rows import FamilyRows


# Down an exponential tail steps are of one in eta, and such a tail is as long as numbers go, log(1e308).
_MAX_ITERATIONS = 800
# The step from here leaves an error that is the square of a small one.
_CLOSE = 1e-10
# Shares of its diagonal that are added to a matrix until it is positive definite.
_SHIFTS = (0.0, 1e-10, 1e-6, 1e-2)


class Modes(NamedTuple):
    """Standardised modes u (q,), eta at them (n,), and whether the search reached them."""

    u: np.ndarray
    eta: np.ndarray
    found: bool


def linear_predictor(design: RowDesign, eta, factors, u) -> np.ndarray:
    """eta + sum_t z_t'Lambda_t u_t of each row."""
    for term, factor, part in zip(design.terms, factors, design.split(u), strict=True):
        if factor.any():
            eta = eta + term.at_rows(part @ factor.T)
    return eta


def effect_scores(design: RowDesign, factors, values) -> np.ndarray:
    """V'values, (q,): what rows' derivatives in eta are in the standardised effects."""
    out = np.empty(design.starts[-1])
    for term, factor, part in zip(design.terms, factors, design.split(out), strict=True):
        part[...] = term.sums(values) @ factor if factor.any() else 0.0
    return out


def find_modes(design: RowDesign, rows: FamilyRows, solver: AbstractSolver, eta, factors, log_phi, start) -> Modes:
    """Modes of all effects.

    Parameters
    ----------
    eta : (n,)
        Offset and fixed part.
    factors : sequence of (S, S)
        Lambda of each term.
    start : (q,)
    """
    if not any(factor.any() for factor in factors):
        return Modes(np.zeros_like(start), eta, True)
    found = _climb(design, rows, solver, eta, factors, log_phi, start)
    if not found.found and start.any():
        # Modes of other parameters may lie where the likelihood is next to nothing; from zero the way is always up.
        found = _climb(design, rows, solver, eta, factors, log_phi, np.zeros_like(start))
    return found


def _climb(design, rows, solver, eta, factors, log_phi, start) -> Modes:
    def at(u):
        shifted = linear_predictor(design, eta, factors, u)
        value, s, w = rows.newton(shifted, log_phi)
        return value - 0.5 * u @ u, shifted, s, w

    u = start
    f, shifted, s, w = at(u)
    if not np.isfinite(f):
        return Modes(u, shifted, False)
    for _ in range(_MAX_ITERATIONS):
        g = effect_scores(design, factors, s) - u
        step = _step(design, solver.rough, standardised(normal_equations(design, w), factors), g)
        if step is None:
            return Modes(u, shifted, False)
        decrement = step @ g
        if decrement <= _CLOSE:
            u = u + step
            return Modes(u, linear_predictor(design, eta, factors, u), True)
        shrink = 1.0
        while True:
            f_new, *new = at(u + shrink * step)
            if f_new >= f - 1e-13 * (1 + abs(f)):
                break
            shrink *= 0.5
            if shrink < 1e-8:
                return Modes(u, shifted, False)
        u, f, (shifted, s, w) = u + shrink * step, f_new, new
    return Modes(u, shifted, False)


def _step(design, solver, H, g):
    """H^-1 g (q,); with H nearer to its diagonal where it is not positive definite in floating point, or None.

    H is at least the identity, but where rows' weights range over more digits than a number has, as far from the mode,
    eliminating one factor leaves nothing of that. Any such step leads upwards.
    """
    for shift in _SHIFTS:
        diagonal = [D * (1 + shift * np.eye(D.shape[-1])) for D in H.diagonal] if shift else H.diagonal
        try:
            step = solver.factorise(design, Blocks(diagonal, H.cross)).solve(g[:, None])[:, 0]
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(step).all() and step @ g >= 0:
            return step
    return None
