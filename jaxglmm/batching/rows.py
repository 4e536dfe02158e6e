"""Rows of many fits as the native library takes them."""

import itertools

import numpy as np

from jaxglmm.ops.lane_pass import LaneRows
from jaxglmm.ops.memory import need_int32


# Rows of a piece where nothing groups them, rows and fits that are worked on together.
_PIECE, _ROWS, _MOST = 32, 200_000, 4096


def natively_at_once(rows: int) -> int:
    """How many fits of so many rows are fitted together."""
    return int(np.clip(_ROWS // max(rows, 1), 8, _MOST))


def group_begins(counts: np.ndarray) -> np.ndarray:
    """Where groups begin, int32 (B, G + 1), from their numbers of rows (B, G)."""
    need_int32("rows of one fit", int(counts.sum(axis=1, dtype=np.int64).max(initial=0)))
    begin = np.zeros((len(counts), counts.shape[1] + 1), np.int32)
    np.cumsum(counts, axis=1, out=begin[:, 1:])
    return begin


def row_pieces(rows: np.ndarray) -> np.ndarray:
    """The same for fits of so many rows (B,) that no groups divide: pieces of a few rows."""
    need_int32("rows of one fit", int(rows.max(initial=0)))
    pieces = np.arange(-(-int(rows.max()) // _PIECE) + 1) * _PIECE
    return np.minimum(pieces, rows[:, None]).astype(np.int32)


def lane_rows(y, X, weights, offset, z, *, design_row, response_row, begin, shared, threads) -> LaneRows:
    """`LaneRows`, in which arrays that say nothing are left out.

    Parameters
    ----------
    y, X, weights, offset, z
        As there, none of them None; z (0, n) without random effects.
    """
    whole = lambda v, dtype=float: np.ascontiguousarray(v, dtype)
    return LaneRows(
        X=whole(X), y=whole(y), weights=None if (weights == 1).all() else whole(weights),
        offset=whole(offset) if offset.any() else None, z=None if (z == 1).all() else whole(z), effects=len(z),
        design_row=whole(design_row, np.int64), response_row=whole(response_row, np.int64), begin=begin, shared=shared,
        threads=threads,
    )  # fmt: skip


def constants(family, y, begins, weights) -> np.ndarray:
    """The parts (B,) of the log-likelihoods that depend on the data alone.

    Parameters
    ----------
    y : (N,)
        Responses, one fit after the other.
    begins : int (B + 1,)
        Where each fit's begin, and the end.
    weights : (N,), (n,) for all fits, or None for ones
    """
    if family.name == "binomial" and (weights is None or weights.max(initial=0.0) <= 1):
        return np.zeros(len(begins) - 1)
    constant = family.constant  # looked up once: an equinox module makes a new object each time
    if weights is None:
        weights = np.broadcast_to(1.0, len(y))
    parts = [slice(a, b) for a, b in itertools.pairwise(begins)]
    own = lambda part: weights[part] if len(weights) == len(y) else weights
    return np.array([constant(y[part], own(part)) for part in parts])
