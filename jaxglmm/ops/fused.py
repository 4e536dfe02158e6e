"""The native fused pass: value, gradient, exact Hessian and modes of a one-effect design, reading X once.

It computes what `objectives.evaluate.evaluate` computes in plain JAX, for the designs that `covers` names.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxglmm.design.groups import SIZES
from jaxglmm.model.special import lgamma_gap
from jaxglmm.ops import native


# (name, link) -> number of the family in kernels/cpu/fused_pass.h.
FAMILIES = {
    ("gaussian", "identity"): 0,
    ("binomial", "logit"): 1,
    ("binomial", "probit"): 2,
    ("binomial", "cloglog"): 3,
    ("poisson", "log"): 4,
    ("negativebinomial", "log"): 5,
    ("gamma", "log"): 6,
}


def covers(family, design) -> bool:
    """Whether the native library is there and has this family and design: float64 on CPU, one scalar effect."""
    X = design.X
    placed = isinstance(X, jax.Array) and not isinstance(X, Tracer)
    platforms = {device.platform for device in X.devices()} if placed else {jax.default_backend()}
    return (
        platforms == {"cpu"}
        and (family.name, family.link) in FAMILIES
        and len(design.terms) == 1
        and design.terms[0].z.shape[0] == 1
        and X.dtype == np.float64
        and native.use_native()
    )


def fused_pass(family, design, nodes, psi, start, *, determinant=True, second=True):
    """Value (), gradient (p + 2,), Hessian (p + 2, p + 2) and modes (1, n_slots) at psi = (beta, tau, log_phi).

    Parameters
    ----------
    family, design
        Such that `covers(family, design)`.
    nodes : Nodes
    psi : (p + 2,)
    start : (1, n_slots)
        Where the search for the modes begins, equal in all slots of a group.
    determinant : bool
        Without it and with one node, the joint likelihood at the modes.
    second : bool
        Whether the Hessian is wanted; zeros otherwise.
    """
    index, (slots, p) = design.index, design.X.shape
    m = p + 2
    result = [jax.ShapeDtypeStruct(shape, np.float64) for shape in ((), (m,), (m, m), (slots,))]
    sizes = jnp.asarray(SIZES, jnp.int32)[jnp.asarray(index.kind)]
    pieces = np.zeros(0, np.int32) if index.piece is None else index.piece
    value, gradient, hessian, modes = native.call(
        "fused_pass", result,
        design.X, design.y, design.weights, design.offset, design.terms[0].z[0], start[0], sizes, pieces,
        psi, nodes.points[0], nodes.log_weights, jnp.asarray(nodes.count, jnp.int32),
        block=np.int64(index.block), family=np.int64(FAMILIES[family.name, family.link]),
        determinant=np.int64(determinant), second=np.int64(second),
    )  # fmt: skip
    rows, terms = _normaliser(family, design.weights, psi[-1])
    value, gradient = value + rows * terms[0], gradient.at[-1].add(rows * terms[1])
    if second:
        hessian = hessian.at[-1, -1].add(rows * terms[2])
    return value, gradient, hessian, modes[None]


def _normaliser(family, weights, log_phi):
    """How often the term of the log-density without eta counts, and that term with two derivatives in log_phi."""
    zero = jnp.zeros_like(log_phi)
    if family.name == "gaussian":
        return jnp.sum(weights > 0), (-log_phi, zero - 1.0, zero)
    if family.name == "gamma":
        gap = lambda v: lgamma_gap(jnp.exp(v), v)
        return jnp.sum(weights), (gap(log_phi), jax.grad(gap)(log_phi), jax.grad(jax.grad(gap))(log_phi))
    return 0.0, (zero, zero, zero)
