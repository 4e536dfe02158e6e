"""Crossed factors beyond dense algebra: conjugate gradients, and a log-determinant from random probes.

The largest factor is eliminated exactly, which needs its block diagonal only; for two factors this is one sweep of
backfitting, and conjugate gradients on what is left is what symmetric (SSOR) preconditioning comes to. With M the
diagonal blocks of the others, M = L L', and D = K K' the eliminated block, the Schur complement is L (I - N) L', and

    N = F'F - L^-1 C L^-T,   F = K^-1 B L^-T,   log det = log det D + log det M + tr log(I - N)

(C what the others have to do with each other, nothing where there are two factors).
The trace is estimated from probes z of random signs by Lanczos quadrature, whose coefficients are those of the
conjugate gradients that solve (I - N) y = z (Golub & Meurant 2010; Ubaru, Chen & Saad 2017). Since tr N is known,
only tr [log(I - N) + N] is left to chance, which is small; entries of the inverse are I plus such a remainder likewise.
Probes are the same at every point, so that estimates are smooth in the parameters (Kuendig & Sigrist 2025,
arXiv 2505.09552).
"""

from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from jaxglmm.design.groups import round_up
from jaxglmm.design.pairs import padded
from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks, inverse, log_det, product, transposed
from jaxglmm.modes.conjugate_gradients import lanczos_quadrature
from jaxglmm.modes.krylov_operator import (
    Operator,
    Probed,
    between_entries,
    diagonal_entries,
    first_entries,
    own_entries,
    probe,
    scaled_blocks,
    solve,
)
from jaxglmm.modes.solver import AbstractFactorisation, AbstractSolver


# Residuals relative to the right-hand side: of solutions, of probes, whose own error is much larger, and of a step that
# another one follows.
_TOLERANCE, _OF_PROBES, _OF_STEPS = 1e-7, 1e-5, 1e-3
# Sets of probes behind the effects' standard deviations, worked out once.
_SETS_FOR_REPORTS = 8


class Krylov(AbstractSolver):
    """Preconditioned conjugate gradients.

    Attributes
    ----------
    probes : int
        Random vectors that estimate the log-determinant and its derivatives.
    tolerance : float
        Residual of solutions, relative to the right-hand side.
    seed : int
        Of the random vectors.
    """

    name: ClassVar[str] = "krylov"
    exact: ClassVar[bool] = False
    reason: str
    probes: int = 8  # a row of them fills one line of the cache
    tolerance: float = _TOLERANCE
    seed: int = 20

    @property
    def rough(self) -> "Krylov":
        return replace(self, tolerance=_OF_STEPS)

    def factorise(self, design: RowDesign, H: Blocks) -> "KrylovFactorisation":
        return KrylovFactorisation(design, H, self)


class KrylovFactorisation(AbstractFactorisation):
    """H at one point; probes are solved for when first asked about."""

    def __init__(self, design: RowDesign, H: Blocks, solver: Krylov):
        self.design, self.solver = design, solver
        self.first, *self.rest = design.order
        dets = [log_det(D) for D in H.diagonal]
        if not np.all(np.isfinite(dets)):
            raise np.linalg.LinAlgError("not positive definite")
        self._blocks_log_det = sum(dets)
        # Any root serves; these are applied as they are and transposed.
        roots = [_root(D) for D in H.diagonal]
        self.roots = [_rounded(root) for root in roots]
        place = {t: i for i, t in enumerate(self.rest)}
        F, between = [], {}
        for (t, u), C in H.cross.items():
            pairs = design.pairs[t, u]
            scaled = scaled_blocks(self.roots[t], self.roots[u], _rounded(C), pairs.index)
            if t == self.first:
                F.append((place[u], scaled))
            else:
                between[place[t], place[u]] = scaled
        self.operator = Operator(
            tuple(scaled for _, scaled in sorted(F, key=lambda item: item[0])), tuple(between.values()),
            self.roots[self.first], tuple(self.roots[t] for t in self.rest), tuple(between),
        )  # fmt: skip

    @property
    def order(self) -> int:
        """Effects beside those of the largest factor."""
        return sum(self.design.terms[t].n_levels * self.design.terms[t].n_effects for t in self.rest)

    def solve(self, b: np.ndarray) -> np.ndarray:
        k = b.shape[1]
        columns = k if k == 1 else -(-k // 4) * 4  # few widths are compiled for
        widened = np.zeros((len(b), columns))
        widened[:, :k] = b
        parts = self.design.split(widened)
        of_rest = tuple(_rounded(parts[t]) for t in self.rest)
        own, rest, stopped = solve(self.operator, _rounded(parts[self.first]), of_rest, self.solver.tolerance)
        _check(stopped)
        x = np.empty_like(b)
        out = self.design.split(x)
        for t, v in zip((self.first, *self.rest), (own, *rest), strict=True):
            out[t][...] = np.asarray(v)[: len(out[t]), :, :k]
        return x

    # --- Probes -------------------------------------------------------------------------------------------------

    @cached_property
    def _probed(self) -> Probed:
        return self._probe(self.solver.seed)

    def _probe(self, seed) -> Probed:
        rng = np.random.default_rng(seed)
        signs = [
            rng.integers(0, 2, (term.n_levels, term.n_effects, self.solver.probes), np.int8) * 2.0 - 1.0
            for term in (self.design.terms[t] for t in self.rest)
        ]
        found = probe(self.operator, tuple(map(_rounded, signs)), _OF_PROBES)
        _check(found.stopped)
        return found

    @cached_property
    def _estimate(self) -> tuple[float, float]:
        """tr log(I - N) and its standard error."""
        found = self._probed
        steps = np.asarray(found.steps)
        a, b = (np.asarray(v)[: steps.max(initial=0)] for v in (found.alpha, found.beta))
        each = [self.order * lanczos_quadrature(a[:s, j], b[:s, j]) for j, s in enumerate(steps)]
        return float(np.mean(each)) - float(found.trace), float(np.std(each, ddof=1) / np.sqrt(len(each)))

    @cached_property
    def log_det(self) -> float:
        return self._blocks_log_det + self._estimate[0]

    @cached_property
    def log_det_se(self) -> float:
        return self._estimate[1]

    @cached_property
    def pattern(self) -> Blocks:
        """Entries of H^-1: exact to first order in N, the remainder from the probes."""
        design, rest, found = self.design, self.rest, self._probed
        diagonal, cross = self._entries(found)
        for i, j in self.operator.pairs:
            pairs = design.pairs[rest[i], rest[j]]
            cross[rest[i], rest[j]] = np.asarray(between_entries(pairs.index, found, i, j))[: len(pairs)]
        return Blocks(diagonal, cross)

    @property
    def diagonal(self) -> list[np.ndarray]:
        """From more probes than a fit needs, for which single levels matter less, and never below the inverse of the
        block itself, which is a lower bound."""
        sets = [self.pattern.diagonal]
        sets += [self._entries(self._probe((self.solver.seed, k)))[0] for k in range(1, _SETS_FOR_REPORTS)]
        return [_at_least(np.mean(parts, axis=0), root) for *parts, root in zip(*sets, self.roots, strict=True)]

    def _entries(self, found: Probed) -> tuple[list, dict]:
        """Diagonal blocks, and those of the largest factor with each other one."""
        design, first, root = self.design, self.first, self.operator.own_root
        diagonal: list = [None] * len(design.terms)
        cross = {}
        cut = lambda v, length: np.asarray(v)[:length]
        own = own_entries(root, found)
        for i, t in enumerate(self.rest):
            pairs, F = design.pairs[first, t], self.operator.F[i].forward
            entries, change = first_entries(F, pairs.index, root, self.roots[t], found, i)
            cross[first, t], own = cut(entries, len(pairs)), own + change
            diagonal[t] = cut(diagonal_entries(self.roots[t], found, i), design.terms[t].n_levels)
        diagonal[first] = cut(own, design.terms[first].n_levels)
        return diagonal, cross


def _root(D: np.ndarray) -> np.ndarray:
    return 1 / np.sqrt(D) if D.shape[-1] == 1 else inverse(np.linalg.cholesky(D))


def _at_least(D: np.ndarray, root: np.ndarray) -> np.ndarray:
    """D with what it is less than root'root put right."""
    least = np.asarray(product(transposed(root), root))[: len(D)]
    if D.shape[-1] == 1:
        return np.maximum(D, least)
    values, vectors = np.linalg.eigh(D - least)
    return least + (vectors * np.maximum(values, 0.0)[:, None]) @ transposed(vectors)


def _rounded(v: np.ndarray) -> np.ndarray:
    """With zeros behind it, to a length that programs are compiled for."""
    return padded(v, round_up(len(v)))


def _check(stopped) -> None:
    if bool(stopped):
        raise np.linalg.LinAlgError("not positive definite")
