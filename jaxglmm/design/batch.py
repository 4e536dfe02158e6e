"""Many designs of one shape: what differs between the fits is stacked, what they share is there once.

Groups are ranked by size in each fit, the largest first, and the storage is that of an envelope: a design whose group
of rank j has as many rows as any fit's has. Fits then share one group index, and a fit's rows lie in the slots of
its groups' ranks, the others having weight 0.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import numpy as np

from jaxglmm.design.design import Design
from jaxglmm.design.groups import LONGEST, SIZES, GroupIndex, Layout


# Slots in a block, and from how many rows on only the last ones are tried.
_BLOCKS, _FEW_ROWS = (24, 48, 96, 120, 192, 240, 480, 960), 20_000
# Neighbouring groups that a processor works on at once.
_WIDTH = 8


@dataclass(frozen=True)
class Packing:
    """Storage for groups ranked by size (host side).

    Attributes
    ----------
    kind : int32 (n_short,)
    piece : int32 or None
        As in `GroupIndex`.
    block, n_short, n_long, n_long_groups : int
    first : int64 (G,)
        Short groups: slot of the first row; long groups: number of the first piece.
    stride : int64 (G,)
        Short groups: slots from a row to the next; 0 for long ones.
    room : int64 (G,)
        Rows that fit.
    """

    kind: np.ndarray
    piece: np.ndarray | None
    block: int
    n_short: int
    n_long: int
    n_long_groups: int
    first: np.ndarray
    stride: np.ndarray
    room: np.ndarray

    @property
    def n_slots(self) -> int:
        return (self.n_short + self.n_long) * self.block

    def slots(self, rank: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Slot of each row, from the rank of its group and its number within the group."""
        first, stride = self.first[rank], self.stride[rank]
        across = max(self.block // LONGEST, 1)
        piece = first + row // LONGEST
        long = (self.n_short + piece // across) * self.block + row % LONGEST * across + piece % across
        return np.where(stride > 0, first + row * stride, long)

    def index(self, head: np.ndarray) -> GroupIndex:
        """The index of fits whose groups' first rows are marked by `head` (..., n_slots)."""
        return GroupIndex(
            kind=self.kind, piece=self.piece, head=head, block=self.block, n_short=self.n_short, n_long=self.n_long,
            n_long_groups=self.n_long_groups, bounds=None,
        )  # fmt: skip


def pack(sizes: np.ndarray) -> Packing:
    """Lay out groups of these sizes in as few slots as possible.

    Parameters
    ----------
    sizes : int (G,)
        Rows of each group, descending, at least 1.
    """
    sizes = np.asarray(sizes, np.int64)
    n_long = int(np.sum(sizes > LONGEST))
    candidates = _BLOCKS if sizes.sum() < _FEW_ROWS else _BLOCKS[-2:]
    if n_long:
        candidates = [block for block in candidates if block % LONGEST == 0]
    tried = [(block, _classes(sizes[n_long:], block)) for block in candidates]
    block, classes = min((t for t in tried if t[1] is not None), key=lambda t: _work(*t))
    n_short, G = len(classes), len(sizes)
    first, stride = np.zeros(G, np.int64), np.zeros(G, np.int64)
    room = np.zeros(G, np.int64)
    lanes = block // np.array(classes, np.int64)
    ends = np.minimum(n_long + np.cumsum(lanes), G)
    begins = np.append(n_long, ends[:-1]) if n_short else ends
    of_block = np.repeat(np.arange(n_short), ends - begins)
    first[n_long:] = of_block * block + np.arange(n_long, G) - begins[of_block]
    stride[n_long:], room[n_long:] = lanes[of_block], np.array(classes, np.int64)[of_block]

    piece, long_blocks, long_groups = None, 0, 0
    if n_long:
        across = block // LONGEST
        pieces = -(-sizes[:n_long] // LONGEST)
        long_blocks, long_groups = -(-int(pieces.sum()) // across), n_long + 1
        piece = np.full(long_blocks * across, n_long, np.int32)  # pad pieces are a group of their own
        piece[: pieces.sum()] = np.repeat(np.arange(n_long), pieces)
        first[:n_long], room[:n_long] = np.cumsum(pieces) - pieces, pieces * LONGEST
    kind = np.searchsorted(np.array(SIZES), np.array(classes, int)).astype(np.int32)
    return Packing(kind, piece, block, n_short, long_blocks, long_groups, first, stride, room)


def _classes(sizes, block) -> list[int] | None:
    """Class of each block, filled in the order given; None where the largest group has no class in such blocks."""
    out, at = [], 0
    while at < len(sizes):
        fitting = [c for c in SIZES if block % c == 0 and c >= sizes[at]]
        if not fitting:
            return None
        out.append(fitting[0])
        at += block // fitting[0]
    return out


def _work(block, classes) -> int:
    """Vectors of rows that are gone through."""
    return sum((c + c * c / 16) * -(-(block // c) // _WIDTH) for c in classes)


def ranked(counts: np.ndarray) -> np.ndarray:
    """Rank (G,) of each group by size, the largest 0."""
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return rank


def packed_layout(codes: np.ndarray, n_groups: int) -> tuple[Packing, Layout]:
    """Storage of a single design that many fits share."""
    counts = np.bincount(codes, minlength=n_groups)
    rank, order = ranked(counts), np.argsort(codes, kind="stable")
    row = np.empty(len(codes), np.int64)
    row[order] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    packing = pack(np.sort(np.maximum(counts, 1))[::-1])
    slot = packing.slots(rank[codes], row)
    first = packing.slots(rank, np.zeros(n_groups, np.int64))
    return packing, Layout(slot, first, counts, packing.n_slots)


class Batch(eqx.Module):
    """B designs.

    Attributes
    ----------
    shared : Design
        What all fits have in common; None in place of what they do not.
    own : Design
        What each fit has of its own, with a leading axis of B; None elsewhere.
    """

    shared: Design
    own: Design

    @classmethod
    def of(cls, design: Design, owned: Design) -> "Batch":
        """From a design whose leaves are stacked where `owned`, a design of bool, is true."""
        own, shared = eqx.partition(design, owned)
        return cls(shared, own)

    @property
    def size(self) -> int:
        return jax.tree.leaves(self.own)[0].shape[0]

    def lane(self, i: int) -> Design:
        """The design of one fit."""
        return eqx.combine(jax.tree.map(lambda v: v[i], self.own), self.shared)

    def stacked(self, name: str) -> np.ndarray:
        """(B, ...) an array of the designs, such as "y"; not a copy where it is shared."""
        own, shared = getattr(self.own, name), getattr(self.shared, name)
        return own if own is not None else np.broadcast_to(shared, (self.size, *np.shape(shared)))
