"""A fit as a function of its data: jitted, vmapped, and differentiated by the implicit function theorem.

The unknowns are x = (beta, free entries of Lambda, log dispersion where the family has one). At the optimum the
gradient G(x, data) of what is maximised is zero, so that by the implicit function theorem

    dx = -H^-1 (dG/d data) d data,    H = dG/dx the exact Hessian.

Neither direction of differentiation looks at the iterations: their number changes neither time nor memory of it. The
rule is itself made of what can be differentiated, so that it holds for derivatives of any order.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from jaxglmm.arguments import a_design, a_prior, instance, number, optional, takes, whole
from jaxglmm.design.design import Design, only_term
from jaxglmm.errors import DataError
from jaxglmm.model.covariance import Covariance
from jaxglmm.model.penalties import ElasticNet
from jaxglmm.model.priors import AbstractPrior
from jaxglmm.objectives.evaluate import evaluate, evaluate_glm
from jaxglmm.objectives.laplace import LaplaceMarginal
from jaxglmm.objectives.marginal import gauss_hermite
from jaxglmm.objectives.params import Params, check_dtypes
from jaxglmm.objectives.quadrature import AdaptiveQuadrature
from jaxglmm.optimise.traced_newton import maximise_traced


# A standard deviation below this share of its natural size, that of the information in a row, counts as zero.
_NOTHING = 1e-4
# Where a response is separated, Newton's step goes on to be about 1 in the linear predictor, however flat it is there.
_STILL_MOVING = 0.1


class Solution(eqx.Module):
    """An optimum. Estimates and value can be differentiated; the rest says what they are worth.

    Attributes
    ----------
    beta : (p,)
        Fixed effects, link scale, of the design's columns.
    factor : (S, S)
        Lambda, lower triangular with a non-negative diagonal: b = Lambda u. With one effect, its standard deviation.
    log_dispersion : ()
        Zero for families that have none.
    value : ()
        What was maximised: the log-likelihood, less N times the penalty, plus the logarithm of the prior density.
    decrement : ()
        Newton decrement g'(-H)^-1 g at the end.
    converged : bool ()
        False also where the decrement is small because the response is separated and the optimum is at infinity.
    singular : bool ()
        Whether a diagonal entry of `factor` is zero within 1e-4 of its natural size. Such an entry stays at zero in
        every derivative: those of the others are taken with it held there.
    iterations : int ()
        Evaluations after the first.
    """

    beta: Float[Array, " p"]
    factor: Float[Array, "S S"]
    log_dispersion: Float[Array, ""]
    value: Float[Array, ""]
    decrement: Float[Array, ""]
    converged: Bool[Array, ""]
    singular: Bool[Array, ""]
    iterations: Int[Array, ""]
    covariance: Covariance = eqx.field(static=True)

    @property
    def params(self) -> Params:
        """The same as an objective takes it; the logarithm of a zero is minus infinity, and has derivative zero."""
        raw, diagonal = self.factor[self.covariance.entries], self.covariance.diagonal
        positive = diagonal & (raw > 0)
        log = jnp.where(positive, jnp.log(jnp.where(positive, raw, 1.0)), -jnp.inf)
        return Params(self.beta, jnp.where(diagonal, log, raw), self.log_dispersion)


@takes(
    design=a_design,
    start=optional(instance("Params", "jg.Params(...)")),
    penalty=optional(instance("ElasticNet", "jg.Ridge(...)")),
    prior=optional(a_prior),
    tol=number(above=0, at_most=1),
    max_iterations=whole(0),
)
def solve(
    objective: LaplaceMarginal | AdaptiveQuadrature, design: Design, *, start: Params | None = None,
    penalty: ElasticNet | None = None, prior: AbstractPrior | None = None, tol: float = 1e-12,
    max_iterations: int = 100,
) -> Solution:  # fmt: skip
    """Maximise a marginal likelihood, as a function of the design's arrays and of the hyperparameters.

    Can be transformed by `jax.jit`, `jax.vmap`, `jax.jvp`, `jax.grad`, ...: in y, X, weights, offset and z of the
    design (replace them by `dataclasses.replace(design, y=y)`; rows lie in the slots that `make_design`'s layout
    tells), in `penalty.lam`, in the penalty's factors and in the prior's parameters. Derivatives are those of the
    optimum, by the implicit function theorem: one linear system of the exact Hessian, whatever the iterations were.
    In either direction, and of higher order as well (`jax.hessian`).

    Parameters
    ----------
    objective : LaplaceMarginal or AdaptiveQuadrature
        Of a Gaussian response, `LaplaceMarginal(Gaussian())` is the exact likelihood.
    design : Design
        Of at most one grouping factor. Its floating type is that of the computation. Columns should have about the same
        size; nothing is centred or scaled here.
    start : Params, optional
        Where to begin. By default: the mean response, and standard deviations of the size that scores tell.
    penalty : ElasticNet, optional
        A ridge, `Ridge(lam, factors)`: (lam/2) sum_j f_j beta_j^2 times N, the sum of weights, is subtracted. Here
        factors must be an array (p,), with a zero for the intercept: a design does not know which column that is.
    prior : AbstractPrior, optional
        Density of each effect's standard deviation, such as `HalfStudentPrior(3.0, scale)`.
    tol : float
        Largest Newton decrement at which to stop.
    max_iterations : int

    Returns
    -------
    Solution
        Nothing is raised for an optimum that was not found: look at `converged`. Derivatives mean what they should only
        where it is True, and under `vmap` each has its own.

    Raises
    ------
    DataError
        For an objective, a penalty or a prior that this cannot do; for float64 while x64 is off.
    NotYetError
        For several grouping factors.

    Notes
    -----
    With several effects and a singular covariance the entries of `factor` are not unique; derivatives are then those of
    the least change, and right for what does not depend on the choice, as beta and the covariance.

    `design.constant` depends on the response and the weights, but is held: the derivatives of `value`, not those of the
    estimates, leave it out.
    """
    if isinstance(objective, LaplaceMarginal):
        objective = AdaptiveQuadrature(objective.family, 1)
    if not isinstance(objective, AdaptiveQuadrature):
        raise DataError(
            f"objective: solve takes LaplaceMarginal or AdaptiveQuadrature; found {type(objective).__name__}. For a "
            "Gaussian response use LaplaceMarginal(Gaussian()), which is exact"
        )
    if design.terms:
        only_term(design)
    if prior is not None and not (isinstance(prior, AbstractPrior) and prior.on_sd):
        raise DataError(f"prior: expected the density of a standard deviation, as HalfStudentPrior; found {prior!r}")
    design = dataclasses.replace(design, single=False)
    ridge = None if penalty is None else _ridge(penalty, design.X.shape[1])
    dtype = design.X.dtype
    check_dtypes(Params(*(jnp.zeros(0, jnp.float32),) * 3) if start is None else start, design)
    floating = lambda tree: jax.tree.map(lambda v: jnp.asarray(v, dtype), tree)
    return _solve(
        objective, design, floating(start), floating(ridge), floating(prior), floating(tol),
        max_iterations=int(max_iterations),
    )  # fmt: skip


def _ridge(penalty: ElasticNet, p: int):
    """lam and f (p,) of a penalty."""
    if isinstance(penalty.alpha, Tracer) or penalty.alpha != 0 or penalty.standardize:
        raise DataError(
            "penalty: solve is differentiable, and takes a ridge on the columns as they are, Ridge(lam, factors), made "
            "inside of the function that is transformed; "
            f"found alpha={penalty.alpha}, standardize={penalty.standardize}"
        )
    shape: Any = getattr(penalty.factors, "shape", None)
    if shape != (p,):
        raise DataError(
            f"penalty: factors must be an array of {p} numbers, one for each column of the design, and 0 for the "
            f"intercept; found {'none' if penalty.factors is None else shape or type(penalty.factors).__name__}"
        )
    return penalty.lam, penalty.factors


@jax.jit(static_argnames=("objective", "max_iterations"))
def _solve(objective, design, start, ridge, prior, tol, *, max_iterations) -> Solution:
    family, dtype = objective.family, design.X.dtype
    covariance = design.terms[0].covariance if design.terms else Covariance(())
    p, diagonal = design.X.shape[1], covariance.diagonal
    dispersed = family.dispersion_name is not None
    m = p + len(diagonal) + dispersed
    even = np.concatenate([np.zeros(p, bool), diagonal, np.zeros(int(dispersed), bool)])
    psi0, size = _start(family, design, covariance, start)

    def split(x):
        log_dispersion = x[m - 1] if dispersed else jnp.zeros((), dtype)
        return x[:p], covariance.raw_factor(x[p : p + len(diagonal)]), log_dispersion

    def outside(x, given):
        """What is added to the log-likelihood."""
        design, ridge, prior = given
        beta, factor, _ = split(x)
        value = jnp.zeros((), dtype)
        if ridge is not None:
            value -= 0.5 * jnp.sum(design.weights) * ridge[0] * jnp.sum(ridge[1] * jnp.square(beta))
        if prior is not None:
            squares = jnp.sum(jnp.square(factor), axis=1)
            sds = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
            value += jnp.sum(prior.log_density(sds))
        return value

    def criterion(x, given):
        return objective.at(*split(x), given[0]) + outside(x, given)

    def find(given, psi0, tol):
        design = given[0]
        nodes = gauss_hermite(objective.nodes, covariance.n_effects).astype(dtype) if design.terms else None

        def expansion(x, modes):
            psi = jnp.concatenate([x, psi0[m:]])
            if design.terms:
                value, gradient, hessian, found = evaluate(family, design, nodes, psi, *modes)
                modes = (found,)
            else:
                value, gradient, hessian, _ = evaluate_glm(family, design, psi)
            g, H = jax.grad(outside)(x, given), jax.hessian(outside)(x, given)
            return value + outside(x, given), gradient[:m] + g, hessian[:m, :m] + H, modes

        modes = (jnp.zeros(design.terms[0].z.shape, dtype),) if design.terms else ()
        top = maximise_traced(expansion, psi0[:m], modes, even=even, tol=tol, max_iterations=max_iterations)
        # The covariance knows no signs of the columns of Lambda.
        factor = covariance.raw_factor(top.x[p : p + len(diagonal)])
        signs = jnp.where(jnp.diagonal(factor) < 0, -1.0, 1.0).astype(dtype)
        raw = (factor * signs)[covariance.entries]
        x = jnp.concatenate([top.x[:p], raw, top.x[p + len(diagonal) :]])
        moving = jnp.abs(jnp.matmul(design.X, top.step[:p], precision="highest")) > _STILL_MOVING
        converged = top.converged & ~jnp.any(moving & (design.weights > 0))
        return x, jnp.stack([top.decrement, converged.astype(dtype), top.iterations.astype(dtype)])

    given = jax.tree.map(jnp.asarray, (design, ridge, prior))
    x, certificate = _implicit(jax.grad(criterion), find)(given, psi0, tol)
    beta, factor, log_dispersion = split(x)
    singular = jnp.any(jnp.diagonal(factor) < _NOTHING * size)
    decrement, converged, iterations = certificate
    return Solution(
        beta, factor, log_dispersion, criterion(x, given),
        decrement, converged > 0, singular, iterations.astype(jnp.int32), covariance,
    )  # fmt: skip


def _implicit(gradient: Callable, find: Callable) -> Callable:
    """`find` (given, ...) -> (x, certificate), with gradient(x, given) = 0, as a differentiable function of `given`."""

    @jax.custom_jvp
    def root(given, *rest):
        return find(given, *rest)

    @root.defjvp
    def _(primals, tangents):
        given, (x, certificate) = primals[0], root(*primals)
        _, moved = jax.jvp(lambda given: gradient(x, given), (given,), tangents[:1])
        return (x, certificate), (-_solve_linear(jax.jacfwd(gradient)(x, given), moved), jnp.zeros_like(certificate))

    return root


def _solve_linear(H, b):
    """x with H x = b for a symmetric H, as small as it can be where H is singular.

    Along a column of Lambda whose diagonal entry is zero, the others of it turn into later columns without any change
    of the covariance.
    """
    d = lax.stop_gradient(jnp.abs(jnp.diagonal(H)))
    d = jnp.sqrt(jnp.where(d > 0, d, 1.0))
    scaled = 0.5 * (H + H.T) / (d[:, None] * d)
    eigenvalues, vectors = jnp.linalg.eigh(lax.stop_gradient(scaled))
    gone = vectors * (jnp.abs(eigenvalues) <= 1e3 * jnp.finfo(b.dtype).eps)
    null = jnp.matmul(gone, gone.T, precision="highest")
    b = b / d
    return jnp.linalg.solve(scaled + null, b - jnp.matmul(null, b, precision="highest")) / d


def _start(family, design, covariance, start):
    """psi (p + q + 1,) to begin at, and the natural size (S,) of each effect's standard deviation."""
    y, X, weights = design.y, design.X, design.weights
    diagonal, S = covariance.diagonal, covariance.n_effects
    if start is not None:
        raw = jnp.where(diagonal, jnp.exp(jnp.where(diagonal, start.theta, 0.0)), start.theta)
        psi = jnp.concatenate([start.beta, raw, start.log_dispersion[None]])
        beta, log_phi = start.beta, start.log_dispersion
    else:
        # The columns' best imitation of a constant predictor: exact where there is an intercept.
        eta = family.link_function(jnp.sum(weights * y) / jnp.sum(weights))
        eta = jnp.where(jnp.isfinite(eta), eta, 0.0) - design.offset  # a mean may be at its bound
        gram = jnp.matmul(X.T * weights, X, precision="highest")
        beta = jnp.linalg.lstsq(gram, jnp.matmul(X.T, weights * eta, precision="highest"))[0]
        log_phi = jnp.zeros((), X.dtype)
    *_, (score, spread, level) = evaluate_glm(family, design, jnp.append(beta, log_phi), second=False)
    rows, tiny = jnp.sum(weights > 0), jnp.finfo(X.dtype).tiny
    size = jnp.sqrt(rows / jnp.maximum(jnp.abs(level), tiny)).astype(X.dtype)
    if start is None:
        first = jnp.sqrt(jnp.maximum(2 * score / jnp.maximum(spread, tiny), 0.0))
        factor = jnp.diag(jnp.clip(first / size, 0.1, 1.0) * size) if S else jnp.zeros((0, 0), X.dtype)
        psi = jnp.concatenate([beta, factor[covariance.entries], log_phi[None]])
    return lax.stop_gradient((psi, size))
