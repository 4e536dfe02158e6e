"""The native pass over groups that are nested in parents: one scalar effect a group, one shift of eta a parent."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxglmm.ops import fused, native
from jaxglmm.ops.programs import program


N_SCALARS, N_VECTORS = 6, 3


class NestedPass(NamedTuple):
    """The groups' part of the likelihood, and what each parent sums up over its groups.

    Attributes
    ----------
    value : ()
    gradient : (p + 2,)
    hessian : (p + 2, p + 2)
        Of Phi (`kernels/cpu/nested_target.cc`) in the fixed effects, T = tau^2 and log dispersion.
    modes, information : (G,)
        Standardised mode of each group's effect, and W there, the sum of w over its rows.
    of_parents : (H, 12 + 3 p)
        Scalars S, omega, P, R, P_e, R_e; derivatives of S, -omega and -(P + kappa R) / 2 in T, the same in log
        dispersion, then those of each in the fixed effects.
    """

    value: Array
    gradient: Array
    hessian: Array
    modes: Array
    information: Array
    of_parents: Array


@program()
def fixed_part(design, beta):
    """eta of the fixed effects and the offset, (n_slots,)."""
    return design.offset + jnp.matmul(design.X, beta, precision="highest")


def nested_pass(family, design, group, parent, eta, start, held, unknowns, *, columns: bool) -> NestedPass:
    """One pass over the rows.

    Parameters
    ----------
    family, design
        One effect a group, of a column of ones; groups sorted by parent. The family such that `fused.covers_family`.
    group : int32 (n_slots,)
        At the first slot of a group its number, -1 elsewhere.
    parent : int32 (G,)
    eta : (n_slots,)
        Offset and fixed part.
    start : (G,)
        Modes to begin the search at.
    held : (3, H)
        Each parent's shift of eta, and its kappa and lambda.
    unknowns : (2,)
        tau, log dispersion.
    columns : bool
        Whether X is read; otherwise what concerns the fixed effects is left out.
    """
    native.register()  # a stored program is run without the tracing that would do it
    return _nested_pass(family, design, group, parent, eta, start, held, unknowns, columns=columns)


@program(static=("family", "columns"))
def _nested_pass(family, design, group, parent, eta, start, held, unknowns, *, columns):
    index = design.index
    X = design.X if columns else design.X[:, :0]
    p = X.shape[1]
    shapes = ((), (p + 2,), (p + 2, p + 2), start.shape, start.shape, (held.shape[1], 2 * N_SCALARS + N_VECTORS * p))
    value, gradient, hessian, *rest = native.call(
        "nested_pass", [jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes],
        X, eta, design.y, design.weights, *fused.storage(index), group, parent, start, *held, unknowns,
        block=np.int64(index.block), family=np.int64(fused.FAMILIES[family.name, family.link]),
    )  # fmt: skip
    rows, terms = fused.normaliser(family, design.weights, unknowns[1])
    value, gradient = value + rows * terms[0] + design.constant, gradient.at[-1].add(rows * terms[1])
    return NestedPass(value, gradient, hessian.at[-1, -1].add(rows * terms[2]), *rest)
