"""The marginal likelihood of independent groups by adaptive quadrature; one node is Laplace's approximation.

Per group, with the mode u^, H = L L' the observed curvature there, M = L^-T and nodes u_k = u^ + sqrt(2) M z_k,

    value = -log det L + log sum_k exp(c_k + f(u_k)),     c_k = log omega_k + z_k'z_k - (S/2) log pi

(Liu & Pierce 1994; Pinheiro & Bates 1995, eq. 2.5). The gradient below is that of this very value, mode and
scale included, by one reverse sweep written out: the node loop gives the derivatives at fixed (u^, M); the
factorisation carries them back to H; the implicit function theorem carries what falls on u^ to the rest.
Written per slot, so that every array is (..., R) with R slots, and free of reverse-mode differentiation, so that the
number of nodes may be a traced integer and forward differentiation of the gradient gives the exact Hessian.
"""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxglmm.modes.separable import curvature, find_modes, linear
from jaxglmm.ops import small
from jaxglmm.ops.varying import axes_of, vary


MOST_NODES = 500


class Nodes(eqx.Module):
    """Quadrature nodes for S effects.

    Attributes
    ----------
    points : (S, K)
        Gauss-Hermite points z_k, the product grid for S > 1.
    log_weights : (K,)
        log omega_k + z_k'z_k - (S/2) log pi.
    count : int
        How many of the K are used; a traced integer where one program serves several K.
    """

    points: Float[Array, "S K"]
    log_weights: Float[Array, " K"]
    count: int | Array

    def astype(self, dtype) -> "Nodes":
        """The same nodes in another floating-point type."""
        return Nodes(self.points.astype(dtype), self.log_weights.astype(dtype), self.count)


@functools.lru_cache(64)
def gauss_hermite(n_agq: int, n_effects: int, *, capacity: int | None = None) -> Nodes:
    """Product Gauss-Hermite nodes in numpy float64, padded to `capacity` points.

    Parameters
    ----------
    n_agq : int
        Nodes per dimension; 1 gives Laplace's approximation.
    n_effects : int
        Dimensions, S.
    """
    if not 1 <= n_agq <= MOST_NODES:
        raise ValueError(f"n_agq must be between 1 and {MOST_NODES}, found {n_agq}")
    z = _hermite_roots(n_agq)
    # omega_k exp(z_k^2) = 1 / (K psi_{K-1}(z_k)^2), psi the orthonormal Hermite functions (DLMF 18.39.5 and
    # 3.5.28): omega_k alone would underflow where the product is an ordinary number.
    psi, previous = np.pi**-0.25 * np.exp(-0.5 * z * z), np.zeros_like(z)
    for k in range(n_agq - 1):
        psi, previous = np.sqrt(2 / (k + 1)) * z * psi - np.sqrt(k / (k + 1)) * previous, psi
    log_weight = -np.log(n_agq * psi * psi) - 0.5 * np.log(np.pi)
    grids = np.meshgrid(*[np.arange(n_agq)] * n_effects, indexing="ij")
    which = np.stack([g.ravel() for g in grids]) if n_effects else np.zeros((0, 1), int)
    points, weights = z[which], log_weight[which].sum(0)
    count = points.shape[1]
    if capacity is not None and capacity > count:
        points = np.pad(points, ((0, 0), (0, capacity - count)))
        weights = np.pad(weights, (0, capacity - count), constant_values=-np.inf)
    return Nodes(points, weights, count)


def _hermite_roots(n_agq: int) -> np.ndarray:
    """Roots of the Hermite polynomial of degree `n_agq`, ascending."""
    if n_agq <= 150:
        return np.polynomial.hermite.hermgauss(n_agq)[0]
    from scipy.special import roots_hermite  # numpy's polynomials overflow at high degrees

    return roots_hermite(n_agq)[0]


class GroupGradient(NamedTuple):
    """Value of each group (at its first slot, else 0), its derivatives slot by slot, and the modes."""

    value: Array  # (R,)
    eta: Array  # (R,)
    loadings: Array  # (S, R), with respect to v = Lambda'z
    log_phi: Array  # (R,), its sum is the derivative
    modes: Array  # (S, R)
    log_mass: Array  # (R,), log sum_k exp(c_k + f(u_k))

    def factor_sum(self, z):
        """d value / d Lambda (S, S), all entries: sum_i z_i v_bar_i'."""
        S = z.shape[0]
        return jnp.stack([jnp.stack([jnp.sum(z[a] * self.loadings[b]) for b in range(S)]) for a in range(S)])


def loadings(factor, z):
    """v_i = Lambda' z_i: (S, S), (S, R) -> (S, R). Unrolled, so that no dot's precision is in question."""
    S = z.shape[0]
    rows = [sum(z[a] * factor[a, b] for a in range(b, S)) for b in range(S)]
    return jnp.stack(rows) if S else z


def scale(H):
    """M = L^-T (S, S, R) and log det L (R,) of H = L L'."""
    L = small.cholesky(H)
    M = jnp.swapaxes(small.inverse_lower(L), 0, 1)
    return M, sum(jnp.log(L[a, a]) for a in range(H.shape[0]))


def group_value(total, head, family, eta, z, factor, log_phi, y, weight, nodes, start, determinant=True):
    """Value of each group at its first slot (R,), by formulas that JAX differentiates to any order."""
    v = loadings(factor, z)
    u = find_modes(total, family, eta, v, y, weight, log_phi, start)
    shifted = eta + linear(v, u)
    M, log_det = scale(curvature(total, v, family.derivatives(shifted, y, weight, log_phi).w))
    f = lambda u: total(family.loglik(eta + linear(v, u), y, weight, log_phi)) - 0.5 * jnp.sum(u * u, 0)
    peak = lax.stop_gradient(f(u))

    def add(k, acc):
        at = u + jnp.sqrt(2.0).astype(eta.dtype) * small.matvec(M, nodes.points[:, k, None])
        return acc + jnp.exp(nodes.log_weights[k] + f(at) - peak)

    mass = lax.fori_loop(0, nodes.count, add, jnp.zeros_like(eta))
    return jnp.where(head, peak + jnp.log(mass) - determinant * log_det, 0.0)


def if_several(count, several, one):
    """`several()` where there are several nodes, `one()` where there is one, which is its limit."""
    if isinstance(count, int):
        return one() if count == 1 else several()
    agreed = lambda branch: lambda: jax.tree.map(vary, branch(), axes)
    axes = jax.tree.map(lambda a, b: axes_of(a) | axes_of(b), *map(jax.eval_shape, (several, one)))
    return lax.cond(count > 1, agreed(several), agreed(one))


def group_gradient(
    total, head, family, eta, z, factor, log_phi, y, weight, nodes, start, determinant=True
) -> GroupGradient:
    """Value and exact gradient of each group.

    Without `determinant` the term -log det L is left out: one node then gives the joint likelihood at the mode.
    """
    root2 = jnp.sqrt(2.0).astype(eta.dtype)
    v = loadings(factor, z)
    u = find_modes(total, family, eta, v, y, weight, log_phi, start)
    at_mode = eta + linear(v, u)
    mode = family.derivatives(at_mode, y, weight, log_phi)
    H = curvature(total, v, mode.w)
    (M, log_det), pull_scale = jax.vjp(scale, H)
    peak = total(mode.l) - 0.5 * jnp.sum(u * u, 0)

    # Derivatives at fixed (u^, M), summed over nodes with weights pi_k.
    def add(k, acc):
        point = nodes.points[:, k, None]
        at = u + root2 * small.matvec(M, point)
        x = eta + linear(v, at)
        d = family.derivatives(x, y, weight, log_phi)
        sums = total(jnp.concatenate([d.l[None], d.s * v]))
        g = sums[1:] - at
        pi = jnp.exp(nodes.log_weights[k] + sums[0] - 0.5 * jnp.sum(at * at, 0) - peak)
        terms = pi, pi * d.s, pi * d.s * at, pi * g, pi * g[:, None] * (root2 * point)[None]
        if family.dispersion_name is not None:
            terms = (*terms, pi * family.dispersion_derivatives(x, y, weight, log_phi)[0])
        return jax.tree.map(jnp.add, acc, terms)

    def over_nodes():
        zero = jnp.zeros_like(eta)
        acc = zero, zero, jnp.zeros_like(v), jnp.zeros_like(v), jnp.zeros_like(M)
        if family.dispersion_name is not None:
            acc = (*acc, zero)
        mass, *sums = lax.fori_loop(0, nodes.count, add, acc)
        return [peak + jnp.log(mass), *(total / mass for total in sums)]

    def one_node():
        """What the sums above are at the mode, where f_u = 0."""
        found = [peak, mode.s, mode.s * u, jnp.zeros_like(v), jnp.zeros_like(M)]
        if family.dispersion_name is not None:
            found.append(family.dispersion_derivatives(at_mode, y, weight, log_phi)[0])
        return found

    log_mass, d_eta, v_bar, u_bar, M_bar, *phi_bar = if_several(nodes.count, over_nodes, one_node)

    # Back through the factorisation to H = I + sum_i w_i v_i v_i', and through the mode.
    (H_bar,) = pull_scale((M_bar, -determinant * jnp.ones_like(eta)))
    Hv = small.matvec(H_bar + jnp.swapaxes(H_bar, 0, 1), v)
    bend = 0.5 * linear(v, Hv)
    u_bar = u_bar + total(mode.a * bend * v)
    adjoint = small.cho_solve(small.cholesky(H), u_bar)
    along = linear(v, adjoint)
    d_eta = d_eta + mode.a * bend - mode.w * along
    v_bar = v_bar + mode.w * Hv + mode.a * bend * u + mode.s * adjoint - mode.w * along * u
    d_phi = jnp.zeros_like(eta)
    if family.dispersion_name is not None:
        _, s_phi, w_phi = family.dispersion_derivatives(at_mode, y, weight, log_phi)
        d_phi = phi_bar[0] + w_phi * bend + s_phi * along
    value = jnp.where(head, log_mass - determinant * log_det, 0.0)
    return GroupGradient(value, d_eta, v_bar, d_phi, u, log_mass)
