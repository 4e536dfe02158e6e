"""The moments of a Gaussian model to second order in the relative factor, by one pass over the groups.

With A = Z'WZ of a group and C = T T', the group adds log det (I + A C) and W'M W, M = C (I + A C)^-1, to the moments
(`objectives.gaussian`). With P = (I + C A)^-1 = I - M A and B = A P, which is symmetric,

    d log det = tr B dC              d2 log det = -tr B dC B dC'
    dM        = P dC P'              d2 M       = -P dC B dC' P' - P dC' B dC P'

Hence sums over groups of B, of products of two entries of B, of U_a U_b' and of B_cd U_a U_b', U = P'Z'WV, give all
first and second derivatives. They are formed on the device, one product of matrices a block of groups; the
chain rule from C to the entries of T is small algebra on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxglmm.design.crossproducts import CrossProducts
from jaxglmm.objectives.gaussian import Moments, group_kernel, rest_kernel, sum_blocks


class Expansion(NamedTuple):
    """Moments at a point and their derivatives in the q free entries of T, (..., q) and (..., q, q). Numpy."""

    value: Moments
    first: Moments
    second: Moments


class _Sums(NamedTuple):
    """Sums over groups; w runs over 1 and the entries B_cd, c <= d."""

    log_det: Array  # ()
    explained: Array  # sum of V'WZ M Z'WV, (p + 1, p + 1)
    outer: Array  # sum of w U_a U_b', (1 + m, p + 1, S, p + 1, S)
    weights: Array  # sum of w w', (1 + m, 1 + m)


def _pairs(size: int) -> list[tuple[int, int]]:
    return [(c, d) for c in range(size) for d in range(c, size)]


@jax.jit
def _group_sums(factor: Array, ztz: Array, ztv: Array) -> _Sums:
    size = factor.shape[0]
    some = range(size)

    def block(arrays):
        ztz, ztv = arrays
        log_det, M = group_kernel(factor, ztz)
        MA = [[sum(M[a, c] * ztz[c, b] for c in some) for b in some] for a in some]
        P = [[float(a == b) - MA[a][b] for b in some] for a in some]
        B = [sum(ztz[c, e] * P[e][d] for e in some) for c, d in _pairs(size)]
        U = jnp.stack([sum(P[b][a] * ztv[:, b] for b in some) for a in some], axis=1)
        MV = jnp.stack([sum(M[a, b] * ztv[:, b] for b in some) for a in some], axis=1)
        return _sums(log_det, B, U, jnp.einsum("iag,jag->ij", MV, ztv, precision="highest"))

    return sum_blocks(block, (ztz, ztv))


@jax.jit
def _sums_apart(factor: Array, root: Array, coefficients: Array) -> _Sums:
    """As `_group_sums` of a response that hardly varies within groups (`design.within`): U = B a."""
    some = range(factor.shape[0])

    def block(arrays):
        root, a = arrays
        log_det, B = rest_kernel(factor, root)
        U = jnp.stack([sum(B[k, b] * a[:, b] for b in some) for k in some], axis=1)
        pairs = [B[c, d] for c, d in _pairs(len(some))]
        return _sums(log_det, pairs, U, -jnp.einsum("iag,jag->ij", U, a, precision="highest"))

    return sum_blocks(block, (root, coefficients))


def _sums(log_det, B, U, explained) -> _Sums:
    w = jnp.stack([jnp.ones_like(log_det), *B])
    return _Sums(
        jnp.sum(log_det),
        explained,
        jnp.einsum("wiag,jbg->wiajb", w[:, None, None] * U, U, precision="highest"),
        jnp.einsum("wg,vg->wv", w, w, precision="highest"),
    )


def expand(raw: np.ndarray, cross: CrossProducts) -> Expansion:
    """Expand the moments about the relative factor with free entries `raw` (q,); called with x64 on."""
    vtv = np.asarray(cross.vtv)
    if cross.n_effects == 0:
        empty = lambda *shape: Moments(np.zeros(shape), np.zeros((*vtv.shape, *shape)))
        return Expansion(Moments(np.zeros(()), vtv), empty(0), empty(0, 0))
    rows, columns = cross.covariance.entries
    size, q = cross.covariance.n_effects, len(rows)
    T = np.zeros((size, size))
    T[rows, columns] = raw
    if cross.within is None:
        sums = _Sums(*map(np.asarray, _group_sums(T, cross.ztz, cross.ztv)))
    else:
        sums, vtv = _sums_apart(T, cross.within.root, cross.within.coefficients), np.asarray(cross.within.rest)
        sums = _Sums(*map(np.asarray, sums))

    unit = np.zeros((q, size, size))
    unit[np.arange(q), rows, columns] = 1.0
    dC = unit @ T.T
    dC = dC + dC.transpose(0, 2, 1)
    ddC = np.einsum("kij,lmj->klim", unit, unit)
    ddC = ddC + ddC.transpose(0, 1, 3, 2)

    which = np.zeros((size, size), int)
    for w, (c, d) in enumerate(_pairs(size), start=1):
        which[c, d] = which[d, c] = w
    B, BB = sums.weights[0][which], sums.weights[which[:, :, None, None], which]
    UU = sums.outer[0].transpose(1, 3, 0, 2)  # a, b, i, j
    UBU = sums.outer[which].transpose(0, 1, 3, 5, 2, 4)  # b, c, a, d, i, j

    turned = np.tensordot(dC, UBU, axes=([1, 2], [2, 0]))  # k, c, d, i, j
    bent = np.tensordot(turned, dC, axes=([1, 2], [1, 2]))  # k, i, j, l
    bent = bent.transpose(1, 2, 0, 3) + bent.transpose(2, 1, 0, 3)
    return Expansion(
        Moments(sums.log_det, vtv - sums.explained),
        Moments(
            np.einsum("ab,kab->k", B, dC),
            -np.tensordot(UU, dC, axes=([0, 1], [1, 2])),
        ),
        Moments(
            np.einsum("ab,klab->kl", B, ddC) - np.einsum("abcd,kbc,lda->kl", BB, dC, dC),
            bent - np.tensordot(UU, ddC, axes=([0, 1], [2, 3])),
        ),
    )
