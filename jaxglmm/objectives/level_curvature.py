"""One factor's scalar effects integrated by adaptive quadrature: the second derivatives in the rows' eta.

Per level, with loadings v = tau z, the mode u^ and curvature D = 1 + sum v^2 w there, nodes u_k = u^ + t_k with
t_k = sqrt(2) D^(-1/2) x_k, and f(u) = sum_i l_i(eta_i + v_i u) - u^2/2,

    F(eta) = -(1/2) log D + log sum_k exp(c_k + f(u_k)),     pi_k the normalised summands, E over them

Mode and scale move with eta: m_i = du^/deta_i = -v_i w_i/D and n_i = -(1/2) dlog D/deta_i = -(v_i^2 a_i + A m_i)/(2 D),
where A = sum v^3 a, C = sum v^4 c at the mode. A node moves by m_i + t_k n_i, so with g_k = f'(u_k)

    dF/deta_i = n_i + E[sigma_i],     sigma_ik = s_ik + g_k (m_i + t_k n_i)
    d2F       = diag(d) + E[(sigma - E sigma)(sigma - E sigma)'] + m x' + x m' + n y' + y n'

with d, x and y below: the exact second derivatives of this very F are diagonal but for K + 4 vectors a level, however
many rows it has. (Derivation: the chain rule through u^ and D, as in `objectives.marginal`.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxglmm.design.design import Design
from jaxglmm.modes.separable import find_modes
from jaxglmm.ops.group import map_groups
from jaxglmm.ops.programs import program


class Curvature(NamedTuple):
    """Second derivatives of F in the rows of a level: diag(diagonal) + P P*', P* being P in the order of `partners`.

    Attributes
    ----------
    diagonal : (R,)
        d.
    vectors : (K + 4, R)
        The columns of P.
    """

    diagonal: Array
    vectors: Array


def partners(n_vectors: int) -> list[int]:
    """Which of the vectors each is multiplied with: itself for K of them, then two pairs."""
    K = n_vectors - 4
    return [*range(K), K + 1, K, K + 3, K + 2]


@program(static=("family",))
def level_curvatures(family, design: Design, nodes, tau, log_phi, eta, start):
    """Curvature of all levels, in slots, and the modes (n_slots,).

    Parameters
    ----------
    family : AbstractFamily
    design : Design
        Rows grouped by the factor; their offset and X are not read.
    nodes : Nodes
        For one effect, not padded.
    tau, log_phi : ()
    eta : (n_slots,)
        Without the factor's effects.
    start : (n_slots,)
        Where the search for the modes begins.
    """

    def body(total, head, slots, _):
        eta, start, y, weight, z = slots
        modes = find_modes(total, family, eta, (tau * z)[None], y, weight, log_phi, start[None])[0]
        return (), (_curvature(total, family, nodes, tau, log_phi, eta, y, weight, z, modes), modes)

    return map_groups(body, design.index, (eta, start, *_rows(design)))[1]


@program(static=("family",))
def pull_curvatures(family, design: Design, nodes, tau, log_phi, eta, modes, weights: Curvature):
    """Derivatives in tau (), log_phi () and eta (n_slots,) of <weights, curvature>; other arguments as above."""

    def body(total, head, slots, _):
        eta, modes, y, weight, z, *weights = slots
        at = lambda tau, log_phi, eta: _curvature(total, family, nodes, tau, log_phi, eta, y, weight, z, modes)
        by_tau, by_phi, by_eta = jax.vjp(at, tau, log_phi, eta)[1](Curvature(*weights))
        return (by_tau, by_phi), by_eta

    return map_groups(body, design.index, (eta, modes, *_rows(design), *weights))


def _rows(design):
    return design.y, design.weights, design.terms[0].z[0]


def _curvature(total, family, nodes, tau, log_phi, eta, y, weight, z, modes) -> Curvature:
    """Names as in the module's text; sums are equal in all slots of a level."""
    v, (x,) = tau * z, nodes.points
    # One more Newton step from the mode, which changes nothing but carries the mode's derivatives.
    fixed = lax.stop_gradient(modes)
    d = family.derivatives(eta + v * fixed, y, weight, log_phi)
    score, information = total(jnp.stack([v * d.s, v**2 * d.w]))
    u = fixed + (score - fixed) / (1 + lax.stop_gradient(information))
    mode = family.derivatives(eta + v * u, y, weight, log_phi)
    information, A, C = total(jnp.stack([v**2 * mode.w, v**3 * mode.a, v**4 * mode.c]))
    D = 1 + information
    m = -v * mode.w / D
    n = -0.5 * (v**2 * mode.a + A * m) / D
    t = jnp.sqrt(2 / D) * x[:, None]
    at = family.derivatives(eta + v * (u + t), y, weight, log_phi)
    vw = v * at.w
    f, g, D_k = jnp.split(total(jnp.concatenate([at.l, v * at.s, v * vw])), 3)
    f, g, D_k = f - 0.5 * (u + t) ** 2, g - (u + t), 1 + D_k
    summands = nodes.log_weights[:, None] + f
    root = jnp.exp(0.5 * (summands - jax.nn.logsumexp(summands, axis=0)))
    mean = lambda h: jnp.sum(root**2 * h, axis=0)
    g0, g1 = mean(g), 1 + mean(g * t)
    over = -0.5 * g1 / D  # of the second derivatives of D
    diagonal = -mean(at.w) - g0 * v * mode.a / D + over * (v**2 * mode.c - A * v * mode.a / D)
    mm = -mean(D_k) + g0 * A / D + over * (C + A**2 / D)
    mn = -mean(D_k * t) + 2 * g0 + 2 * over * A
    nn = -mean(D_k * t**2) + 3 * g1 - 1
    x = -mean(vw) + 0.5 * mm * m + mn * n + over * v**3 * mode.c
    y = -mean(t * vw) + 0.5 * nn * n
    sigma = at.s + g * (m + t * n)
    return Curvature(diagonal, jnp.concatenate([root * (sigma - mean(sigma)), jnp.stack([m, x, n, y])]))
