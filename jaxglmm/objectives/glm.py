"""The likelihood without random effects: where every fit starts, and where a zero variance leaves it."""

import jax
import jax.numpy as jnp

from jaxglmm.ops.group import map_groups


def glm_loglik(family, eta, y, weight, log_phi):
    """sum_i l_i(eta_i), without the constants of the data; differentiable to any order."""
    return jnp.sum(family.loglik(eta, y, weight, log_phi))


def glm_evaluate(family, design, beta, log_phi, *, second=True):
    """Value, gradient and exact Hessian in (beta, log dispersion), and what tells whether groups differ.

    Returns
    -------
    value : ()
    gradient : (p + 1,)
        The last entry is 0 for families without a dispersion.
    hessian : (p + 1, p + 1)
        Zeros without `second`.
    score : (S,)
        d value / d tau_a^2 at 0 for each effect: (1/2) sum_g [(sum z s)^2 - sum z^2 w]; a positive score means
        that the variance is not zero (Commenges & Jacqmin-Gadda 1997). Empty without random effects.
    spread : (S,)
        sum_g (sum z^2 w)^2, so that 2 score / spread is a first estimate of tau_a^2.
    level : (S,)
        sum z^2 w.
    """
    z = design.terms[0].z if design.terms else jnp.zeros((0, design.y.shape[0]), design.y.dtype)
    sums, work = beta.dtype, design.work_type(beta.dtype)
    beta, log_phi = beta.astype(work), log_phi.astype(work)

    def body(total, head, rows, X):
        y, weight, offset, z = rows
        *sums, d = row_sums(family, X, y, weight, offset, beta, log_phi, second=second)
        score = spread = level = jnp.zeros(0, y.dtype)
        if z.shape[0]:
            sums_s, squares = total(jnp.stack([d.s * z, d.w * z * z]))
            level = jnp.sum(d.w * z * z, axis=1)
            score = 0.5 * (jnp.sum(jnp.where(head, sums_s**2, 0.0), axis=1) - level)
            spread = jnp.sum(jnp.where(head, squares**2, 0.0), axis=1)
        return (*sums, (score, spread, level)), ()

    rows = (design.y, design.weights, design.offset, z)
    return map_groups(body, design.index, rows, design.X, dtype=work, sums=sums)[0]


def row_sums(family, X, y, weight, offset, beta, log_phi, *, second=True):
    """Value (), gradient (p + 1,) and Hessian (p + 1, p + 1) in (beta, log dispersion), and the rows' derivatives."""
    eta = offset + jnp.matmul(X, beta, precision="highest")
    d = family.derivatives(eta, y, weight, log_phi)
    gradient = jnp.matmul(X.T, d.s, precision="highest")
    information = jnp.zeros((beta.shape[0],) * 2, beta.dtype)
    if second:
        information = jnp.matmul(X.T * d.w, X, precision="highest")
    by_phi = lambda log_phi: family.dispersion_derivatives(eta, y, weight, log_phi)[:2]
    if family.dispersion_name is None:
        phi, cross, bend = 0.0, jnp.zeros_like(beta), 0.0
    else:
        (l_phi, s_phi), (l_second, _) = jax.jvp(by_phi, (log_phi,), (jnp.ones_like(log_phi),))
        phi, cross, bend = (
            jnp.sum(l_phi),
            jnp.matmul(X.T, s_phi, precision="highest"),
            jnp.sum(l_second),
        )
    hessian = jnp.block([[-information, cross[:, None]], [cross[None, :], jnp.full((1, 1), bend)]])
    return jnp.sum(d.l), jnp.append(gradient, phi), hessian, d
