"""Conditional modes when groups are independent given the parameters: one factor, S effects a group.

Per group, with v_i = Lambda' z_i, maximise over u in R^S

    f(u) = sum_i l_i(eta_i + v_i'u) - u'u/2,    F(u) = f'(u) = sum_i s_i v_i - u,
    H(u) = -f''(u) = I + sum_i w_i v_i v_i'

by Newton's method with step halving. f is strictly concave for the log-concave families, so halving cannot
fail to converge; plain Newton from u = 0 cycles on long-tailed binary data.
"""

import jax.numpy as jnp
from jax import lax

from jaxglmm.ops import small
from jaxglmm.ops.varying import axes_of, vary


_MAX_ITERATIONS = 100


def linear(v, u):
    """v_i'u of each slot: (S, R), (S, R) -> (R,); zero when S = 0."""
    return sum((v[a] * u[a] for a in range(v.shape[0])), jnp.zeros(v.shape[1:], v.dtype))


def outer(v):
    """v_i v_i' of each slot: (S, R) -> (S, S, R)."""
    return v[:, None] * v[None, :]


def curvature(total, v, w):
    """H = I + sum_i w_i v_i v_i' in every slot of the group: (S, S, R)."""
    S = v.shape[0]
    return jnp.eye(S, dtype=v.dtype)[:, :, None] + total(w * outer(v))


def find_modes(total, family, eta, v, y, weight, log_phi, start):
    """Modes u (S, R), equal in all slots of a group; differentiable by the implicit function theorem.

    Parameters
    ----------
    total : callable
        Group totals over the last axis.
    eta, y, weight : (R,)
    v : (S, R)
    start : (S, R)
        Where to begin, equal in all slots of a group.
    """

    def score(u):
        return total(family.derivatives(eta + linear(v, u), y, weight, log_phi).s * v) - u

    def solve(_, u):
        return _newton(total, family, eta, v, y, weight, log_phi, u)

    def tangent_solve(apply, b):
        # The Jacobian is -H; its columns are the images of the unit vectors.
        eye = jnp.eye(v.shape[0], dtype=v.dtype)
        columns = [apply(vary(jnp.broadcast_to(e[:, None], b.shape), axes_of(b))) for e in eye]
        return -small.cho_solve(small.cholesky(-jnp.stack(columns, 1)), b)

    return lax.custom_root(score, lax.stop_gradient(start), solve, tangent_solve)


def _newton(total, family, eta, v, y, weight, log_phi, start):
    S = v.shape[0]
    eps = jnp.finfo(v.dtype).eps
    close = 1e-12 if eps < 1e-10 else 1e-6

    def evaluate(u):
        shifted = eta + linear(v, u)
        d = family.derivatives(shifted, y, weight, log_phi)
        w = d.w if family.log_concave else family.expected(shifted, weight, log_phi)
        sums = total(jnp.concatenate([d.l[None], d.s * v, (w * outer(v)).reshape(S * S, -1)]))
        f = sums[0] - 0.5 * jnp.sum(u * u, 0)
        g = sums[1 : S + 1] - u
        H = jnp.eye(S, dtype=v.dtype)[:, :, None] + sums[S + 1 :].reshape(S, S, -1)
        step = small.cho_solve(small.cholesky(H), g)
        return f, step, jnp.sum(step * g, 0)

    def unfinished(state):
        *_, decrement, _, k = state
        return (k < _MAX_ITERATIONS) & jnp.any(decrement > close)

    def iterate(state):
        u, f, step, decrement, shrink, k = state
        trial = u + shrink * step
        f_new, step_new, decrement_new = evaluate(trial)
        better = f_new >= f - 32 * eps * (1 + jnp.abs(f))
        take = lambda new, old: jnp.where(better, new, old)
        # A halving too many costs an iteration, an overshoot in the exponential tail costs many.
        shrink = jnp.where(better, 1.0, shrink * 0.25).astype(v.dtype)
        return (
            take(trial, u),
            take(f_new, f),
            take(step_new, step),
            take(decrement_new, decrement),
            shrink,
            k + 1,
        )

    f, step, decrement = evaluate(start)
    start = vary(start, axes_of(f))
    ones = jnp.ones_like(f)
    u, _, step, decrement, _, _ = lax.while_loop(unfinished, iterate, (start, f, step, decrement, ones, jnp.int32(0)))
    # The last step squares an error that is already small; groups that did not get there keep their best point.
    return u + jnp.where(decrement <= close, step, 0.0)
