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


class ShiftedPass(NamedTuple):
    """Sums over groups at several shifts of their parents.

    Attributes
    ----------
    value : ()
        At the first shift.
    gradient, hessian : (m,), (m, m)
        Each shift's times its multiplier, in psi.
    modes : (1, n_slots)
        At the first shift.
    of_parents : (H, J, m + 2)
        Of each parent and shift: value and gradient without terms that do not depend on eta, and the second derivative
        in beta_0.
    """

    value: Array
    gradient: Array
    hessian: Array
    modes: Array
    of_parents: Array


def shifted_pass(family, design, group, parent, eta, start, shift, steps, multiplier, psi, nodes) -> ShiftedPass:
    """The quadrature value of groups and its derivatives, at several shifts of each parent's rows.

    Parameters
    ----------
    family, design, group, parent
        As of `nested_pass`.
    eta : (n_slots,) or None
        Offset and fixed part; then beta is one number that is added to it. None to compute it from X.
    start : (1, n_slots)
    shift : (H,)
    steps : (J,)
        Shift j of parent h is shift[h] + steps[j].
    multiplier : (J, H)
        With the sum 1 over a parent's shifts.
    psi : (m,)
        beta, tau of the groups, log dispersion.
    nodes : Nodes
    """
    native.register()
    return _shifted_pass(family, design, group, parent, eta, start, shift, steps, multiplier, psi, nodes)


@program(static=("family",))
def _shifted_pass(family, design, group, parent, eta, start, shift, steps, multiplier, psi, nodes):
    index = design.index
    X, offset = (design.X, design.offset) if eta is None else (jnp.ones((eta.shape[0], 1), design.X.dtype), eta)
    m, J = psi.shape[0], steps.shape[0]
    shapes = ((), (m,), (m, m), start.shape, (shift.shape[0], J, m + 2))
    value, gradient, hessian, *rest = native.call(
        "shifted_pass", [jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes],
        X, design.y, design.weights, offset, design.terms[0].z, start, *fused.storage(index), group, parent, shift,
        steps, multiplier, psi, nodes.points, nodes.log_weights, jnp.asarray(nodes.count, jnp.int32),
        block=np.int64(index.block), family=np.int64(fused.FAMILIES[family.name, family.link]),
    )  # fmt: skip
    rows, terms = fused.normaliser(family, design.weights, psi[-1])
    value, gradient = value + rows * terms[0] + design.constant, gradient.at[-1].add(rows * terms[1])
    return ShiftedPass(value, gradient, hessian.at[-1, -1].add(rows * terms[2]), *rest)
