"""A model frame laid out for the optimiser: which arrays each kind of model is fitted from."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxglmm.design.checks import check_frame
from jaxglmm.design.crossproducts import CrossProducts, cross_products
from jaxglmm.design.design import Design, Scaling, column_scaling, make_design
from jaxglmm.design.factor_products import FactorProducts, dense_order, factor_products
from jaxglmm.design.groups import GroupIndex, Layout
from jaxglmm.errors import NotYetError
from jaxglmm.formula.frame import ModelFrame
from jaxglmm.model.families import AbstractFamily
from jaxglmm.modes.choice import DENSE_LIMIT
from jaxglmm.ops import fused
from jaxglmm.ops.columns import Columns


if TYPE_CHECKING:
    from jaxglmm.design.nesting import NestedDesign
    from jaxglmm.design.rows import RowDesign


# A design of more bytes is placed on the device once; a smaller one goes there with each evaluation.
_PLACED_BYTES = 1 << 16
# Residual standard deviation of a response that is fitted exactly, as a share of its root mean square: without groups,
# and with them, whose means weigh the square of it beside the rows and would be lost to rounding.
NOISE, NOISE_OF_GROUPS = 1e-8, 1e-4


@dataclass(frozen=True)
class Problem:
    """A model frame laid out for the optimiser: what a refit starts from.

    A Gaussian model with the identity link has `cross`, from which no evaluation touches a row again; others have
    `design` and `layout`, or, where there are several grouping factors, `nested` if native kernels have their kind and
    `rows` otherwise.
    """

    frame: ModelFrame
    family: AbstractFamily
    scaling: Scaling
    design: Design | None = None
    layout: Layout | None = None
    cross: CrossProducts | FactorProducts | None = None
    rows: "RowDesign | None" = None
    nested: "NestedDesign | None" = None

    @property
    def storage(self) -> tuple[GroupIndex, Layout] | None:
        """Index and layout of the rows, where there are some and one device has them all."""
        if self.design is None or self.layout is None or self.design.index.mesh is not None:
            return None
        return self.design.index, self.layout


def make_problem(
    frame: ModelFrame, family, *, estimated: bool = True, precision: str = "double", devices=None, exact: bool = False
) -> Problem:
    """Check the columns and lay the rows out.

    Parameters
    ----------
    frame : ModelFrame
    family : AbstractFamily
    estimated : bool
        Whether the covariance of the random effects is to be estimated; some data can only serve one that is held.
    precision : {"double", "mixed", "single"}
        As in `fit`.
    devices : sequence of jax.Device, optional
        To spread the groups over.
    exact : bool
        Take a Gaussian response that the model may fit exactly, by the residual variance of `with_noise`.

    Raises
    ------
    DataError
        When columns are constant or collinear, or a factor does not group.
    """
    X, found = Columns(frame.columns, len(frame.weights)), frame.moments
    check_frame(frame, family, estimated=estimated, found=found, exact=exact)
    linear = is_linear(family)
    if devices is not None and (linear or len(frame.terms) != 1):
        raise NotYetError(
            "devices= spreads the groups of one factor, for responses that are not Gaussian; leave it out here"
        )
    if len(frame.terms) > 1 and (not linear or dense_order(frame.terms) > DENSE_LIMIT):
        return _problem_of_factors(frame, family, X, found)
    if len(frame.terms) > 1:
        scaling = column_scaling(X, frame.weights, None, found, spanned=True)
        cross = factor_products(
            frame.y, frame.X, terms=frame.terms, weights=frame.weights, offset=frame.offset, center=scaling.center,
            scale=scaling.scale,
        )  # fmt: skip
        return Problem(frame, family, scaling, cross=with_noise(cross) if exact else cross)
    term = frame.terms[0] if frame.terms else None
    z = None if term is None else term.z
    scaling = column_scaling(X, frame.weights, z, found, spanned=True)
    rows = {"weights": frame.weights, "offset": frame.offset}
    if term is not None:
        rows |= {"codes": term.codes, "n_groups": len(term.levels), "z": z, "blocks": term.blocks}
    if linear:
        cross = cross_products(frame.y, frame.X, center=scaling.center, scale=scaling.scale, **rows)
        return Problem(frame, family, scaling, cross=with_noise(cross) if exact else cross)
    constant = family.constant(frame.y, frame.weights)
    mesh = None if devices is None else jax.sharding.Mesh(np.asarray(devices), ("groups",))
    design, layout = make_design(
        frame.y, X, scaling=scaling, constant=constant, dtype=np.float64 if precision == "double" else np.float32,
        single=precision == "single", mesh=mesh, **rows,
    )  # fmt: skip
    design = replace(design, constant=np.asarray(constant, np.float64))
    if mesh is None and design.X.nbytes > _PLACED_BYTES:
        # The arrays are aligned and nobody else's: JAX takes them over without a copy.
        design = jax.device_put(design, may_alias=True)
    return Problem(frame, family, scaling, design, layout)


def with_noise(cross):
    """With one more row, of noise that no column and no group takes up: coefficients stay what they are, and a response
    that is fitted exactly has a residual standard deviation."""
    coefficients, vtv = np.append(cross.origin, 1.0), np.array(cross.vtv)
    total = coefficients @ vtv @ coefficients
    noise = NOISE_OF_GROUPS if cross.n_groups else NOISE
    more = noise**2 * (total if total > 0 else float(cross.n))
    vtv[-1, -1] += more
    cross = replace(cross, vtv=vtv, n=cross.n + 1)
    if cross.within is not None:
        rest = np.array(cross.within.rest)
        rest[-1, -1] += more
        cross = replace(cross, within=replace(cross.within, rest=rest))
    return cross


def _problem_of_factors(frame, family, X, found) -> Problem:
    from jaxglmm.design.nesting import nested_design

    scaling = column_scaling(X, frame.weights, None, found, spanned=True)
    problem = Problem(frame, family, scaling)
    if fused.covers_family(family) and not is_linear(family):
        nested = nested_design(
            frame.y, X, frame.terms, weights=frame.weights, offset=frame.offset, scaling=scaling,
            constant=family.constant(frame.y, frame.weights),
        )  # fmt: skip
        if nested is not None:
            return replace(problem, nested=nested)
    return with_rows(problem)


def with_rows(problem: Problem) -> Problem:
    """With `rows`, which are laid out unless they are there."""
    from jaxglmm.design.rows import make_rows

    if problem.rows is not None:
        return problem
    frame = problem.frame
    rows = make_rows(
        frame.y, frame.X, frame.terms, weights=frame.weights, offset=frame.offset, scaling=problem.scaling,
        constant=problem.family.constant(frame.y, frame.weights),
    )  # fmt: skip
    return replace(problem, rows=rows)


def is_linear(family) -> bool:
    return (family.name, family.link) == ("gaussian", "identity")
