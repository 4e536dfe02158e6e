"""Parts of a design on the host, for evaluations in plain JAX: XLA runs a loop over blocks on one processor.

Parts are runs of short blocks of one shape, so that one program serves them, and the long section. Their number depends
on the data alone, and what comes of them is added up in order: the same bits for any number of threads.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxglmm.ops.computing import computing
from jaxglmm.ops.memory import threads


_PARTS = 16  # divides the number of short blocks wherever there are so many (`groups.round_up`)
_MANY_SLOTS = 150_000


def in_parts(function, design, slots, *, totals):
    """Run `function(part, slots)` on every part of a design with one factor, some at a time.

    Parameters
    ----------
    function : callable
        Called in threads of ours.
    design : Design
    slots : pytree of (..., n_slots)
    totals : pytree of bool
        Which of the results (a prefix of their tree) are to be added up; the others are (..., n_slots).

    Returns
    -------
    As `function(design, slots)`, numpy; None where the design is small, or does not lie in the host's memory.
    """
    index = design.index
    few = index.n_slots < _MANY_SLOTS or index.n_short % _PARTS or threads() == 1
    if few or not index.blocked or index.mesh is not None or not all(map(_on_host, jax.tree.leaves(design))):
        return None
    design = jax.tree.map(np.asarray, design)  # no copies
    x64 = jnp.zeros(()).dtype == np.float64  # of the caller's context, which threads do not inherit

    def run(part):
        with computing(x64):
            return jax.tree.map(np.asarray, function(*part))

    parts = [_run_of_blocks(design, slots, i) for i in range(_PARTS)]
    if index.n_long:
        parts.append(_long_section(design, slots))
    first = run(parts[0])  # alone: its program is compiled, and serves the others
    with ThreadPoolExecutor(threads()) as pool:
        results = [first, *pool.map(run, parts[1:])]
    join = lambda total, *v: sum(v[1:], v[0]) if total else np.concatenate(v, axis=-1)
    return jax.tree.map(join, totals, *results)


def _on_host(v) -> bool:
    return isinstance(v, np.ndarray) or (
        isinstance(v, jax.Array) and not isinstance(v, Tracer) and {d.platform for d in v.devices()} == {"cpu"}
    )


def _run_of_blocks(design, slots, i):
    index, count = design.index, design.index.n_short // _PARTS
    begin, end = i * count * index.block, (i + 1) * count * index.block
    part = replace(
        index, kind=index.kind[i * count : (i + 1) * count], piece=None, head=index.head[begin:end], n_short=count,
        n_long=0, n_long_groups=0,
    )  # fmt: skip
    return _part(design, slots, part, begin, end, i == 0)


def _long_section(design, slots):
    index, begin = design.index, design.index.n_short * design.index.block
    part = replace(index, kind=index.kind[:0], head=index.head[begin:], n_short=0)
    return _part(design, slots, part, begin, index.n_slots, False)


def _part(design, slots, index, begin, end, first):
    cut = lambda v: v[..., begin:end]
    term = design.terms[0]
    part = eqx.tree_at(
        lambda d: (d.y, d.X, d.offset, d.weights, d.terms, d.index, d.constant),
        design,
        (
            cut(design.y), design.X[begin:end], cut(design.offset), cut(design.weights),
            (replace(term, index=index, z=cut(term.z)),), index,
            design.constant if first else np.zeros_like(design.constant),
        ),
    )  # fmt: skip
    return part, jax.tree.map(lambda v: cut(np.asarray(v)), slots)
