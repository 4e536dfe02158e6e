"""The native posteriors of one scalar effect a group, level by level: `objectives.evaluate.posterior_moments`, and
means and variances with what the uncertainty of the parameters adds to them, as `objectives.posterior` has them.
"""

import jax
import numpy as np

from jaxglmm.design.groups import round_up
from jaxglmm.ops import fused, native
from jaxglmm.ops.programs import program


def covers(family, design) -> bool:
    """Whether the native library is there and has this family and design: one scalar effect, on CPU."""
    one = len(design.terms) == 1 and design.terms[0].z.shape[0] == 1 and design.index.mesh is None
    return one and fused.covers(family, design, platforms=("cpu",))


def group_moments(family, design, nodes, psi, modes, first, *, keep=True):
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
    keep : bool
        Return the weights of the nodes.

    Returns
    -------
    moments : (G, 3)
        H^(-1/2) at the mode, posterior mean and variance.
    weights : (G, K) or (G, 0)
        Of the nodes mode + sqrt(2) H^(-1/2) z_k, with sum 1.
    """
    native.register()  # a stored program is run without the tracing that would do it
    level = _levels(design, first)
    found = _group_moments(family, design, nodes, psi, modes, level, levels=round_up(len(first)), keep=keep)
    return tuple(np.asarray(v)[: len(first)] for v in found)


def group_effects(family, design, psi, covariance, modes, first):
    """Posterior of b = tau u in each level, by the trapezoid rule on as many points as it takes.

    Parameters
    ----------
    family, design
        Such that `covers(family, design)`.
    psi : (p + 2,)
        Fixed effects, tau, log dispersion; tau is not zero.
    covariance : (p + 2, p + 2)
        Of psi.
    modes : (1, n_slots)
        Near the conditional modes at psi, equal in all slots of a group.
    first : int (G,)
        First slot of each level.

    Returns
    -------
    (G, 3)
        Mean and variance given psi; d'V d, V the covariance and d the derivatives of the mean in psi.

    References
    ----------
    Kass & Steffey (1989), JASA 84, 717.
    """
    native.register()
    level = _levels(design, first)
    found = _group_effects(family, design, psi, covariance, modes, level, levels=round_up(len(first)))
    return np.asarray(found)[: len(first)]


def _levels(design, first):
    level = np.full(design.X.shape[0], -1, np.int32)
    level[first] = np.arange(len(first))
    return level


@program(static=("family", "levels", "keep"))
def _group_moments(family, design, nodes, psi, modes, level, *, levels, keep):
    result = [jax.ShapeDtypeStruct((levels, k), np.float64) for k in (3, keep * nodes.points.shape[1])]
    return native.call(
        "group_moments", result, *_rows(design, modes, level), psi, nodes.points[0], nodes.log_weights,
        block=np.int64(design.index.block), family=_number(family),
    )  # fmt: skip


@program(static=("family", "levels"))
def _group_effects(family, design, psi, covariance, modes, level, *, levels):
    return native.call(
        "group_effects", jax.ShapeDtypeStruct((levels, 3), np.float64), *_rows(design, modes, level), psi, covariance,
        block=np.int64(design.index.block), family=_number(family),
    )  # fmt: skip


def _number(family):
    return np.int64(fused.FAMILIES[family.name, family.link])


def _rows(design, modes, level):
    return (
        design.X, design.y, design.weights, design.offset, design.terms[0].z[0], modes[0].astype(design.X.dtype),
        *fused.storage(design.index), level,
    )  # fmt: skip
