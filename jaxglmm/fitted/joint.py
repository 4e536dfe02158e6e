"""The effects of several grouping factors together: their covariances given the data, and what the parameters move.

Near the modes u^ of the standardised effects their log-density has the Hessian -H, H = I + Lambda'Z'WZ Lambda, so that
given the parameters the effects b = Lambda u of any two levels have the covariance

    Cov(b_i, b_j) = Lambda (H^-1)_ij Lambda',

exactly for Gaussian responses (Henderson's mixed model equations), and by the implicit function theorem

    du^/dbeta = -H^-1 Lambda'Z'W X,     du^/dLambda_rc = H^-1 (E_cr Z's - Lambda'Z'W Z E_rc u),     E_rc = e_r e_c'.

H is kept where levels meet in the data, a few numbers a level and pair, and factorised when first needed.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from jaxglmm.design.pairs import Pairs
from jaxglmm.design.rows import RowDesign, RowTerm
from jaxglmm.errors import DataError
from jaxglmm.fitted.effects import Effects
from jaxglmm.fitted.state import State
from jaxglmm.inference.coordinates import coordinates, raw_covariance
from jaxglmm.model.covariance import Covariance
from jaxglmm.modes.blocks import Blocks, normal_equations, standardised
from jaxglmm.modes.choice import choose_solver
from jaxglmm.modes.several import effect_scores, find_modes
from jaxglmm.modes.solver import AbstractFactorisation
from jaxglmm.ops.computing import computing
from jaxglmm.ops.rows import FamilyRows


_AT_ONCE = 8_000_000  # numbers of right-hand sides that are solved for at once
_LARGEST = 1e14  # entry of a Gaussian model's H, beside which too few digits of its identity are left
_MOST_LEVELS = 4_000  # whose columns of H^-1 are solved for, where they do not meet in the data


@dataclass(frozen=True)
class Joint:
    """Covariances of the effects of all factors, and slopes of their modes.

    Attributes
    ----------
    design : RowDesign
        Factors and pairs of levels; of no row.
    H : Blocks
        Of the standardised effects.
    factors : tuple of (S, S)
        Lambda of each term.
    spreads : tuple of (G, S, S)
        Posterior covariances of each level's effects given the parameters.
    slopes : tuple of (G, S, k)
        Derivatives of each level's effects in the parameters, see `inference.coordinates`.
    """

    design: RowDesign
    H: Blocks
    factors: tuple[np.ndarray, ...]
    spreads: tuple[np.ndarray, ...]
    slopes: tuple[np.ndarray, ...]

    @cached_property
    def _found(self) -> AbstractFactorisation:
        return choose_solver(self.design).factorise(self.design, self.H)

    def variance(self, effects, new) -> np.ndarray:
        """Variance (m,) of sum z'b over the levels of each row that are known, given the parameters.

        Parameters
        ----------
        effects : sequence of (z (S, m), codes (m,))
        new : sequence of bool (m,)
            Rows whose level does not count.
        """
        total = np.zeros(len(effects[0][1]))
        for (z, codes), mask, spread in zip(effects, new, self.spreads, strict=True):
            at = np.flatnonzero(~mask)
            total[at] += np.einsum("am,mab,bm->m", z[:, at], spread[codes[at]], z[:, at], optimize=True)
        for i, t in enumerate(self.design.order):
            for u in self.design.order[i + 1 :]:
                (z, own), (other_z, other) = effects[t], effects[u]
                at = np.flatnonzero(~new[t] & ~new[u])
                if not len(at) or not self.factors[t].any() or not self.factors[u].any():
                    continue
                width = self.design.terms[u].n_levels
                met, back = np.unique(own[at].astype(np.int64) * width + other[at], return_inverse=True)
                block = self.between(t, u, met // width, met % width)[back]
                total[at] += 2 * np.einsum("am,mab,bm->m", z[:, at], block, other_z[:, at], optimize=True)
        return np.maximum(total, 0.0)

    def slopes_of(self, effects, new) -> np.ndarray:
        """Derivatives (m, k) of that sum in the parameters."""
        total = np.zeros((len(effects[0][1]), self.slopes[0].shape[2]))
        for (z, codes), mask, slopes in zip(effects, new, self.slopes, strict=True):
            at = np.flatnonzero(~mask)
            total[at] += np.einsum("sm,msk->mk", z[:, at], slopes[codes[at]])
        return total

    def between(self, t: int, u: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Cov(b_t, b_u) (P, S, S') of levels `first` of term t and `second` of term u, which comes later in the order.

        Of levels that meet in the data from the pattern of H^-1, of others from solutions of its columns; with very
        many others on both sides, where one level hardly bears on another, they count as independent.
        """
        with computing():
            return self._between(t, u, first, second)

    def _between(self, t, u, first, second):
        S, other = self.design.terms[t].n_effects, self.design.terms[u].n_effects
        pairs = self.design.pairs[t, u]
        key = pairs.first.astype(np.int64) * pairs.n_second + pairs.second
        wanted = first * pairs.n_second + second
        at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        met = (key[at] == wanted) & self._exact
        out = np.zeros((len(first), S, other))
        out[met] = self._found.pattern.cross[t, u][at[met]]
        rest = np.flatnonzero(~met)
        if len(rest):
            by_second = len(np.unique(second[rest])) <= len(np.unique(first[rest]))
            if by_second:
                out[rest] = np.swapaxes(self._solved(u, second[rest], t, first[rest]), 1, 2)
            else:
                out[rest] = self._solved(t, first[rest], u, second[rest])
        out = np.einsum("ac,pcd,bd->pab", self.factors[t], out, self.factors[u])
        shrink = self._shrink
        return out if shrink is None else out * (shrink[t][first] * shrink[u][second])[:, None, None]

    @property
    def _exact(self) -> bool:
        return choose_solver(self.design).exact

    def _solved(self, t: int, own: np.ndarray, u: int, other: np.ndarray) -> np.ndarray:
        """(H^-1) (P, S, S') between levels `own` of term t, whose columns are solved for, and `other` of term u."""
        design, S = self.design, self.design.terms[t].n_effects
        q, begin = design.starts[-1], design.starts[t]
        levels, back = np.unique(own, return_inverse=True)
        out = np.zeros((len(own), S, design.terms[u].n_effects))
        if len(levels) > _MOST_LEVELS:
            return out
        each = max(_AT_ONCE // (q * S), 1)
        by_level = np.argsort(back, kind="stable")
        bounds = np.searchsorted(back[by_level], np.arange(0, len(levels) + each, each))
        for part, low, high in zip(range(0, len(levels), each), bounds[:-1], bounds[1:], strict=True):
            some = levels[part : part + each]
            b = np.zeros((q, len(some) * S))
            columns = np.arange(len(some) * S)
            b[begin + some[columns // S] * S + columns % S, columns] = 1.0
            found = design.split(self._found.solve(b))[u]
            at = by_level[low:high]
            for a in range(S):
                out[at, a] = found[other[at], :, (back[at] - part) * S + a]
        return out

    @cached_property
    def _shrink(self) -> list[np.ndarray] | None:
        """Standard deviations of each level's effect as a share of those by H; None where they agree.

        Posteriors by quadrature have variances of their own, which the correlations by H go with.
        """
        if any(term.n_effects > 1 for term in self.design.terms) or not self._exact:
            return None
        by_H = [D[:, 0, 0] * F[0, 0] ** 2 for D, F in zip(self._found.pattern.diagonal, self.factors, strict=True)]
        share = [np.sqrt(np.divide(C[:, 0, 0], v, out=np.ones_like(v), where=v > 0))
                 for C, v in zip(self.spreads, by_H, strict=True)]  # fmt: skip
        return None if all(np.allclose(s, 1, rtol=1e-9) for s in share) else share

    def effects(self, t: int, state: State, given: Effects) -> Effects:
        """Those of a term with the parameters' uncertainty, by the delta method."""
        added = np.einsum("gsa,ab,gtb->gst", self.slopes[t], raw_covariance(state), self.slopes[t], optimize=True)
        return replace(given, covariance_eb=given.covariance + added, how="delta")

    def arrays(self) -> dict[str, np.ndarray]:
        """What is saved beside the formula's terms and the posteriors, by name."""
        out = {"order": np.array(self.design.order), "nested": np.array(self.design.nested)}
        for t, (D, slopes) in enumerate(zip(self.H.diagonal, self.slopes, strict=True)):
            out |= {f"H{t}": D, f"slopes{t}": slopes}
        for (t, u), C in self.H.cross.items():
            pairs = self.design.pairs[t, u]
            out |= {f"H{t}-{u}": C, f"first{t}-{u}": pairs.first, f"second{t}-{u}": pairs.second}
        return out

    @classmethod
    def from_arrays(cls, state: State, arrays: dict[str, np.ndarray]) -> "Joint":
        """What `arrays` gave."""
        order = tuple(arrays["order"].tolist())
        terms = tuple(_bare(len(t.levels), len(t.names), t.blocks) for t in state.terms)
        pairs, cross = {}, {}
        for i, t in enumerate(order):
            for u in order[i + 1 :]:
                first, second = arrays[f"first{t}-{u}"], arrays[f"second{t}-{u}"]
                pairs[t, u] = _bare_pairs(first, second, terms[t].n_levels, terms[u].n_levels)
                cross[t, u] = arrays[f"H{t}-{u}"]
        blocks = Blocks([arrays[f"H{t}"] for t in range(len(terms))], cross)
        slopes = tuple(arrays[f"slopes{t}"] for t in range(len(terms)))
        return cls(_bare_design(terms, order, pairs, bool(arrays["nested"])), blocks, *_given(state), slopes)


def _given(state: State):
    return tuple(state.estimate.factors), tuple(posterior.covariance_mean for posterior in state.posteriors)


def _bare(n_levels: int, S: int, blocks) -> RowTerm:
    return RowTerm(np.zeros(0, np.intp), n_levels, (None,) * S, np.ones(S), Covariance(blocks))


def _bare_pairs(first, second, n_first: int, n_second: int) -> Pairs:
    start = np.zeros(n_first + 1, np.int64)
    np.cumsum(np.bincount(first, minlength=n_first), out=start[1:])
    return Pairs(first, second, start, np.zeros(0, np.intp), n_second)


def _bare_design(terms, order, pairs, nested: bool) -> RowDesign:
    none = np.zeros(0)
    return RowDesign(none, np.zeros((0, 0)), none, none, terms, order, pairs, nested, 0.0)


def joint_of(state: State, problem) -> Joint:
    """Of a fit that has its rows."""
    from jaxglmm.problem import with_rows

    design = with_rows(problem).rows
    assert design is not None
    family, estimate, at = state.family, state.estimate, coordinates(state)
    p = len(estimate.beta)
    factors = [t.factor_from_columns(F) for t, F in zip(design.terms, estimate.factors, strict=True)]
    solver = choose_solver(design)
    start = [
        np.linalg.lstsq(F, posterior.mode.T, rcond=None)[0].T.ravel()
        for F, posterior in zip(estimate.factors, state.posteriors, strict=True)
    ]
    with computing():
        rows = FamilyRows(family, design.y, design.weights)
        eta = design.offset + design.X @ at.x[:p]
        modes = find_modes(design, rows, solver, eta, factors, state.log_dispersion, np.concatenate(start))
        d = rows.derivatives(modes.eta, state.log_dispersion)
        H, w = standardised(normal_equations(design, d.w), factors), d.w
        _check_digits(state, H)
        try:
            found = solver.factorise(design, H)
        except np.linalg.LinAlgError:  # by the expected information, where a density is not log-concave
            w = rows.newton(modes.eta, state.log_dispersion)[2]
            H = standardised(normal_equations(design, w), factors)
            found = solver.factorise(design, H)
        right = np.zeros((design.starts[-1], len(at.x)))
        for j in range(p):
            right[:, j] = -effect_scores(design, factors, w * design.X[:, j])
        _by_entries(right, design, factors, state, at, d.s, w, modes.u)
        if d.phi is not None:
            right[:, -1] = effect_scores(design, factors, d.phi[1])
        moved = found.solve(right)
    slopes = [np.einsum("ac,gck->gak", F, part) for F, part in zip(estimate.factors, design.split(moved), strict=True)]
    for e, (t, r, c) in enumerate(_entries(state)):
        slopes[t][:, r, p + e] += design.split(modes.u)[t][:, c]
    terms = tuple(_bare(t.n_levels, t.n_effects, t.covariance.blocks) for t in design.terms)
    pairs = {
        (t, u): _bare_pairs(v.first, v.second, terms[t].n_levels, v.n_second) for (t, u), v in design.pairs.items()
    }
    return Joint(_bare_design(terms, design.order, pairs, design.nested), H, *_given(state), tuple(slopes))


def _check_digits(state: State, H: Blocks) -> None:
    """Refuse covariances whose digits are below those of a number.

    Raises
    ------
    DataError
    """
    largest = max(float(np.abs(D).max(initial=0.0)) for D in H.diagonal)
    if largest > _LARGEST and state.family.name == "gaussian":
        raise DataError(
            f"the residual standard deviation {state.estimate.dispersion:.3g} is so small beside those of the effects "
            f"of {' and '.join(repr(term.group) for term in state.terms)} that the covariance of several factors' "
            "effects, which intervals and saved fits need, has no digits in double precision: estimates, effects and "
            "their sd_mean are right; for intervals fit one grouping factor, or its levels as fixed effects"
        )


def _entries(state: State):
    """(term, row, column) of every free entry of Lambda, in the order of the parameters."""
    out = []
    for t, term in enumerate(state.terms):
        rows, columns = Covariance(term.blocks).entries
        out += [(t, int(r), int(c)) for r, c in zip(rows, columns, strict=True)]
    return out


def _by_entries(right, design: RowDesign, factors, state: State, at, s, w, u):
    """Right-hand sides for the entries of Lambda, of the caller's columns."""
    for e, (t, r, c) in enumerate(_entries(state)):
        term = design.terms[t]
        scale, z = term.z_scale[r], term.z[r]
        level = np.zeros((term.n_levels, term.n_effects))
        level[:, r] = scale * design.split(u)[t][:, c]
        right[:, at.p + e] = -effect_scores(design, factors, w * term.at_rows(level))
        scores = np.bincount(term.codes, s if z is None else s * z, term.n_levels) * scale
        design.split(right)[t][:, c, at.p + e] += scores
