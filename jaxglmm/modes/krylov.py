"""Crossed factors beyond dense algebra: conjugate gradients, and a log-determinant from random probes.

The largest factor is eliminated exactly, which needs its block diagonal only; for two factors this is one sweep of
backfitting, and conjugate gradients on what is left is what symmetric (SSOR) preconditioning comes to. With M the
diagonal blocks of the others, the Schur complement is L (I - N) L', M = L L', and

    log det = log det M + tr log(I - N)

The trace is estimated from probes z of random signs by Lanczos quadrature, whose coefficients are those of the
conjugate gradients that solve (I - N) y = z (Golub & Meurant 2010; Ubaru, Chen & Saad 2017). Since tr N is known,
only tr [log(I - N) + N] is left to chance, which is small; entries of the inverse are I plus such a remainder likewise.
Probes are the same at every point, so that estimates are smooth in the parameters (Kuendig & Sigrist 2025,
arXiv 2505.09552).
"""

from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np

from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, inverse, log_det, matrix, product, sum_by, transposed
from jaxglmm.modes.elimination import Elimination
from jaxglmm.modes.solver import AbstractFactorisation, AbstractSolver


# Residual relative to the right-hand side, and steps after which conjugate gradients give up.
_TOLERANCE, _MOST_STEPS = 1e-7, 1000


class Krylov(AbstractSolver):
    """Preconditioned conjugate gradients.

    Attributes
    ----------
    probes : int
        Random vectors that estimate the log-determinant and its derivatives.
    """

    name: ClassVar[str] = "krylov"
    exact: ClassVar[bool] = False
    reason: str
    probes: int = 20

    def factorise(self, design: RowDesign, H: Blocks) -> "KrylovFactorisation":
        return KrylovFactorisation(design, H, self.probes)


class KrylovFactorisation(AbstractFactorisation):
    """H at one point; probes are solved for when first asked about."""

    def __init__(self, design: RowDesign, H: Blocks, probes: int):
        self.design, self.elimination, self.count = design, Elimination(design, H), probes
        e = self.elimination
        self.diagonal = {t: H.diagonal[t] for t in e.rest}
        self.between = {k: matrix(design, k, C) for k, C in H.cross.items() if e.first not in k}
        if not all(np.isfinite(log_det(D)) for D in self.diagonal.values()):
            raise np.linalg.LinAlgError("not positive definite")
        # M^-1/2: any root serves; this one is applied as it is and transposed.
        self.roots = {t: inverse(np.linalg.cholesky(D)) for t, D in self.diagonal.items()}
        # I - N = R M R' - (B R')'D^-1 (B R'): products are with the scaled matrices.
        self.E_by_row = e.E.tocsr()
        self.B_by_column = e.B.T.tocsr()

    # --- The rest, scaled ---------------------------------------------------------------------------------------

    def _scaled(self, x: np.ndarray, adjoint: bool) -> np.ndarray:
        """L^-1 x, or L^-T x."""
        out = np.empty_like(x)
        for t, root in self.roots.items():
            term, c = self.design.terms[t], self.elimination.columns(t)
            part = x[c].reshape(term.n_levels, term.n_effects, -1)
            out[c] = product(transposed(root) if adjoint else root, part).reshape(-1, x.shape[1])
        return out

    def _apply(self, x: np.ndarray) -> np.ndarray:
        """(I - N) x."""
        y = self._scaled(x, adjoint=True)
        change = -(self.B_by_column @ (self.E_by_row @ y))
        for (t, u), C in self.between.items():
            a, b = self.elimination.columns(t), self.elimination.columns(u)
            change[a] += C @ y[b]
            change[b] += C.T @ y[a]
        return x + self._scaled(change, adjoint=False)

    def solve(self, b: np.ndarray) -> np.ndarray:
        own, right = self.elimination.reduce(b)
        found = conjugate_gradients(self._apply, self._scaled(right, adjoint=False)).x
        return self.elimination.expand(own, self._scaled(found, adjoint=True))

    # --- Probes -------------------------------------------------------------------------------------------------

    @cached_property
    def _probed(self) -> tuple[np.ndarray, "Solved"]:
        rng = np.random.default_rng(20)
        z = rng.integers(0, 2, (self.elimination.order, self.count), np.int8) * 2.0 - 1.0
        return z, conjugate_gradients(self._apply, z)

    @cached_property
    def _estimate(self) -> tuple[float, float]:
        """tr log(I - N) and its standard error."""
        e = self.elimination
        trace = 0.0
        for t in e.rest:
            pairs = self.design.pairs[e.first, t]
            own = product(transposed(e.cross[t]), e.ratios[t])
            inverses = product(transposed(self.roots[t]), self.roots[t])
            trace += float(np.sum(inverses[pairs.second] * transposed(own)))
        each = []
        for a, b in self._probed[1].coefficients:
            diagonal = 1 / a
            diagonal[1:] += b[:-1] / a[:-1]
            T = np.diag(diagonal) + np.diag(np.sqrt(b[:-1]) / a[:-1], 1) + np.diag(np.sqrt(b[:-1]) / a[:-1], -1)
            values, vectors = np.linalg.eigh(T)
            each.append(e.order * (vectors[0] ** 2 @ np.log(values) + 1 - diagonal[0]))
        return float(np.mean(each)) - trace, float(np.std(each, ddof=1) / np.sqrt(len(each)))

    @cached_property
    def log_det(self) -> float:
        return self.elimination.log_det + sum(log_det(D) for D in self.diagonal.values()) + self._estimate[0]

    @cached_property
    def log_det_se(self) -> float:
        return self._estimate[1]

    @cached_property
    def pattern(self) -> Blocks:
        """Entries of H^-1: exact to first order in N, the remainder from the probes."""
        design, e = self.design, self.elimination
        z, solved = self._probed
        Z = self._scaled(z, adjoint=True)
        R = self._scaled(solved.x - z, adjoint=True)
        S = design.terms[e.first].n_effects
        by_level = lambda v, effects: v.reshape(-1, effects, self.count)
        EZ, ER = by_level(self.E_by_row @ Z, S), by_level(self.E_by_row @ R, S)
        diagonal: list = [None] * len(design.terms)
        cross = {}
        own = e.inverses + _outer(ER, EZ)
        parts = {t: tuple(by_level(v[e.columns(t)], design.terms[t].n_effects) for v in (Z, R)) for t in e.rest}
        for t, (Zt, Rt) in parts.items():
            inverses = product(transposed(self.roots[t]), self.roots[t])
            diagonal[t] = inverses + _outer(Rt, Zt)
            pairs = design.pairs[e.first, t]
            first = product(e.ratios[t], inverses[pairs.second])
            cross[e.first, t] = -first - _outer_pairs(pairs, (ER, EZ), (Rt, Zt))
            own = own + sum_by(pairs.first, product(first, transposed(e.ratios[t])), len(own))
        diagonal[e.first] = own
        for t, u in self.between:
            (Zt, Rt), (Zu, Ru) = parts[t], parts[u]
            cross[t, u] = _outer_pairs(design.pairs[t, u], (Rt, Zt), (Ru, Zu))
        return Blocks(diagonal, cross)


def _outer(R, Z):
    """Mean over probes of the symmetric part of R Z' of each level: (G, S, K) twice -> (G, S, S)."""
    one = np.einsum("gak,gbk->gab", R, Z) / R.shape[2]
    return 0.5 * (one + transposed(one))


def _outer_pairs(pairs, left, right, step: int = 1 << 18):
    """The same of pairs of levels of two factors: (P, S, S')."""
    (R, Z), (Q, Y) = left, right
    out = np.empty((len(pairs), R.shape[1], Q.shape[1]))
    for begin in range(0, len(pairs), step):
        a, b = pairs.first[begin : begin + step], pairs.second[begin : begin + step]
        both = np.einsum("gak,gbk->gab", R[a], Y[b]) + np.einsum("gak,gbk->gab", Z[a], Q[b])
        out[begin : begin + step] = both / (2 * R.shape[2])
    return out


class Solved(NamedTuple):
    """Solutions (q, k), and each column's coefficients (steps,), (steps,)."""

    x: np.ndarray
    coefficients: list[tuple[np.ndarray, np.ndarray]]


def conjugate_gradients(apply, b: np.ndarray) -> Solved:
    """Solve apply(x) = b, each column of b (q, k) by its own conjugate gradients, products for all at once."""
    x, r = np.zeros_like(b), b.copy()
    d = b.copy()
    dots = lambda v, w: np.einsum("ij,ij->j", v, w)
    rr = dots(r, r)
    enough = _TOLERANCE**2 * rr
    alphas, betas = [], []
    steps = np.zeros(b.shape[1], int)
    for _ in range(_MOST_STEPS):
        going = rr > enough
        if not going.any():
            break
        Ad = apply(d)
        curvature = dots(d, Ad)
        if np.any(curvature[going] <= 0):
            raise np.linalg.LinAlgError("not positive definite")
        alpha = np.where(going, rr / np.where(going, curvature, 1.0), 0.0)
        x += alpha * d
        r -= alpha * Ad
        before, rr = rr, np.where(going, dots(r, r), rr)
        beta = np.where(going, rr / np.where(before > 0, before, 1.0), 0.0)
        d *= beta
        d += r
        alphas.append(alpha)
        betas.append(beta)
        steps += going
    A, B = np.array(alphas).reshape(-1, b.shape[1]), np.array(betas).reshape(-1, b.shape[1])
    return Solved(x, [(A[:s, j].copy(), B[:s, j].copy()) for j, s in enumerate(steps)])
