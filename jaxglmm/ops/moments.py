"""The native posterior of one scalar effect a group: `objectives.evaluate.posterior_moments`, level by level."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.groups import SIZES, round_up
from jaxglmm.ops import fused, native
from jaxglmm.ops.programs import program


def covers(family, design) -> bool:
    """Whether the native library is there and has this family and design: one scalar effect, on CPU."""
    one = len(design.terms) == 1 and design.terms[0].z.shape[0] == 1 and design.index.mesh is None
    return one and fused.covers(family, design, platforms=("cpu",))


def group_moments(family, design, nodes, psi, modes, first):
    """Posterior of u in each level, given the parameters.

    Parameters
    ----------
    family, design
        Such that `covers(family, design)`.
    nodes : Nodes
        Of K points, all of them used.
    psi : (p + 2,)
        Fixed effects, tau, log dispersion.
    modes : (1, n_slots)
        Conditional modes at psi, equal in all slots of a group.
    first : int (G,)
        First slot of each level.

    Returns
    -------
    moments : (G, 3)
        H^(-1/2) at the mode, posterior mean and variance.
    weights : (G, K)
        Of the nodes mode + sqrt(2) H^(-1/2) z_k, with sum 1.
    """
    level = np.full(design.X.shape[0], -1, np.int32)
    level[first] = np.arange(len(first))
    native.register()  # a stored program is run without the tracing that would do it
    found = _group_moments(family, design, nodes, psi, modes, level, levels=round_up(len(first)))
    return tuple(np.asarray(v)[: len(first)] for v in found)


@program(static=("family", "levels"))
def _group_moments(family, design, nodes, psi, modes, level, *, levels):
    index = design.index
    result = [jax.ShapeDtypeStruct((levels, k), np.float64) for k in (3, nodes.points.shape[1])]
    return native.call(
        "group_moments", result,
        design.X, design.y, design.weights, design.offset, design.terms[0].z[0],
        modes[0].astype(design.X.dtype),
        jnp.asarray(SIZES, jnp.int32)[index.kind], np.zeros(0, np.int32) if index.piece is None else index.piece,
        level, psi, nodes.points[0], nodes.log_weights,
        block=np.int64(index.block), family=np.int64(fused.FAMILIES[family.name, family.link]),
    )  # fmt: skip
