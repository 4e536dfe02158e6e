"""Group totals on the block storage of `design.groups`, and the loop over blocks that applies a body.

`total(v)` gives every slot the sum of v over the slot's group. It and its methods alone know how groups are
stored: objectives are written per slot in terms of them.
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxglmm.design.groups import LONGEST, SIZES, GroupIndex
from jaxglmm.ops.varying import alike, axes_of, vary, zeros_as


class Totals(abc.ABC):
    """The rows of some groups: `total(v)` gives every slot the sum of v over the slot's group, (..., R) -> (..., R).

    Besides, what a Hessian of X beta is made of. `X` is (R, p), or None where there is no matrix.
    """

    X: Any

    def __init__(self, X: Array | None):
        self.X = X

    @abc.abstractmethod
    def __call__(self, v: Array) -> Array: ...

    def columns(self, v: Array) -> Array:
        """X'v of each vector: (m, R) -> (m, p)."""
        return jnp.matmul(v, self.X, precision="highest")

    def no_columns(self, dtype) -> Array:
        """Zeros (p, p)."""
        return jnp.zeros((self.X.shape[1],) * 2, dtype)

    def outer(self, diagonal: Array, left: Array, right: Array) -> Array:
        """X'V X (p, p), symmetric but for rounding, V within a group diag(diagonal) + sum_f l_f r_f' + r_f l_f'.

        Parameters
        ----------
        diagonal : (R,)
        left, right : (F, R)
        """
        out = self._weighted(diagonal)
        for l, r in zip(left, right, strict=True):
            half = jnp.matmul(l * self.X.T, self(r * self.X.T).T, precision="highest")
            out = out + half + half.T
        return out

    def _weighted(self, diagonal):
        return jnp.matmul(self.X.T * diagonal, self.X, precision="highest")

    # A sum of many outer products v v' within groups, between rows of X.

    def no_pairs(self, dtype) -> Array:
        """What `add_pairs` begins with."""
        return self.no_columns(dtype)

    def add_pairs(self, pairs: Array, weighted: Array, v: Array) -> Array:
        """Add `weighted` v', weighted being v times what is the same in all slots of a group."""
        return pairs + jnp.matmul(weighted * self.X.T, self(v * self.X.T).T, precision="highest")

    def outer_pairs(self, pairs: Array) -> Array:
        """The sum between rows of X, (p, p)."""
        return pairs


def _runs(v: Array, size: int) -> Array:
    """Sum the `size` runs of the last axis, and give the sum to each run.

    Unrolled adds of contiguous vectors: a reduction would go to a slower library call on CPU.
    """
    runs = v.reshape(*v.shape[:-1], size, v.shape[-1] // size)
    out = runs[..., 0, :]
    for k in range(1, size):
        out = out + runs[..., k, :]
    return jnp.broadcast_to(out[..., None, :], runs.shape).reshape(v.shape)


class _Block(Totals):
    """One short block; its class and its place are traced.

    The k-th row of a group is a run behind its row before. So the rows of all pairs at a distance of k runs are two
    slices, and X'V X is one product of X with itself, weighed and added up pair by pair: as many steps as rows in a
    group, and none that depends on the number of columns.
    """

    def __init__(self, index: GroupIndex, kind: Array, place: Array, rows_at: Callable[[Array], Array] | None):
        """`rows_at(slot)` gives as many rows of X as a block has from there on."""
        super().__init__(None if rows_at is None else rows_at(place * index.block))
        # A small block has no classes that do not divide it: their entries are never read.
        run = np.maximum(index.block // np.array(SIZES), 1)
        self._wrap = jnp.asarray(np.arange(index.block) % run[:, None], jnp.int32)[kind]
        self._run = jnp.asarray(run, jnp.int32)[kind]
        self._slots, self._rows_at = index.block, rows_at
        # Pairs are met forwards in the first block and backwards in all others, so that no slice leaves X.
        self._first, self._way = place * index.block, jnp.where(place == 0, 1, -1) * self._run

    def __call__(self, v):
        # All alike in what they vary over before the system is stated, which is traced for itself.
        return _block_total(*alike(v, self._run, self._wrap))

    def _moved(self, v):
        """Slots k runs on of v (..., R), zero beyond the block, as a function of k."""
        zero = jnp.zeros_like(v)
        padded = jnp.concatenate([zero, v, zero], axis=-1)
        return lambda k: lax.dynamic_slice_in_dim(padded, self._slots + k * self._way, self._slots, axis=-1)

    def _pairwise(self, weights, first):
        """X'Y: Y the rows of X times `first`, and to each row those k runs on, times weights(k)."""
        assert self._rows_at is not None
        rows_at = self._rows_at
        add = lambda k, Y: Y + weights(k)[:, None] * rows_at(self._first + k * self._way)
        Y = lax.fori_loop(1, self._slots // self._run, add, first[:, None] * self.X)
        product = jnp.matmul(self.X.T, Y, precision="highest")
        return 0.5 * (product + product.T)

    def outer(self, diagonal, left, right):
        moved = self._moved(jnp.concatenate([right, left]))
        both = jnp.concatenate([left, right])
        weights = lambda k: 2.0 * jnp.sum(both * moved(k), axis=0)
        return self._pairwise(weights, diagonal + 2.0 * jnp.sum(left * right, axis=0))

    def no_pairs(self, dtype):
        return jnp.zeros((LONGEST, self._slots), dtype)

    def add_pairs(self, pairs, weighted, v):
        moved = self._moved(v)
        return lax.fori_loop(0, self._slots // self._run, lambda k, out: out.at[k].add(weighted * moved(k)), pairs)

    def outer_pairs(self, pairs):
        return self._pairwise(lambda k: 2.0 * pairs[k], pairs[0])


@jax.jit
def _block_total(v, run, wrap):
    """Sum of the runs of length `run` (traced) of the last axis, in each of its slots.

    One small loop serves all sizes, where a `lax.switch` over sizes would be traced and compiled a dozen times at
    each use. The sum is formed once, in the first run, and copied, so that slots of a group agree to the last bit.
    """
    slots = v.shape[-1]

    def add(_, v):
        padded = jnp.concatenate([v, jnp.zeros_like(v)], -1)
        shift = lambda k, acc: acc + lax.dynamic_slice_in_dim(padded, k * run, slots, axis=-1)
        one = vary(jnp.ones_like(run), axes_of(run))
        return lax.fori_loop(one, slots // run, shift, v).at[..., wrap].get(mode="promise_in_bounds")

    # The operation is linear and its own transpose. Stating it as the solution of a symmetric linear system is
    # how JAX is told so, for every mode of differentiation: the loop itself cannot be transposed.
    return lax.custom_linear_solve(lambda x: x, v, add, symmetric=True)


class _Short(Totals):
    """All short blocks at once, class by class."""

    def __init__(self, index: GroupIndex, X: Array | None):
        super().__init__(X)
        if index.bounds is None:
            raise ValueError("this index was built for block-by-block evaluation: build it with blocked=False")
        self._bounds, self._block = index.bounds, index.block

    def __call__(self, v):
        parts = []
        for size, begin, end in zip(SIZES, self._bounds[:-1], self._bounds[1:], strict=True):
            if end > begin:
                part = v[..., begin * self._block : end * self._block]
                tiles = part.reshape(*v.shape[:-1], end - begin, self._block)
                parts.append(_runs(tiles, size).reshape(part.shape))
        return jnp.concatenate(parts, axis=-1)


class _Long(Totals):
    """The long section: pieces of 32 rows, joined."""

    def __init__(self, index: GroupIndex, X: Array | None):
        super().__init__(X)
        self._index, self._pieces = index, jnp.asarray(index.piece)

    def __call__(self, v):
        index, across = self._index, self._index.block // LONGEST
        tiles = v.reshape(*v.shape[:-1], index.n_long, LONGEST, across)
        piece = tiles[..., 0, :]
        for k in range(1, LONGEST):
            piece = piece + tiles[..., k, :]
        piece = piece.reshape(*v.shape[:-1], index.n_long * across)
        joined = jax.ops.segment_sum(
            jnp.moveaxis(piece, -1, 0), self._pieces, index.n_long_groups, indices_are_sorted=True
        )
        spread = jnp.moveaxis(joined[self._pieces], 0, -1)
        spread = spread.reshape(*v.shape[:-1], index.n_long, 1, across)
        return jnp.broadcast_to(spread, tiles.shape).reshape(v.shape)


def map_groups(body, index: GroupIndex, rows, matrix: Array | None = None, *, dtype=None, sums=None):
    """Apply `body` to all groups and add up what it returns.

    Parameters
    ----------
    body : callable
        `body(total, head, rows, matrix) -> (sums, rows_out)`: a pytree of sums over groups, and a pytree
        of arrays whose last axis runs over the slots it was given. `total` is a `Totals`.
    index : GroupIndex
    rows : pytree of arrays (..., n_slots)
    matrix : array (n_slots, p), optional
        Sliced along its first axis.
    dtype : dtype, optional
        What floating-point rows and matrix are turned into, block by block, before the body sees them.
    sums : dtype, optional
        What sums are turned into before they are added up.

    Returns
    -------
    sums, rows_out
        Sums over everything, and arrays (..., n_slots).
    """
    split = index.n_short * index.block
    rows = (rows, index.head)

    floating = lambda v: jnp.issubdtype(v.dtype, jnp.floating)
    turn = lambda tree, to: tree if to is None else jax.tree.map(lambda v: v.astype(to) if floating(v) else v, tree)

    def apply(total, rows):
        values, head = rows
        found, out = body(total, head, turn(values, dtype), total.X)
        return turn(found, sums), out

    def section(begin, end):
        cut = lambda v: lax.slice_in_dim(v, begin, end, axis=v.ndim - 1)
        return None if matrix is None else turn(matrix[begin:end], dtype), jax.tree.map(cut, rows)

    parts = []
    if index.n_short and index.blocked:
        parts.append(_scan_blocks(apply, index, rows, matrix, lambda v: turn(v, dtype)))
    elif index.n_short:
        X, cut = section(0, split)
        parts.append(apply(_Short(index, X), cut))
    if index.n_long:
        X, cut = section(split, index.n_slots)
        parts.append(apply(_Long(index, X), cut))
    found, out = parts[0]
    if len(parts) == 2:
        found = jax.tree.map(jnp.add, found, parts[1][0])
        out = jax.tree.map(lambda a, b: jnp.concatenate([a, b], -1), out, parts[1][1])
    return found, out


def _scan_blocks(apply, index, rows, matrix, turn):
    size, kinds, rows_at = index.block, jnp.asarray(index.kind), None
    if matrix is not None:
        if matrix.shape[0] < 2 * size:  # a block alone has none behind it whose rows its slices may reach into
            matrix = jnp.pad(matrix, ((0, size), (0, 0)))
        rows_at = lambda slot: turn(lax.dynamic_slice_in_dim(matrix, slot, size))

    def at(i):
        cut = lambda v: lax.dynamic_slice_in_dim(v, i * size, size, axis=v.ndim - 1)
        return apply(_Block(index, kinds[i], i, rows_at), jax.tree.map(cut, rows))

    def step(carry, i):
        sums, out = at(i)
        return jax.tree.map(jnp.add, carry, sums), out

    shapes = jax.eval_shape(at, jnp.int32(0))[0]
    zero = jax.tree.map(zeros_as, shapes)
    sums, out = lax.scan(step, zero, jnp.arange(index.n_short, dtype=jnp.int32))
    # (blocks, ..., R) -> (..., blocks * R)
    join = lambda v: jnp.moveaxis(v, 0, -2).reshape(*v.shape[1:-1], -1)
    return sums, jax.tree.map(join, out)
