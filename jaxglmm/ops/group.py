"""Group totals on the block storage of `design.groups`, and the loop over blocks that applies a body.

`total(v)` gives every slot the sum of v over the slot's group. It is the only operation that knows
how groups are stored: objectives are written per slot in terms of it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxglmm.design.groups import LONGEST, SIZES, GroupIndex
from jaxglmm.ops.varying import zeros_as


Total = Callable[[Array], Array]


def _runs(v: Array, size: int) -> Array:
    """Sum the `size` runs of the last axis, and give the sum to each run.

    Unrolled adds of contiguous vectors: a reduction would go to a slower library call on CPU.
    """
    runs = v.reshape(*v.shape[:-1], size, v.shape[-1] // size)
    out = runs[..., 0, :]
    for k in range(1, size):
        out = out + runs[..., k, :]
    return jnp.broadcast_to(out[..., None, :], runs.shape).reshape(v.shape)


def block_total(index: GroupIndex, kind: Array) -> Total:
    """Totals within one short block of the given class. Shapes: (..., R) -> (..., R)."""
    # A small block has no classes that do not divide it: their entries are never read.
    run = np.maximum(index.block // np.array(SIZES), 1)
    wrap = jnp.asarray(np.arange(index.block) % run[:, None], jnp.int32)[kind]
    return lambda v: _block_total(v, jnp.asarray(run, jnp.int32)[kind], wrap)


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
        return lax.fori_loop(1, slots // run, shift, v).at[..., wrap].get(mode="promise_in_bounds")

    # The operation is linear and its own transpose. Stating it as the solution of a symmetric linear system is
    # how JAX is told so, for every mode of differentiation: the loop itself cannot be transposed.
    return lax.custom_linear_solve(lambda x: x, v, add, symmetric=True)


def short_total(index: GroupIndex) -> Total:
    """Totals within all short blocks at once, class by class. Shapes: (..., n_short * R) -> same."""
    if index.bounds is None:
        raise ValueError("this index was built for block-by-block evaluation: build it with blocked=False")
    bounds = index.bounds

    def total(v):
        parts = []
        for size, begin, end in zip(SIZES, bounds[:-1], bounds[1:], strict=True):
            if end > begin:
                part = v[..., begin * index.block : end * index.block]
                tiles = part.reshape(*v.shape[:-1], end - begin, index.block)
                parts.append(_runs(tiles, size).reshape(part.shape))
        return jnp.concatenate(parts, axis=-1)

    return total


def long_total(index: GroupIndex) -> Total:
    """Totals over the long section: pieces of 32 rows, joined. Shapes: (..., n_long * R) -> same."""
    across, pieces = index.block // LONGEST, jnp.asarray(index.piece)

    def total(v):
        tiles = v.reshape(*v.shape[:-1], index.n_long, LONGEST, across)
        piece = tiles[..., 0, :]
        for k in range(1, LONGEST):
            piece = piece + tiles[..., k, :]
        piece = piece.reshape(*v.shape[:-1], index.n_long * across)
        joined = jax.ops.segment_sum(jnp.moveaxis(piece, -1, 0), pieces, index.n_long_groups, indices_are_sorted=True)
        spread = jnp.moveaxis(joined[pieces], 0, -1)
        spread = spread.reshape(*v.shape[:-1], index.n_long, 1, across)
        return jnp.broadcast_to(spread, tiles.shape).reshape(v.shape)

    return total


def map_groups(body, index: GroupIndex, rows, matrix: Array | None = None, *, dtype=None, sums=None):
    """Apply `body` to all groups and add up what it returns.

    Parameters
    ----------
    body : callable
        `body(total, head, rows, matrix) -> (sums, rows_out)`: a pytree of sums over groups, and a pytree
        of arrays whose last axis runs over the slots it was given.
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

    def apply(total, rows, matrix):
        values, head = rows
        found, out = body(total, head, turn(values, dtype), turn(matrix, dtype))
        return turn(found, sums), out

    def section(begin, end):
        cut = lambda v: lax.slice_in_dim(v, begin, end, axis=v.ndim - 1)
        return jax.tree.map(cut, rows), None if matrix is None else matrix[begin:end]

    parts = []
    if index.n_short and index.blocked:
        parts.append(_scan_blocks(apply, index, rows, matrix))
    elif index.n_short:
        parts.append(apply(short_total(index), *section(0, split)))
    if index.n_long:
        parts.append(apply(long_total(index), *section(split, index.n_slots)))
    found, out = parts[0]
    if len(parts) == 2:
        found = jax.tree.map(jnp.add, found, parts[1][0])
        out = jax.tree.map(lambda a, b: jnp.concatenate([a, b], -1), out, parts[1][1])
    return found, out


def _scan_blocks(apply, index, rows, matrix):
    size, kinds = index.block, jnp.asarray(index.kind)

    def at(i):
        cut = lambda v: lax.dynamic_slice_in_dim(v, i * size, size, axis=v.ndim - 1)
        block = None if matrix is None else lax.dynamic_slice_in_dim(matrix, i * size, size)
        return apply(block_total(index, kinds[i]), jax.tree.map(cut, rows), block)

    def step(carry, i):
        sums, out = at(i)
        return jax.tree.map(jnp.add, carry, sums), out

    shapes = jax.eval_shape(at, jnp.int32(0))[0]
    zero = jax.tree.map(zeros_as, shapes)
    sums, out = lax.scan(step, zero, jnp.arange(index.n_short, dtype=jnp.int32))
    # (blocks, ..., R) -> (..., blocks * R)
    join = lambda v: jnp.moveaxis(v, 0, -2).reshape(*v.shape[1:-1], -1)
    return sums, jax.tree.map(join, out)
