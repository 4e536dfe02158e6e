"""As `design.within` for several factors: what a Gaussian response is apart from the span of all effects' columns.

With Q (n, r) an orthonormal basis of that span, Z = Q N, and V = Q c + E, Q'WE = 0 (orthogonal in the weights W),

    log det V* W = log det(I + N C N')        V'V*^-1 V = E'WE + c'(I + N C N')^-1 c

(`objectives.elimination` has V* and C): sums of what is positive, where V'WV less what effects explain is a difference
of which nothing is left when the noise is a millionth of what lies between levels. The matrices are dense, of the order
of all effects together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxglmm.design.within import LITTLE, left_given_others, slopes_of_last


# Effects up to which a factorisation of all of them costs nothing beside a fit; rows of the sample, and of a piece.
_MOST, _SAMPLE, _ROWS = 1_000, 1 << 14, 1 << 14
# Added to the diagonal, relative to it, where a singular matrix is solved with; eigenvalues, relative to the largest,
# that are none.
_RIDGE, _SINGULAR = 1e-10, 1e-12


@dataclass(frozen=True)
class FactorRange:
    """Of all rows.

    Attributes
    ----------
    rest : (p + 1, p + 1)
        E'WE.
    root : (r, q)
        N.
    basis : (q, r)
        Such that Q'WR = basis'Z'WR for any R.
    """

    rest: np.ndarray
    root: np.ndarray
    basis: np.ndarray

    def taken(self, where: np.ndarray) -> FactorRange:
        """With the columns of Z in another order."""
        return FactorRange(self.rest, self.root[:, where], self.basis[where])

    def combined(self, K) -> FactorRange:
        """With Z K' in place of Z, K (q, q) sparse."""
        from scipy.sparse.linalg import spsolve

        return FactorRange(self.rest, (K @ self.root.T).T, spsolve(K.T.tocsc(), self.basis))


class Rows:
    """Residuals of V = [X, r] given coefficients of the effects, some rows at a time.

    Parameters
    ----------
    terms : sequence
        Factors in the order in which their columns of Z lie.
    w : (n,)
    columns : callable
        Rows (m,) to [X, r] there, (m, p + 1).
    """

    def __init__(self, terms, w: np.ndarray, columns):
        self.terms, self.w, self.columns = terms, w, columns

    def left(self, coefficients: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """V - Z a, (m, p + 1), for a (q, p + 1)."""
        E, begin = self.columns(rows), 0
        for term in self.terms:
            S, G = len(term.z), len(term.levels)
            a = coefficients[begin : begin + G * S].reshape(G, S, -1)
            begin += G * S
            E = E - np.einsum("sm,msk->mk", term.z[:, rows], a[np.asarray(term.codes)[rows]])
        return E

    def gram(self, coefficients: np.ndarray) -> np.ndarray:
        """E'WE over all rows."""
        total = np.zeros((coefficients.shape[1],) * 2)
        for begin in range(0, len(self.w), _ROWS):
            rows = np.arange(begin, min(begin + _ROWS, len(self.w)))
            E = self.left(coefficients, rows)
            total += (E * self.w[rows, None]).T @ E
        return total


def varies_little(ztz, ztv: np.ndarray, rows: Rows) -> bool:
    """Whether next to nothing of the last column of V is left apart from the effects and X, in a sample of the rows."""
    from scipy import linalg

    if len(ztv) > _MOST:
        return False
    A = ztz.toarray()
    A[np.diag_indices_from(A)] *= 1 + _RIDGE
    A[np.diag_indices_from(A)] += np.finfo(float).tiny
    try:
        coefficients = linalg.cho_solve(linalg.cho_factor(A, lower=True), ztv)
    except np.linalg.LinAlgError:
        return False
    n = len(rows.w)
    some = np.arange(0, n, -(-n // _SAMPLE))
    E, V, w = rows.left(coefficients, some), rows.columns(some), rows.w[some]
    total = w @ np.square(V)
    return left_given_others((E * w[:, None]).T @ E, total) < LITTLE * total[-1]


def factor_range(ztz, ztv: np.ndarray, rows: Rows) -> FactorRange | None:
    """None where so many effects leave nothing apart from them in any data."""
    A = ztz.toarray()
    size = np.sqrt(np.where(np.diag(A) > 0, np.diag(A), 1.0))
    values, vectors = np.linalg.eigh(A / np.outer(size, size))
    there = values > _SINGULAR * values[-1]
    root = np.sqrt(values[there])
    if np.count_nonzero(rows.w) - len(root) <= ztv.shape[1] - 1:
        return None
    basis = vectors[:, there] / root / size[:, None]
    N = root[:, None] * vectors[:, there].T * size
    return FactorRange(rows.gram(basis @ (basis.T @ ztv)), N, basis)


def apart(ztz, ztv: np.ndarray, scalars: dict, w, r, column, terms) -> FactorRange | None:
    """What serves a response that hardly varies apart from the effects, else None.

    Where there is one, `ztv` and `scalars` become those of the residuals of least squares within the levels.

    Parameters
    ----------
    ztz, ztv
        As in `FactorProducts`.
    scalars, w, r, column
        Of `design.crossproducts.row_products`.
    terms : sequence
        In the order of elimination.
    """
    p = ztv.shape[1] - 1
    of = lambda r: Rows(terms, w, lambda rows: np.column_stack([*(column(j, rows) for j in range(p)), r[rows]]))
    if not varies_little(ztz, ztv, of(r)):
        return None
    found = factor_range(ztz, ztv, of(r))
    if found is None:
        return None
    more = slopes_of_last(found.rest, np.diag(scalars["vtv"]))
    for j, slope in enumerate(more):
        r = r - slope * column(j)
    V = np.append(-more, 1.0)
    vtv = scalars["vtv"]
    ztv[:, p] = ztv @ V
    vtv[p, :p] = vtv[:p, p] = vtv[:p] @ V
    vtv[p, p] = w @ np.square(r)
    scalars["origin"] = scalars["origin"] + more
    return factor_range(ztz, ztv, of(r))
