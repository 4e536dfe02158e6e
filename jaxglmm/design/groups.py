"""The group index: one storage order of the rows in which group sums are dense.

Rows are sorted by group and groups by size class. A class of size c stores its groups in *blocks* of R row
slots, each block k-major: c runs of R/c slots, the k-th run holding the k-th row of R/c groups. Every block
has the same number of slots whatever its class, so one compiled loop body serves them all, a block of X is
one contiguous (R, p) piece of memory, and a group sum is the sum of c contiguous vectors. Groups of more
than 32 rows are cut into pieces of 32, stored in the same way in blocks of their own at the end, and joined
by a short sorted sum over pieces. Slots without a row carry weight 0.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxglmm.errors import DataError
from jaxglmm.ops.layout import group_counts, scatter_rows, slots_of_rows
from jaxglmm.ops.memory import aligned_empty


SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
LONGEST = SIZES[-1]
_KIND = np.searchsorted(SIZES, np.maximum(np.arange(LONGEST + 2), 1)).astype(np.int8)  # of a group, by its rows
# Every size divides a block.
_SMALLEST_BLOCK = 480
# Below this many rows half-empty blocks are most of the work: blocks are then of the least size, by the longest group.
_FEW_ROWS, _LEAST_BLOCKS = 2000, ((4, 24), (10, 120), (LONGEST, _SMALLEST_BLOCK))
# Blocks of about this many slots keep a loop body's vectors in the first- and second-level caches.
_LARGEST_BLOCK = 960


class GroupIndex(eqx.Module):
    """Which slots belong together, in the form that compiled code reads.

    Attributes
    ----------
    kind : int32 (n_short,)
        Position in SIZES of each short block's class.
    piece : int32 (n_long * block / 32,) or None
        Group number, sorted, of each 32-row piece of the long section; pad pieces have groups of their own.
    head : bool (n_slots,)
        True at the first slot of each of the caller's groups.
    block : int
        Slots in a block, R.
    n_short, n_long : int
        Numbers of blocks of short groups and of pieces.
    n_long_groups : int
        Number of groups in the long section, pads included.
    blocked : bool
        Evaluate block by block in a `lax.scan` (CPU), or all blocks at once (GPU, TPU), where `bounds`
        holds the first block of each class and the end.
    mesh : jax.sharding.Mesh or None
        The devices that share the groups, each with an equal part of the slots; sizes above are those of a part.
    """

    kind: Int[Array, " blocks"]
    piece: Int[Array, " pieces"] | None
    head: Bool[Array, " slots"]
    block: int = eqx.field(static=True)
    n_short: int = eqx.field(static=True)
    n_long: int = eqx.field(static=True)
    n_long_groups: int = eqx.field(static=True)
    bounds: tuple[int, ...] | None = eqx.field(static=True)
    mesh: Any = eqx.field(static=True, default=None)

    @property
    def blocked(self) -> bool:
        return self.bounds is None

    @property
    def n_slots(self) -> int:
        return (self.n_short + self.n_long) * self.block


@dataclass(frozen=True)
class Layout:
    """Where the caller's rows and groups lie in tile storage (host side, numpy).

    Attributes
    ----------
    slot : int64 (n,)
        Slot of each of the caller's rows.
    first : int64 (G,)
        First slot of each group, in level order.
    counts : int64 (G,)
        Rows of each group.
    n_slots : int
    """

    slot: np.ndarray
    first: np.ndarray
    counts: np.ndarray
    n_slots: int

    def scatter(self, values: np.ndarray, fill: float = 0.0, dtype=None) -> np.ndarray:
        """Rows (along the last axis) into slots; slots without a row hold `fill`."""
        out = aligned_empty((*values.shape[:-1], self.n_slots), dtype or values.dtype)
        if values.size and not any(values.strides):
            out.fill(values.flat[0])
            if values.flat[0] != fill:
                out[..., self.empty] = fill
            return out
        out.fill(fill)
        flat = out.reshape(-1, self.n_slots)
        for to, row in zip(flat, values.reshape(len(flat), -1), strict=True):
            scatter_rows([row], self.slot, to)
        return out

    @cached_property
    def empty(self) -> np.ndarray:
        """int64: slots without a row."""
        out = np.ones(self.n_slots, bool)
        out[self.slot] = False
        return np.flatnonzero(out)


def round_up(count: int) -> int:
    """The next size that programs are compiled for: steps of at most a half below 64, of an eighth above."""
    if count <= 4:
        return max(count, 1)
    step = 1 << (count.bit_length() - (2 if count < 64 else 4))
    return -(-count // step) * step


def build_index(
    codes: np.ndarray, n_groups: int | None = None, *, blocked: bool = True, block: int | None = None,
    least: tuple[int, int, int] = (0, 0, 0),
) -> tuple[GroupIndex, Layout]:  # fmt: skip
    """Sort rows by group and lay them out in blocks.

    Parameters
    ----------
    codes : int (n,)
        Group of each row, 0 <= codes < n_groups.
    n_groups : int, optional
        Number of groups; the largest code plus one by default.
    blocked : bool
        Block-by-block evaluation (CPU) or everything at once (GPU, TPU).
    block : int, optional
        Slots in a block; a multiple of 480. Chosen from the data by default.
    least : tuple of int
        Fewest short blocks, blocks of pieces and groups in pieces, where several indices must be of the same shape.

    Returns
    -------
    GroupIndex, Layout

    Raises
    ------
    ValueError
        When a code is outside its range.
    """
    codes = np.asarray(codes)
    n = codes.shape[0]
    if n_groups is None:
        n_groups = int(codes.max()) + 1 if n else 0
    counts = group_counts(codes, n_groups)
    block = _choose_block(n, int(counts.max(initial=1)), block)

    # Where the group's first row goes (first), and how far apart its rows lie (stride).
    kinds = _KIND[np.minimum(counts, LONGEST + 1)]
    first = np.zeros(n_groups, np.int64)
    widths = [max(block // size, 1) for size in SIZES]  # a class that does not divide a small block is empty
    stride = np.array([*widths, 0])[kinds]
    kind_of_block, bounds, base = [], [0], 0
    for kind, across in enumerate(widths):
        members = np.flatnonzero(kinds == kind)
        blocks = -(-len(members) // across)
        if not blocked and blocks:
            blocks = round_up(blocks)
        places = block * np.arange(base, base + blocks)[:, None] + np.arange(across)
        first[members] = places.ravel()[: len(members)]
        kind_of_block.append(np.full(blocks, kind, np.int32))
        base += blocks
        bounds.append(base)
    n_short = max(round_up(base) if blocked else base, least[0])
    kind_of_block.append(np.zeros(n_short - base, np.int32))

    long = np.flatnonzero(kinds == len(SIZES))
    piece, n_long, n_long_groups = None, 0, 0
    if len(long) or least[1]:
        across = block // LONGEST
        pieces = -(-counts[long] // LONGEST)
        n_long = max(round_up(-(-int(pieces.sum()) // across)), least[1])
        n_long_groups = max(round_up(len(long) + 1), least[2])
        # Pad pieces belong to the last (pad) group, whose sums nobody reads.
        piece = np.full(n_long * across, n_long_groups - 1, np.int32)
        piece[: pieces.sum()] = np.repeat(np.arange(len(long)), pieces)
        first[long] = np.cumsum(pieces) - pieces
    slot = slots_of_rows(codes, first, stride, across=max(block // LONGEST, 1), block=block, base=n_short * block)
    if len(long):
        p = first[long]
        first[long] = (n_short + p // across) * block + p % across

    n_slots = (n_short + n_long) * block
    head = np.zeros(n_slots, bool)
    head[first] = True
    index = GroupIndex(
        kind=np.concatenate(kind_of_block),
        piece=piece,
        head=head,
        block=block,
        n_short=n_short,
        n_long=n_long,
        n_long_groups=n_long_groups,
        bounds=None if blocked else tuple(bounds),
    )
    return index, Layout(slot, first, counts, n_slots)


def _choose_block(n: int, longest: int, block: int | None) -> int:
    """Blocks so small that the half-empty last one of each class stays cheap."""
    if block is None and n < _FEW_ROWS:
        return next(least for size, least in _LEAST_BLOCKS if longest <= size or size == LONGEST)
    if block is None:
        block = _SMALLEST_BLOCK
        while 2 * block <= _LARGEST_BLOCK and 2 * block * len(SIZES) <= n // 8:
            block *= 2
    elif block % _SMALLEST_BLOCK:
        raise DataError(f"block must be a multiple of {_SMALLEST_BLOCK}, found {block}")
    return block


def row_index(n: int) -> tuple[GroupIndex, Layout]:
    """The index of a model without groups: rows as they come, in blocks."""
    block = _SMALLEST_BLOCK
    blocks = round_up(-(-n // block))
    index = GroupIndex(
        kind=np.zeros(blocks, np.int32),
        piece=None,
        head=np.zeros(blocks * block, bool),
        block=block,
        n_short=blocks,
        n_long=0,
        n_long_groups=0,
        bounds=None,
    )
    empty = np.zeros(0, np.int64)
    return index, Layout(np.arange(n), empty, empty, blocks * block)
