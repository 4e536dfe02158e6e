"""The exact likelihood of a Gaussian model with identity link and at most one grouping factor.

With Lambda = sigma T the marginal covariance is Var(y) = sigma^2 (W^-1 + Z T T' Z'), and all that the data
contribute at a given T is

    log det (T'Z'WZT + I)    and    Q = V'WV - sum_g (Z'WV)' M_g (Z'WV),    M_g = T (T'Z'WZT + I)^-1 T',

where V = [X, r] (see `CrossProducts`). The penalised residual sum of squares of coefficients c is
(-c, 1) Q (-c, 1)', and the Cholesky factor L of Q holds all that profiling needs: L_xx L_xx' is sigma^2 times
the information on beta, and L_rr^2 the smallest sum of squares (Bates, Maechler, Bolker & Walker 2015,
J. Stat. Softw. 67(1), eqs 34 to 42). Lambda may be singular throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxglmm.arguments import flag, instance
from jaxglmm.design.crossproducts import CrossProducts
from jaxglmm.errors import DataError
from jaxglmm.objectives.params import Params
from jaxglmm.ops import small


_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Moments(NamedTuple):
    """What the data contribute at a relative factor T: log det (T'Z'WZT + I) and Q (p + 1, p + 1)."""

    log_det: Array
    gram: Array


def group_kernel(factor: Array, ztz: Array) -> tuple[Array, Array]:
    """log det (T'Z'WZT + I) and M of each group. Shapes: (S, S), (S, S, B) -> (B,), (S, S, B)."""
    size = factor.shape[0]
    some = range(size)
    right = [[sum(ztz[a, b] * factor[b, j] for b in range(j, size)) for j in some] for a in some]
    inner = [[sum(factor[a, i] * right[a][j] for a in range(i, size)) + float(i == j) for j in some] for i in some]
    L = small.cholesky(jnp.stack([jnp.stack(row) for row in inner]))
    half = small.solve_lower(L, factor.T[:, :, None])
    outer = [[sum(half[i, a] * half[i, b] for i in some) for b in some] for a in some]
    return small.log_det(L), jnp.stack([jnp.stack(row) for row in outer])


def moments(factor: Array, cross: CrossProducts) -> Moments:
    """Sum the groups' contributions at a relative factor.

    Parameters
    ----------
    factor : (S, S)
        T = Lambda / sigma, lower triangular.
    cross : CrossProducts

    Returns
    -------
    Moments
    """
    if cross.n_effects == 0:
        return Moments(jnp.zeros((), cross.vtv.dtype), jnp.asarray(cross.vtv))

    def apart(arrays):
        root, a = arrays
        log_det, B = rest_kernel(factor, root)
        return Moments(jnp.sum(log_det), small.contract("iag,abg,jbg->ij", a, B, a))

    if cross.within is not None:
        total = sum_blocks(apart, (jnp.asarray(cross.within.root), jnp.asarray(cross.within.coefficients)))
        return Moments(total.log_det, cross.within.rest + total.gram)

    def block(arrays):
        ztz, ztv = arrays
        log_det, kernel = group_kernel(factor, ztz)
        size = kernel.shape[0]
        left = jnp.stack([sum(kernel[a, b] * ztv[:, b] for b in range(size)) for a in range(size)], axis=1)
        return Moments(jnp.sum(log_det), jnp.einsum("iag,jag->ij", left, ztv, precision="highest"))

    total = sum_blocks(block, (jnp.asarray(cross.ztz), jnp.asarray(cross.ztv)))
    return Moments(total.log_det, cross.vtv - total.gram)


def rest_kernel(factor: Array, root: Array) -> tuple[Array, Array]:
    """log det (T'Z'WZT + I) and B of each group (`design.within`). Shapes: (S, S), (S, S, B) -> (B,), (S, S, B)."""
    some = range(factor.shape[0])
    K = [[sum(root[c, a] * factor[c, j] for c in range(j, factor.shape[0])) for j in some] for a in some]
    inner = [[sum(K[a][j] * K[b][j] for j in some) + float(a == b) for b in some] for a in some]
    L = small.cholesky(jnp.stack([jnp.stack(row) for row in inner]))
    half = small.solve_lower(L, jnp.swapaxes(root, 0, 1))
    outer = [[sum(half[i, a] * half[i, b] for i in some) for b in some] for a in some]
    return small.log_det(L), jnp.stack([jnp.stack(row) for row in outer])


def sum_blocks(block: Callable, arrays: tuple[Array, ...]):
    """Sum `block`, a pytree, over the leading axis of the arrays; one block is compiled whatever their number."""
    first = tuple(array[0] for array in arrays)
    if arrays[0].shape[0] == 1:
        return block(first)
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(block, first))
    return lax.scan(lambda total, b: (jax.tree.map(jnp.add, total, block(b)), None), start, arrays)[0]


# --- Values, given the moments ----------------------------------------------------------------------------


def loglik_at(m: Moments, cross: CrossProducts, beta: Array, log_sigma: Array) -> Array:
    """Log-likelihood of beta and log sigma, with all constants."""
    v = jnp.concatenate([cross.origin - beta, jnp.ones((1,), beta.dtype)])
    rss = jnp.dot(v, jnp.matmul(m.gram, v, precision="highest"), precision="highest")
    return _normal(cross.n, cross, m.log_det, rss, log_sigma)


def criterion_at(m: Moments, cross: CrossProducts, log_sigma: Array, *, reml: bool) -> Array:
    """Log-likelihood maximised over beta, or restricted log-likelihood, of log sigma."""
    log_det_x, rss = _profile(m, cross)
    n, log_det = _degrees(m, cross, log_det_x, reml)
    return _normal(n, cross, log_det, rss, log_sigma)


def profiled_at(m: Moments, cross: CrossProducts, *, reml: bool) -> Array:
    """Log-likelihood maximised over beta and sigma, or restricted log-likelihood maximised over sigma."""
    log_det_x, rss = _profile(m, cross)
    n, log_det = _degrees(m, cross, log_det_x, reml)
    return _normal(n, cross, log_det, rss, 0.5 * jnp.log(rss / n))


def _profile(m, cross):
    diagonal = jnp.diagonal(jnp.linalg.cholesky(m.gram))
    return 2 * jnp.sum(jnp.log(diagonal[: cross.p])), diagonal[cross.p] ** 2


def _degrees(m, cross, log_det_x, reml):
    return (cross.n - cross.p, m.log_det + log_det_x) if reml else (cross.n, m.log_det)


def _normal(n, cross, log_det, rss, log_sigma):
    quadratic = rss * jnp.exp(-2 * log_sigma)
    return 0.5 * (cross.log_weights - log_det - quadratic) - n * (log_sigma + _HALF_LOG_2PI)


# --- Pure functions of the parameters ---------------------------------------------------------------------


def profiled_loglik(factor: Array, cross: CrossProducts, *, reml: bool = False) -> Array:
    """Log-likelihood (or restricted log-likelihood) of the relative factor, maximised over the rest.

    Parameters
    ----------
    factor : (S, S)
        T = Lambda / sigma, lower triangular, with zeros between effects that do not covary.
    cross : CrossProducts
    reml : bool

    Returns
    -------
    ()
        With all constants: the restricted log-likelihood is lmer's, which depends on the scale of X.
    """
    return profiled_at(moments(factor, cross), cross, reml=reml)


class GaussianMarginal(eqx.Module):
    """Exact marginal log-likelihood of a Gaussian model with identity link and one grouping factor, or none.

    `GaussianMarginal(reml=False)(params, cross)` is a scalar, with all constants. `params.log_dispersion` is
    log sigma of the residual standard deviation, and `params.theta` belongs to the absolute factor Lambda.
    With `reml` it is the restricted log-likelihood, in which `params.beta` does not occur. It can be jitted,
    vmapped and differentiated to any order.

    Attributes
    ----------
    reml : bool

    References
    ----------
    Bates, Maechler, Bolker & Walker (2015), J. Stat. Softw. 67(1).
    """

    reml: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        flag("GaussianMarginal: reml", self.reml)

    def __call__(self, params: Params, cross: CrossProducts) -> Array:
        instance("Params", "jg.Params(beta, theta, log_dispersion)")("params", params)
        instance("CrossProducts", "cross products, as jaxglmm.design.crossproducts.cross_products makes them")(
            "cross", cross
        )
        if jnp.result_type(cross.vtv) != cross.vtv.dtype:
            raise DataError(
                f"the cross products are {cross.vtv.dtype}, but JAX computes in {jnp.result_type(cross.vtv)} "
                "while x64 is off: enter `with jax.enable_x64(True):`"
            )
        factor = cross.covariance.factor(params.theta) * jnp.exp(-params.log_dispersion)
        m = moments(factor, cross)
        if self.reml:
            return criterion_at(m, cross, params.log_dispersion, reml=True)
        return loglik_at(m, cross, params.beta, params.log_dispersion)


# --- Groups ----------------------------------------------------------------------------------------------


@jax.jit
def conditional_modes(factor: Array, beta: Array, sigma: Array, cross: CrossProducts) -> tuple[Array, Array]:
    """Conditional distribution of the effects given the data and the parameters.

    It is normal with mean K Z'W (y - offset - X beta) and covariance sigma^2 K, where
    K = Lambda (Lambda'Z'WZ Lambda + sigma^2 I)^-1 Lambda': lme4's conditional modes and variances.

    Parameters
    ----------
    factor : (S, S)
        Absolute Lambda.
    beta : (p,)
    sigma : ()
    cross : CrossProducts

    Returns
    -------
    mode : (blocks * B, S)
    covariance : (blocks * B, S, S)
        The first `cross.n_groups` rows belong to groups.
    """
    v = jnp.concatenate([cross.origin - beta, jnp.ones((1,), beta.dtype)])

    def block(arrays):
        ztz, ztv = arrays
        kernel = group_kernel(factor / sigma, ztz)[1]
        residual = jnp.einsum("iag,i->ag", ztv, v, precision="highest")
        size = residual.shape[0]
        mode = jnp.stack([sum(kernel[a, b] * residual[b] for b in range(size)) for a in range(size)])
        return mode.T, jnp.moveaxis(kernel, -1, 0) * sigma**2

    mode, covariance = lax.map(block, (jnp.asarray(cross.ztz), jnp.asarray(cross.ztv)))
    return mode.reshape(-1, *mode.shape[2:]), covariance.reshape(-1, *covariance.shape[2:])
