"""Laplace's approximation with several grouping factors: value, exact gradient, and the Hessian's fixed-effect block.

    L(psi) = sum_i l_i(eta_i) - u'u/2 - (1/2) log det H,   H = I + V'WV,   V = Z Lambda,   u the mode

With the leverages h_i = v_i'H^-1 v_i and the adjoint k = -(1/2) H^-1 V'(a h), which carries what falls on the mode,

    dL/deta_i    = e_i = s_i - a_i h_i/2 - w_i (Vk)_i
    dL/dLambda_t = sum_g (Z'e)_g u_g' + (Z's)_g k_g' - [Z'WZ Lambda H^-1]_gg
    dL/dlog phi  = sum_i dl_i/dlog phi - (h_i/2) dw_i/dlog phi + (Vk)_i ds_i/dlog phi

(s, w, a, c the derivatives of l as in `model.family`.) All of it needs H^-1 only where levels meet in the data.
Derivation: the implicit function theorem at the mode; compare Kristensen et al. (2016), J. Stat. Softw. 70(5), who
have it by automatic differentiation.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxglmm.design.crossproducts import small_products, weighted_gram
from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, normal_equations, product, standardised, transposed
from jaxglmm.modes.several import effect_scores, find_modes, linear_predictor
from jaxglmm.modes.solver import AbstractFactorisation, AbstractSolver
from jaxglmm.ops.rows import FamilyRows, RowDerivatives


# Random vectors for the trace in the fixed-effect block: together they have about this many entries.
_PROBE_ENTRIES, _MOST_PROBES = 50_000, 64


@dataclass(frozen=True)
class SeveralEvaluation:
    """A design at a point.

    Attributes
    ----------
    value : float
        Minus infinity where the modes were not found or H is not positive definite there.
    beta : (p,)
        Gradient in the fixed effects.
    factors : list of (S, S)
        Gradient in all entries of each Lambda.
    log_phi : float
    u : (q,)
        Standardised modes.
    rows : RowDerivatives
        At the modes.
    leverage, bend : (n,)
        h_i and (Vk)_i.
    H : factorisation or None
        None where every Lambda is zero.
    value_se : float
        Monte-Carlo standard error of the value.
    """

    value: float
    beta: np.ndarray
    factors: list[np.ndarray]
    log_phi: float
    u: np.ndarray
    rows: RowDerivatives | None = None
    leverage: np.ndarray | None = None
    bend: np.ndarray | None = None
    H: AbstractFactorisation | None = None
    value_se: float = 0.0


def evaluate_several(
    design: RowDesign, rows: FamilyRows, solver: AbstractSolver, beta, factors, log_phi, start, *,
    determinant: bool = True,
) -> SeveralEvaluation:  # fmt: skip
    """Value and exact gradient.

    Parameters
    ----------
    beta : (p,)
    factors : sequence of (S, S)
        Lambda of each term, for scaled z.
    log_phi : float
    start : (q,)
        Where the search for the modes begins.
    determinant : bool
        False for the joint likelihood.
    """
    fixed = design.offset + design.X @ beta
    modes = find_modes(design, rows, solver, fixed, factors, log_phi, start)
    nothing = SeveralEvaluation(-np.inf, np.zeros_like(beta), [np.zeros_like(f) for f in factors], 0.0, start)
    if not modes.found:
        return nothing
    d, u = rows.derivatives(modes.eta, log_phi), modes.u
    found = laplace_over(design, solver, factors, d, u, determinant=determinant)
    if found is None:
        return nothing
    e, h, bend = found.eta, found.leverage, found.bend
    by_phi = 0.0
    if d.phi is not None:
        l_phi, s_phi, w_phi = d.phi
        by_phi = float(np.sum(l_phi) - 0.5 * h @ w_phi + bend @ s_phi)
    value, se = found.value + design.constant, found.value_se
    return SeveralEvaluation(value, design.X.T @ e, found.factors, by_phi, u, d, h, bend, found.H, se)


class LaplaceStep(NamedTuple):
    """Value at the mode, its derivatives in eta and in each Lambda, leverages h, (Vk), and H there."""

    value: float
    eta: np.ndarray
    factors: list[np.ndarray]
    leverage: np.ndarray
    bend: np.ndarray
    H: AbstractFactorisation | None
    value_se: float


def laplace_over(design: RowDesign, solver, factors, d, u, *, determinant: bool = True) -> LaplaceStep | None:
    """Laplace's approximation for rows whose log-density has the derivatives d at the mode u.

    Returns
    -------
    LaplaceStep or None
        None where H is not positive definite, which observed information of some links can be away from the optimum.
    """
    try:
        return _laplace(design, solver, factors, d, u, determinant)
    except np.linalg.LinAlgError:
        return None


def _laplace(design, solver, factors, d, u, determinant) -> LaplaceStep:
    value = d.value - 0.5 * u @ u
    H, normal, se = None, None, 0.0
    if any(factor.any() for factor in factors):
        normal = normal_equations(design, d.w)
        H = solver.factorise(design, standardised(normal, factors))
    if determinant and H is not None:
        value, se = value - 0.5 * H.log_det, 0.5 * H.log_det_se
        K = H.pattern
        h = leverages(design, factors, K)
        adjoint = H.solve(effect_scores(design, factors, -0.5 * d.a * h)[:, None])[:, 0]
        occam = occam_change(design, normal, factors, K)
    else:
        h, adjoint, occam = np.zeros_like(d.s), np.zeros_like(u), [np.zeros_like(f) for f in factors]
    bend = linear_predictor(design, np.zeros_like(d.s), factors, adjoint)
    e = d.s - 0.5 * d.a * h - d.w * bend
    by_factor = [
        term.sums(e).T @ part + term.sums(d.s).T @ k - change
        for term, part, k, change in zip(design.terms, design.split(u), design.split(adjoint), occam, strict=True)
    ]
    return LaplaceStep(value, e, by_factor, h, bend, H, se)


def covariance_pattern(factors, K: Blocks) -> Blocks:
    """Lambda H^-1 Lambda' from H^-1: the covariance of the effects b given the parameters, where levels meet."""
    around = lambda left, M, right: product(product(left, M), right.T)
    return Blocks(
        [around(factor, D, factor) for factor, D in zip(factors, K.diagonal, strict=True)],
        {(t, u): around(factors[t], C, factors[u]) for (t, u), C in K.cross.items()},
    )


def leverages(design: RowDesign, factors, K: Blocks) -> np.ndarray:
    """h_i = v_i'H^-1 v_i, (n,): the posterior variance of each row's eta given the parameters."""
    C = covariance_pattern(factors, K)
    h = np.zeros(len(design.y))
    for t, term in enumerate(design.terms):
        h += _row_forms(C.diagonal[t], term.codes, term.z, term.z)
    for (t, u), pairs in design.pairs.items():
        h += 2 * _row_forms(C.cross[t, u], pairs.row, design.terms[t].z, design.terms[u].z)
    return h


def _row_forms(C, codes, left, right):
    total = np.zeros(())
    for a, za in enumerate(left):
        for b, zb in enumerate(right):
            part = C[:, a, b][codes]
            for z in (za, zb):
                part = part if z is None else part * z
            total = total + part
    return total


def occam_change(design, normal: Blocks, factors, K: Blocks) -> list[np.ndarray]:
    """d(log det H)/2 / d Lambda_t at fixed W: the sum over levels of the diagonal blocks of Z'WZ Lambda H^-1."""
    out = [
        product(product(A, factor), D).sum(0) for A, factor, D in zip(normal.diagonal, factors, K.diagonal, strict=True)
    ]
    for (t, u), A in normal.cross.items():
        out[t] = out[t] + product(product(A, factors[u]), transposed(K.cross[t, u])).sum(0)
        out[u] = out[u] + product(product(transposed(A), factors[t]), K.cross[t, u]).sum(0)
    return out


def fixed_hessian(design: RowDesign, e: SeveralEvaluation, factors, *, trace: bool = True) -> np.ndarray:
    """Second derivatives of the value in the fixed effects (p, p).

    With D = X - V H^-1 V'WX, the rows' derivatives of eta at the moving mode,

        -X'WD - (1/2) D' diag(h c + 2 a Vk) D + (1/2) T,   T_jk = tr(H^-1 V' diag(a D_j) V H^-1 V' diag(a D_k) V)

    T by random signs (Hutchinson 1990), fixed, so that its error is some thousandths of a small term; left out
    where `trace` is False.
    """
    assert e.rows is not None and e.leverage is not None and e.bend is not None
    X, d = design.X, e.rows
    p = X.shape[1]
    if e.H is None or not p:
        return -weighted_gram(X, d.w, np.zeros(p), np.ones(p))
    moved = e.H.solve(-_column_scores(design, factors, d.w, X))
    effects = [_scaled(f, part) for f, part in zip(factors, design.split(moved), strict=True)]
    weight = e.leverage * d.c + 2 * d.a * e.bend
    out = np.zeros((p, p))
    for rows in design.row_pieces():
        D = _moving(design, effects, rows)
        out -= small_products(X[rows] * d.w[rows, None] + 0.5 * weight[rows, None] * D, D)
    if trace:
        out += 0.5 * _trace(design, e, factors, effects)
    return 0.5 * (out + out.T)


def _moving(design, effects, rows) -> np.ndarray:
    D = design.X[rows].copy()
    for term, part in zip(design.terms, effects, strict=True):
        D += term.at_rows(part, rows)
    return D


def _scaled(factor, part):
    return np.einsum("ab,gbk->gak", factor, part)


def _column_scores(design, factors, weights, columns, rows=slice(None)) -> np.ndarray:
    """V' diag(weights) columns over the given rows, (q, k)."""
    out = np.empty((design.starts[-1], columns.shape[1]))
    for term, factor, part in zip(design.terms, factors, design.split(out), strict=True):
        part[...] = _scaled(factor.T, term.column_sums(weights, columns, rows))
    return out


def _at_rows(design, factors, v, rows) -> np.ndarray:
    """V v of the given rows for v (q, k)."""
    out = np.zeros((len(design.y[rows]), v.shape[1]))
    for term, factor, part in zip(design.terms, factors, design.split(v), strict=True):
        out += term.at_rows(_scaled(factor, part), rows)
    return out


def _trace(design, e, factors, effects) -> np.ndarray:
    """T, the mean over probes z of z'H^-1 V' diag(a D_j) V H^-1 V' diag(a D_k) V z; all probes in one block."""
    p, q = design.X.shape[1], int(design.starts[-1])
    probes = int(np.clip(_PROBE_ENTRIES // q, 1, _MOST_PROBES))
    z = np.random.default_rng(0).choice([-1.0, 1.0], (q, probes))
    y = e.H.solve(z)
    right = np.zeros((q, probes * p))
    for rows in design.row_pieces():
        weights, D = e.rows.a[rows, None] * _at_rows(design, factors, z, rows), _moving(design, effects, rows)
        columns = (weights[:, :, None] * D[:, None, :]).reshape(len(D), -1)
        right += _column_scores(design, factors, np.ones(len(D)), columns, rows)
    Y = e.H.solve(right)
    total = np.zeros((p, p))
    for rows in design.row_pieces():
        weights, D = e.rows.a[rows, None] * _at_rows(design, factors, y, rows), _moving(design, effects, rows)
        bent = _at_rows(design, factors, Y, rows).reshape(len(D), probes, p)
        total += small_products(D, np.einsum("ik,ikp->ip", weights, bent))
    return 0.5 * (total + total.T) / probes
