"""Sparse matrices over the levels of two factors: products with a block of vectors, and the sums over rows behind them.

A matrix has a block (S, R) for each pair of levels that meet in the data. Its pairs are sorted by the first factor's
level; a second order, by the other's, serves the transpose, so that both products are sums over consecutive entries:
no scatter and no atomics. Each operation stands here in plain JAX, which says what it computes, and as a native kernel
(kernels/cpu/pairs.cc). Products and outer products are each other's derivatives, so that reverse differentiation of any
order stays native.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxglmm.ops import native


class PairIndex(NamedTuple):
    """Where two factors' levels meet. All int32.

    Attributes
    ----------
    first, second : (P,)
        The pair's levels, sorted by the first. Entries that no pointer reaches are padding.
    start : (G + 1,)
        The pairs of the first factor's level g are start[g], ..., start[g + 1] - 1.
    place : (P,)
        The pairs sorted by the second factor's level.
    place_start : (G' + 1,)
        Those of its level h are place[place_start[h]], ...
    place_first : (P,)
        The first factor's level of each of `place`.
    """

    first: Array
    second: Array
    start: Array
    place: Array
    place_start: Array
    place_first: Array


_NOWHERE = np.zeros(0, np.int32)


def pair_product(values: Array, index: PairIndex, x: Array, *, adjoint: bool = False) -> Array:
    """A x for blocks `values` (P, S, R) of A: (G', R, k) -> (G, S, k). With `adjoint` A'x: (G, S, k) -> (G', R, k)."""
    return _product(adjoint, values, index, x)


def pair_outer(index: PairIndex, a: Array, b: Array) -> Array:
    """a b' where levels meet: a[first] b[second]' summed over k, (G, S, k), (G', R, k) -> (P, S, R)."""
    return _outer(index, a, b)


@jax.custom_vjp
def _outer(index, a, b):
    return _outer_of(index.start, index.first, index.second, a, b)


def _outer_forward(index, a, b):
    return _outer(index, a, b), (index, a, b)


def _outer_backward(kept, change):
    index, a, b = kept
    return None, pair_product(change, index, b), pair_product(change, index, a, adjoint=True)


_outer.defvjp(_outer_forward, _outer_backward)


def _product_plain(adjoint, values, index, x):
    if adjoint:
        return _product_of(values, index.place_start, index.place_first, index.place, x, transposed=True)
    return sparse_product(values, index.start, index.second, x)


_product = jax.custom_vjp(_product_plain, nondiff_argnums=(0,))


def _product_forward(adjoint, values, index, x):
    return _product(adjoint, values, index, x), (values, index, x)


def _product_backward(adjoint, kept, change):
    values, index, x = kept
    left, right = (x, change) if adjoint else (change, x)
    return pair_outer(index, left, right), None, pair_product(values, index, change, adjoint=not adjoint)


_product.defvjp(_product_forward, _product_backward)


def row_sums(left: Array, right: Array | None, start: Array, place: Array = _NOWHERE) -> Array:
    """Sum of left_i right_i' over the rows i of each level: (S, n), (R, n) -> (G, S, R).

    Parameters
    ----------
    left : (S, n)
    right : (R, n), optional
        A one for each row by default, R = 1.
    start : int32 (G + 1,)
        The rows of level g are place[start[g]], ..., place[start[g + 1] - 1].
    place : int32 (n,), optional
        0, 1, 2, ... by default.
    """
    right = left[:0] if right is None else right
    if _covered(left, right):
        shape = (start.shape[0] - 1, left.shape[0], right.shape[0] or 1)
        return native.call("row_sums", jax.ShapeDtypeStruct(shape, left.dtype), left, right, start, place)
    products = left[:, None] * (right[None] if right.shape[0] else jnp.ones_like(left[:1])[None])
    return _sums_of(jnp.moveaxis(products, -1, 0), start, place)


def sampled_product(values: Array, start: Array, other: Array, R: Array) -> Array:
    """E R where E has entries: E sparse (G, r) by rows, R dense and symmetric.

    Parameters
    ----------
    values : (m,)
        Entries of E.
    start, other : int32 (G + 1,), (m,)
        Row pointers and columns.
    R : (r, r)
        Its upper triangle; below it anything may stand.
    """
    if _covered(values, R):
        return native.call("sampled_product", jax.ShapeDtypeStruct(values.shape, values.dtype), values, start, other, R)
    R = jnp.triu(R) + jnp.triu(R, 1).T
    row = _levels(start, values.shape[0])
    dense = jnp.zeros((start.shape[0] - 1, R.shape[0]), values.dtype).at[row, other].add(values)
    return jnp.where(jnp.arange(values.shape[0]) < start[-1], (dense @ R)[row, other], 0.0)


def sparse_product(values: Array, start: Array, other: Array, x: Array) -> Array:
    """A x for A by rows: blocks (m, S, R), pointers (G + 1,), columns (m,), x (G', R, k). No rule of derivatives."""
    return _product_of(values, start, other, _NOWHERE, x, transposed=False)


def _product_of(values, start, other, place, x, *, transposed):
    if _covered(values, x):
        shape = (start.shape[0] - 1, values.shape[2 if transposed else 1], x.shape[2])
        result = jax.ShapeDtypeStruct(shape, values.dtype)
        return native.call("pair_product", result, values, start, other, place, x, transposed=transposed)
    blocks = values[place] if place.shape[0] else values
    each = jnp.einsum("psr,psk->prk" if transposed else "psr,prk->psk", blocks, x[other], precision="highest")
    return _sums_of(each, start, _NOWHERE)


def _outer_of(start, first, second, a, b):
    if _covered(a, b):
        result = jax.ShapeDtypeStruct((second.shape[0], a.shape[1], b.shape[1]), a.dtype)
        return native.call("pair_outer", result, start, second, a, b)
    each = jnp.einsum("psk,prk->psr", a[first], b[second], precision="highest")
    return jnp.where((jnp.arange(second.shape[0]) < start[-1])[:, None, None], each, 0.0)


def _sums_of(values, start, place):
    values = values[place] if place.shape[0] else values
    levels = start.shape[0] - 1
    return jax.ops.segment_sum(values, _levels(start, values.shape[0]), levels, indices_are_sorted=True)


def _levels(start, count):
    """The level of each entry; beyond the last one for padding, which sums leave out."""
    return jnp.searchsorted(start[1:], jnp.arange(count, dtype=start.dtype), side="right", method="sort")


def _covered(*arrays) -> bool:
    return all(v.dtype == jnp.float64 for v in arrays) and native.use_native(jax.default_backend())
