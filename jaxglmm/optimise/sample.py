"""Where a fit of very many groups begins: at the fit of a sample of them, which costs a fraction of one pass."""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import numpy as np

from jaxglmm.errors import SeparationError
from jaxglmm.objectives.evaluate import evaluate
from jaxglmm.ops import fused
from jaxglmm.ops.memory import aligned_empty, aligned_zeros
from jaxglmm.optimise.effect_units import base_factor
from jaxglmm.optimise.glm_fit import fit_glm
from jaxglmm.optimise.marginal_fit import fit_marginal
from jaxglmm.optimise.node_ladder import NODE_LADDER, padded_nodes


# From this many slots on; a design of so many holds about 50,000 groups of three rows.
_MANY_SLOTS = 150_000
# Without a native pass the sample takes a program of its own, whose compilation only more rows repay.
_MANY_SLOTS_PLAIN = 1_500_000
_SHARE = 0.01
# A larger one takes the estimates closer and corrects Newton's steps over all rows: so many slots, or this share.
_CORRECTING_SLOTS, _CORRECTING_SHARE = 60_000, 0.06
# A sample has at least this many slots for each column, and blocks enough to hold all common sizes.
_SLOTS_A_COLUMN = 200
_FEWEST_BLOCKS = 24
_TOLERANCE = 1e-3
# Gain in the sample's log-likelihood by the random effects that leaves no doubt of them in all rows.
_CLEAR = 20.0


@dataclass(frozen=True)
class Start:
    """Estimates from a sample, in the design's coordinates.

    Attributes
    ----------
    glm : (p + 1,) or None
        Of (beta, log dispersion) without random effects; None where no sample was fitted.
    psi : (m,) or None
        Of all parameters; None also where the sample's fit did not converge, or where its only variance is zero.
    base : (S, S) or None
        Lambda_0, where the random effects are held or so clear in the sample that all rows need no fit without them: a
        sample that no direction separates cannot lie within rows that one does.
    passes : float
        What it cost, in passes over all rows.
    part : Design or None
        A sample of the groups that corrects steps from `psi` (`optimise.surrogate`).
    few : Design or None
        The sample that was fitted.
    """

    glm: np.ndarray | None = None
    psi: np.ndarray | None = None
    base: np.ndarray | None = None
    passes: float = 0.0
    part: Any = None
    few: Any = None


def sample_groups(design, share: float = _SHARE):
    """Blocks of short groups spread evenly over the storage, so that every size class has its share.

    Parameters
    ----------
    design : Design
    share : float
        Of the blocks, at least.

    Returns
    -------
    Design or None
        None where the design is small, spread over devices, or most of its rows are in long groups.
    """
    index = design.index
    slots = index.n_short * index.block
    if index.mesh is not None or slots < max(_MANY_SLOTS, index.n_long * index.block):
        return None
    # A group begins every block but those that only fill up.
    real = np.flatnonzero(np.asarray(index.head)[: slots : index.block])
    wanted = int(np.ceil(max(share * slots, _SLOTS_A_COLUMN * design.X.shape[1]) / index.block))
    wanted = max(wanted, _FEWEST_BLOCKS)
    if 4 * wanted > len(real):
        return None
    chosen = real[((np.arange(wanted) + 0.5) * len(real) / wanted).astype(int)]

    def rows(v, axis=-1):
        v = np.asarray(v)
        before, after = v.shape[:axis], v.shape[axis:][1:]
        blocks = v[(*[slice(None)] * len(before), slice(slots))].reshape(*before, index.n_short, index.block, *after)
        out = aligned_empty((*before, wanted, index.block, *after), v.dtype)
        np.take(blocks, chosen, axis=len(before), out=out, mode="clip")  # in place, as mode="raise" is not
        return out.reshape(*before, -1, *after)

    part = replace(
        index, kind=np.asarray(index.kind)[chosen], piece=None, head=rows(index.head), n_short=wanted, n_long=0,
        n_long_groups=0,
    )  # fmt: skip
    terms = tuple(replace(term, index=part, z=rows(term.z)) for term in design.terms)
    made = eqx.tree_at(
        lambda d: (d.y, d.X, d.offset, d.weights, d.terms, d.index, d.constant),
        design,
        (
            rows(design.y), rows(design.X, 0), rows(design.offset), rows(design.weights), terms, part,
            np.zeros_like(design.constant),
        ),
    )  # fmt: skip
    return jax.device_put(made, may_alias=True)  # once, and not with each evaluation


def sampled_start(family, design, intercept, *, names, factor=None, determinant=True, n_agq=1, auto=False) -> Start:
    """Fit a sample of the groups, where that is worth it: with many groups, evaluated block by block.

    `factor` is Lambda where it is held, and `determinant` False for the joint likelihood.
    """
    native = fused.covers(family, design)
    if not native and (not design.index.blocked or design.y.shape[0] < _MANY_SLOTS_PLAIN):
        return Start()
    if (part := sample_groups(design)) is None:
        return Start()
    share = part.y.shape[0] / design.y.shape[0]
    try:
        glm, groups = fit_glm(family, part, intercept, names=names, tol=_TOLERANCE)
    except SeparationError:  # in the sample, which says nothing of all rows
        return Start()
    if not glm.converged:
        return Start()
    nodes = NODE_LADDER[design.terms[0].covariance.n_effects][0] if auto else n_agq
    solution = fit_marginal(
        family, part, glm, groups, n_agq=nodes, fixed_factor=factor, determinant=determinant, tol=_TOLERANCE
    )
    passes = share * solution.convergence.passes
    effects = part.terms[0].covariance.n_effects
    if not solution.convergence.converged or (solution.convergence.singular and effects == 1):
        return Start(glm.x, passes=passes)
    base = None
    if factor is not None:
        base = np.eye(len(factor))
    elif solution.value - glm.value > _CLEAR:
        base = _base(part, groups)
    few, psi, larger = part, solution.psi, min(_CORRECTING_SLOTS / design.y.shape[0], _CORRECTING_SHARE)
    if larger > share and (more := sample_groups(design, larger)) is not None:
        part, passes = more, passes + more.y.shape[0] / design.y.shape[0]
        psi = _stepped(family, part, padded_nodes(nodes, effects), psi, solution.free, determinant)
    return Start(glm.x, psi, base, passes, part, few)


def _stepped(family, design, nodes, psi, free, determinant):
    """After one Newton step, where the function is concave."""
    modes = aligned_zeros(design.terms[0].z.shape, design.terms[0].z.dtype)
    found = evaluate(family, design, nodes, psi, modes, determinant=determinant)
    kept = np.flatnonzero(free)
    try:
        L = np.linalg.cholesky(-np.asarray(found.hessian)[np.ix_(kept, kept)])
    except np.linalg.LinAlgError:
        return psi
    psi = psi.copy()
    psi[kept] += np.linalg.solve(L.T, np.linalg.solve(L, np.asarray(found.gradient)[kept]))
    return psi


def _base(part, groups):
    term = part.terms[0]
    return base_factor(term.covariance, np.asarray(term.z)[:, np.asarray(part.weights) > 0], groups[2])
