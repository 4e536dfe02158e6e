"""Cross products of a Gaussian model with one grouping factor.

A Gaussian likelihood sees the rows only through X'X, X'y, y'y and, for each group, Z'Z, Z'X and Z'y. They are
formed once, on the host; afterwards no evaluation touches a row.
"""

from __future__ import annotations

import math
from dataclasses import replace

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

from jaxglmm.design.within import Within, varies_little, within
from jaxglmm.model.covariance import Covariance


# Groups in a block: with 20 columns its cross products and their derivatives stay in the second-level cache.
_BLOCK = 1024
# Rows of a product of matrices, and of a weighted copy of X, when X'X is formed.
_PIECE, _ROWS = 512, 16384


class CrossProducts(eqx.Module):
    """What a Gaussian likelihood needs of the data.

    With V = [X, r] (p + 1 columns), where r = y - offset - X `origin` is the residual of ordinary least
    squares: starting there keeps later differences of sums of squares free of cancellation. The groups lie in
    blocks, within a block along the last axis; groups that only fill a block have zero cross products, which
    contribute nothing to any likelihood.

    Attributes
    ----------
    ztz : float (blocks, S, S, B)
        Z'WZ of each group; S = 0 for a model without random effects.
    ztv : float (blocks, p + 1, S, B)
        Z'WV of each group.
    vtv : float (p + 1, p + 1)
        V'WV over all rows.
    origin : float (p,)
        Ordinary least-squares coefficients: beta = origin + the coefficients of r.
    n : float ()
        Rows of positive weight.
    log_weights : float ()
        Sum of log w over those rows.
    n_groups : int ()
        Groups, without the filling ones.
    covariance : Covariance
        Which effects covary.
    within : Within or None
        Where the response hardly varies within groups.
    """

    ztz: Float[Array, "blocks S S B"]
    ztv: Float[Array, "blocks columns S B"]
    vtv: Float[Array, "columns columns"]
    origin: Float[Array, " p"]
    n: Float[Array, ""]
    log_weights: Float[Array, ""]
    n_groups: Int[Array, ""]
    covariance: Covariance
    within: Within | None = None

    @property
    def p(self) -> int:
        """Number of fixed-effect columns."""
        return self.vtv.shape[0] - 1

    @property
    def n_effects(self) -> int:
        """Number of random effects of a group, S; 0 without random effects."""
        return self.ztz.shape[1]

    def mean_squares(self) -> np.ndarray:
        """Mean of w z^2 of each effect, (S,); of numpy arrays."""
        return np.array([self.ztz[:, a, a].sum() for a in range(self.n_effects)]) / float(self.n)

    def reordered(self, order: np.ndarray) -> CrossProducts:
        """With the effects of each group in another order."""
        ztz, ztv = self.ztz[:, order][:, :, order], self.ztv[:, :, order]
        apart = self.within
        if apart is not None:
            apart = Within(apart.rest, apart.coefficients[:, :, order], apart.root[:, order])
        return replace(self, ztz=ztz, ztv=ztv, within=apart)

    def combined(self, M: np.ndarray) -> CrossProducts:
        """With columns M z (S,) of the effects in place of z."""
        ztz = np.einsum("ac,kcdg,bd->kabg", M, self.ztz, M, optimize=True)
        apart = self.within
        if apart is not None:
            coefficients = np.einsum("ba,kjbg->kjag", np.linalg.inv(M), apart.coefficients)
            apart = Within(apart.rest, coefficients, np.einsum("ab,kbcg->kacg", M, apart.root))
        return replace(self, ztz=ztz, ztv=np.einsum("ab,kjbg->kjag", M, self.ztv), within=apart)


def cross_products(
    y: np.ndarray,
    X: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    offset: np.ndarray | None = None,
    codes: np.ndarray | None = None,
    z: np.ndarray | None = None,
    n_groups: int | None = None,
    blocks: tuple[tuple[int, ...], ...] | None = None,
    center: np.ndarray | None = None,
    scale: np.ndarray | None = None,
) -> CrossProducts:
    """Form the cross products, in float64 numpy.

    One pass over the rows for each pair of a column of X and a random effect; no sort, and no copy of X.

    Parameters
    ----------
    y : (n,)
        Response.
    X : (n, p)
        Fixed-effect columns of full rank, best centred and scaled.
    weights : (n,), optional
        They divide the residual variance: Var(y_i | b) = sigma^2 / w_i. A row of weight 0 is left out.
    offset : (n,), optional
    codes : int (n,), optional
        Group of each row, 0 <= code < n_groups. Absent: no random effects.
    z : (S, n), optional
        Columns of the random effects; a single column of ones when absent.
    n_groups : int, optional
        Number of groups G; default the largest code + 1.
    blocks : tuple of tuples of int, optional
        Effects that covary; all of them when absent.
    center, scale : (p,), optional
        Use (X - center) / scale in place of X; it is never formed whole.

    Returns
    -------
    CrossProducts
        Of numpy arrays.
    """
    scalars, w, r, column = row_products(y, X, weights=weights, offset=offset, center=center, scale=scale)
    n, p = np.shape(X)
    if codes is None:
        empty = {"ztz": np.zeros((0, 0, 0, 0)), "ztv": np.zeros((0, p + 1, 0, 0))}
        return CrossProducts(**empty, n_groups=np.int64(0), covariance=Covariance(()), **scalars)

    codes = np.asarray(codes, np.intp)  # what bincount counts by: otherwise a copy at each call
    z = np.ones((1, n)) if z is None else np.asarray(z, np.float64)
    n_groups = int(codes.max()) + 1 if n_groups is None else n_groups
    count, size = _block_shape(n_groups)
    effects = len(z)

    def per_group(values: np.ndarray) -> np.ndarray:
        return np.bincount(codes, values, minlength=count * size).reshape(count, size)

    ztz = np.empty((count, effects, effects, size))
    ztv = np.empty((count, p + 1, effects, size))
    for a in range(effects):
        wz = w * z[a]
        for b in range(a + 1):
            ztz[:, a, b] = ztz[:, b, a] = per_group(wz * z[b])
        for j in range(p):
            ztv[:, j, a] = per_group(wz * column(j))
        ztv[:, p, a] = per_group(wz * r)
    covariance = Covariance(blocks or (tuple(range(effects)),))
    columns = lambda rows: np.stack([column(j, rows) for j in range(p)], axis=1) if p else np.zeros((n, 0))[rows]
    apart = None
    if varies_little(w, z, codes, columns, r):
        # Residuals of least squares within groups: next to nothing of them is left there, and nothing cancels.
        more = within(w, z, codes, columns, r, ztz, ztv).slopes(scalars["vtv"])
        for j, slope in enumerate(more):  # a column at a time: no second copy of X
            r = r - slope * column(j)
        V = np.append(-more, 1.0)
        ztv[:, p] = np.einsum("j,kjsg->ksg", V, ztv)
        vtv = scalars["vtv"]
        vtv[p, :p] = vtv[:p, p] = vtv[:p] @ V
        vtv[p, p] = w @ np.square(r)
        scalars["origin"] = scalars["origin"] + more
        apart = within(w, z, codes, columns, r, ztz, ztv)
    return CrossProducts(ztz=ztz, ztv=ztv, n_groups=np.int64(n_groups), covariance=covariance, within=apart, **scalars)


def row_products(y, X, *, weights=None, offset=None, center=None, scale=None):
    """What does not depend on groups; parameters as in `cross_products`.

    Returns
    -------
    scalars : dict
        `vtv`, `origin`, `n` and `log_weights` of `CrossProducts`.
    w, r : (n,)
        Weights, and residuals of ordinary least squares.
    column : callable
        j -> column j of X in use, (n,); with rows as well, of those.
    """
    X = np.asarray(X, np.float64)
    y = np.asarray(y, np.float64)
    n, p = X.shape
    w = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    target = y if offset is None else y - offset

    center = np.zeros(p) if center is None else center
    scale = np.ones(p) if scale is None else scale
    # v'X of the columns in use: linear in X, so that centre and scale come afterwards.
    against = lambda v: (v @ X - v.sum() * center) / scale

    gram = weighted_gram(X, w, center, scale)
    origin = np.linalg.lstsq(gram, against(w * target), rcond=None)[0]
    r = target - (X @ (origin / scale) - center @ (origin / scale))

    vtv = np.zeros((p + 1, p + 1))
    vtv[:p, :p] = gram
    wr = w * r
    vtv[p, :p] = vtv[:p, p] = against(wr)
    vtv[p, p] = wr @ r
    present = w > 0
    scalars = {
        "vtv": vtv,
        "origin": origin,
        "n": np.float64(np.count_nonzero(present)),
        "log_weights": np.float64(0.0 if weights is None else np.log(w[present]).sum()),
    }
    return scalars, w, r, lambda j, rows=slice(None): (X[rows, j] - center[j]) / scale[j]


def weighted_gram(X: np.ndarray, w: np.ndarray, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """X'WX of centred and scaled columns."""
    p = X.shape[1]
    gram = np.zeros((p, p))
    for begin in range(0, len(X), _ROWS):
        rows = (X[begin : begin + _ROWS] - center) / scale
        gram += small_products(rows * w[begin : begin + _ROWS, None], rows)
    return gram


def small_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left'right for left (n, p), right (n, k), n of some ten thousands.

    A sum of products so small that BLAS does each in one thread: its threads wait for each other at every product,
    which on a busy machine costs many times the arithmetic.
    """
    pieces = len(left) // _PIECE
    whole = pieces * _PIECE
    first, second = (v[:whole].reshape(pieces, _PIECE, v.shape[1]) for v in (left, right))
    return (first.transpose(0, 2, 1) @ second).sum(0) + left[whole:].T @ right[whole:]


def _block_shape(n_groups: int) -> tuple[int, int]:
    """Blocks, and groups a block; G is rounded up to two significant digits: like data share programs."""
    step = 10 ** max(0, math.floor(math.log10(max(n_groups, 1))) - 1)
    rounded = math.ceil(n_groups / step) * step
    if rounded <= _BLOCK:
        return 1, rounded
    return math.ceil(rounded / _BLOCK), _BLOCK
