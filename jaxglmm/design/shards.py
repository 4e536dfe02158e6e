"""Groups spread over several devices: each has whole groups, and storage of the same shape as the others.

The parts lie one after the other along the slots, so that a design of several devices is a design like any other; only
the sizes in its index are those of one part. Compiled evaluations run on each part by `shard_map` and add up what
comes of them (`each_part`); group sums never cross a device.
"""

from dataclasses import replace

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from jaxglmm.design.groups import GroupIndex, Layout, build_index
from jaxglmm.errors import DataError


_BLOCK = 480  # slots, for parts of any size


def shared_index(codes: np.ndarray, n_groups: int | None, mesh) -> tuple[GroupIndex, Layout]:
    """As `build_index`, the groups cut into as many ranges of about as many rows as there are devices.

    Parameters
    ----------
    codes : int (n,)
    n_groups : int, optional
    mesh : jax.sharding.Mesh
        Of one axis.

    Raises
    ------
    DataError
        When there are fewer groups than devices, or more than one axis.
    """
    codes = np.asarray(codes)
    counts = np.bincount(codes, minlength=n_groups or 0)
    G, D = len(counts), mesh.size
    if len(mesh.axis_names) != 1 or D > G:
        raise DataError(
            f"{G} groups cannot be spread over {D} devices in a mesh with axes {mesh.axis_names}: pass one axis of no "
            "more devices than groups"
        )
    # Where parts of equal rows end, one group or more apart.
    inner = np.arange(1, D)
    ends = np.searchsorted(np.cumsum(counts), inner * len(codes) / D) + 1
    ends = np.clip(np.maximum.accumulate(ends - inner) + inner, inner, G - D + inner)
    cuts = np.concatenate([[0], ends, [G]])
    part = np.repeat(np.arange(D), np.diff(cuts))[codes]
    rows = [np.flatnonzero(part == d) for d in range(D)]
    build = lambda d, least: build_index(
        codes[rows[d]] - cuts[d], int(cuts[d + 1] - cuts[d]), block=_BLOCK, least=least
    )
    shapes = [(i.n_short, i.n_long, i.n_long_groups) for i, _ in (build(d, (0, 0, 0)) for d in range(D))]
    least = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    parts = [build(d, least) for d in range(D)]
    slots = parts[0][1].n_slots
    slot = np.empty(len(codes), np.int64)
    for d, (_, layout) in enumerate(parts):
        slot[rows[d]] = layout.slot + d * slots
    first = np.concatenate([layout.first + d * slots for d, (_, layout) in enumerate(parts)])
    join = lambda name: np.concatenate([getattr(index, name) for index, _ in parts])
    one = parts[0][0]
    index = replace(
        one, kind=join("kind"), piece=None if one.piece is None else join("piece"), head=join("head"), mesh=mesh
    )
    return index, Layout(slot, first, counts, D * slots)


def place(design):
    """Put each part of a design onto its device."""
    mesh = design.index.mesh
    return jax.tree.map(lambda v, spec: jax.device_put(v, NamedSharding(mesh, spec)), design, _specs(design))


def each_part(function, design, replicated, slots, *, totals, out):
    """Run a function on every device's part of a design.

    Parameters
    ----------
    function : callable
        (part, replicated, slots) -> pytree.
    design : Design
        Spread over the devices of its index.
    replicated : pytree
        The same on every device.
    slots : pytree of (..., n_slots)
    totals : pytree of bool
        Which of the results (a prefix of their tree) are to be added up; the others are (..., n_slots).
    out : pytree of int
        Axes of those results that come before the slots' (0 for totals).
    """
    mesh = design.index.mesh
    axis = mesh.axis_names[0]

    def part(design, replicated, slots):
        index = replace(design.index, mesh=None)
        terms = tuple(replace(term, index=index) for term in design.terms)
        whole = eqx.tree_at(
            lambda d: (d.index, d.terms, d.constant), design, (index, terms, design.constant / mesh.size)
        )
        results = function(whole, replicated, slots)
        add = lambda total, result: jax.lax.psum(result, axis) if total else result
        return jax.tree.map(add, totals, results)

    spec = lambda before: PartitionSpec(*[None] * before, axis)
    return jax.shard_map(
        part, mesh=mesh, check_vma=False,
        in_specs=(_specs(design), PartitionSpec(), jax.tree.map(lambda v: spec(v.ndim - 1), slots)),
        out_specs=jax.tree.map(lambda total, before: PartitionSpec() if total else spec(before), totals, out),
    )(design, replicated, slots)  # fmt: skip


def _specs(design):
    """Where each array of a design is cut: along the slots, blocks and pieces; the constant nowhere."""
    axis = design.index.mesh.axis_names[0]
    specs = jax.tree.map(lambda v: PartitionSpec(axis), design)
    specs = eqx.tree_at(lambda d: d.constant, specs, PartitionSpec())
    z = lambda d: [term.z for term in d.terms]
    return eqx.tree_at(z, specs, [PartitionSpec(None, axis)] * len(design.terms))


def refuse_scattered(design) -> None:
    """Refuse rows that lie on several devices and were not laid out for them: a kernel would gather them unsaid.

    Raises
    ------
    DataError
    """
    X = design.X
    if design.index.mesh is not None:
        return
    if isinstance(X, Tracer):
        spec = getattr(getattr(jax.typeof(X), "sharding", None), "spec", ())
        scattered = any(axis is not None for axis in spec)
    else:
        scattered = isinstance(X, jax.Array) and not X.is_fully_replicated
    if scattered:
        raise DataError(
            "the rows of this design are spread over several devices, which its index does not know of: give the "
            "mesh to make_design(..., mesh=), which spreads whole groups; or call the function inside of shard_map; or "
            "bring the rows to one device with jax.device_put"
        )
