"""The native fused pass: value, gradient, exact Hessian and modes of up to three effects a group, reading X once.

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
_MOST_EFFECTS = 3


def covers(family, design, platforms=("cpu", "cuda")) -> bool:
    """Whether there is a native library for where the data are that has this family and design, up to three effects.

    Arrays that are being traced tell no device: they count as the CPU's where that is JAX's default and the index was
    built for it. To export such a design for another platform, ask for the plain form (JAXGLMM_KERNELS).
    """
    X, on = design.X, platform_of(design.X)
    return (
        on in platforms
        and (design.index.blocked == (on == "cpu") or not isinstance(X, Tracer))
        and (family.name, family.link) in FAMILIES
        and len(design.terms) == 1
        and 1 <= design.terms[0].z.shape[0] <= _MOST_EFFECTS
        and X.dtype in (np.float64, np.float32)
        and native.use_native(on)
        and (on == "cpu" or _gpus_are_cuda())
    )


def covers_family(family) -> bool:
    """Whether arrays go to the CPU by default, and the native library is there and has this family."""
    return platform_of(None) == "cpu" and (family.name, family.link) in FAMILIES and native.use_native()


def platform_of(X) -> str:
    """Where this array is computed with; one that lies nowhere yet goes where JAX puts new ones.

    JAX's "gpu" is "cuda" here; "" where an array lies on several kinds of device.
    """
    if isinstance(X, jax.Array) and not isinstance(X, Tracer):
        found = {device.platform for device in X.devices()}
    else:
        found = {default_platform()}
    name = found.pop() if len(found) == 1 else ""
    return "cuda" if name == "gpu" else name


def default_platform() -> str:
    """Where JAX puts new arrays."""
    default = jax.config.jax_default_device or jax.default_backend()  # pyright: ignore[reportAttributeAccessIssue]
    return default if isinstance(default, str) else default.platform


def _gpus_are_cuda() -> bool:
    """Other makers' GPUs are "gpu" to JAX too."""
    return "cuda" in jax.devices("gpu")[0].client.platform_version.lower()


def fused_pass(family, design, nodes, psi, start, *, determinant=True, second=True):
    """Value (), gradient (m,), Hessian (m, m) and modes (S, n_slots) at psi (m,).

    Parameters
    ----------
    family, design
        Such that `covers(family, design)`.
    nodes : Nodes
    psi : (p + q + 1,)
        Fixed effects, free entries of Lambda, log dispersion.
    start : (S, n_slots)
        Where the search for the modes begins, equal in all slots of a group.
    determinant : bool
        Without it and with one node, the joint likelihood at the modes.
    second : bool
        Whether the Hessian is wanted; zeros otherwise.
    """
    index, (slots, p), term = design.index, design.X.shape, design.terms[0]
    S = term.z.shape[0]
    m = p + S * (S + 1) // 2 + 1
    kept = places(term.covariance, p)
    result = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((), psi.dtype), ((m,), psi.dtype), ((m, m), psi.dtype), ((S, slots), start.dtype))
    ]
    value, gradient, hessian, modes = native.call(
        "fused_pass", result,
        design.X, design.y, design.weights, design.offset, term.z, start, *storage(index),
        jnp.zeros(m, psi.dtype).at[kept].set(psi), nodes.points, nodes.log_weights, jnp.asarray(nodes.count, jnp.int32),
        block=np.int64(index.block), family=np.int64(FAMILIES[family.name, family.link]),
        determinant=np.int64(determinant), second=np.int64(second),
    )  # fmt: skip
    gradient, hessian = gradient[kept], hessian[np.ix_(kept, kept)]
    rows, terms = normaliser(family, design.weights, psi[-1])
    value, gradient = value + rows * terms[0], gradient.at[-1].add(rows * terms[1])
    if second:
        hessian = hessian.at[-1, -1].add(rows * terms[2])
    return value, gradient, hessian, modes


def places(covariance, p):
    """Where the kernel has psi: it takes Lambda's whole lower triangle, by columns."""
    S = covariance.n_effects
    rows, columns = covariance.entries
    entries = columns * S - columns * (columns - 1) // 2 + rows - columns
    return np.concatenate([np.arange(p), p + entries, [p + S * (S + 1) // 2]])


def storage(index):
    """Sizes of the short blocks' classes and groups of the pieces, int32, as kernels take them."""
    pieces = np.zeros(0, np.int32) if index.piece is None else index.piece
    return jnp.asarray(SIZES, jnp.int32)[jnp.asarray(index.kind)], pieces


def normaliser(family, weights, log_phi):
    """How often the term of the log-density without eta counts, and that term with two derivatives in log_phi."""
    zero = jnp.zeros_like(log_phi)
    if family.name == "gaussian":
        return jnp.sum(weights > 0).astype(log_phi.dtype), (-log_phi, zero - 1.0, zero)
    if family.name == "gamma":
        gap = lambda v: lgamma_gap(jnp.exp(v), v)
        return jnp.sum(weights, dtype=log_phi.dtype), (
            gap(log_phi),
            jax.grad(gap)(log_phi),
            jax.grad(jax.grad(gap))(log_phi),
        )
    return 0.0, (zero, zero, zero)
