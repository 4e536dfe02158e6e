"""Special functions that the families need, stable over the whole range of their argument.

Everything is elementwise jax.numpy and keeps the dtype of its argument. Branches are chosen by ``where`` on
inputs made safe beforehand, never by ``abs``, ``maximum`` at a kink: every branch is analytic across its own
border, so that automatic differentiation of any order is exact at the border too (eta = 0 is where fits start).
"""

import math

import jax
import jax.numpy as jnp


# e_3(z) (z + 5) as a ratio of polynomials in v = (z - 5)/(z + 5), interpolated at 21 Chebyshev points with 60
# digits; relative error 6e-16 on z >= 0. See mills().
_E3_P = (
    6.8539484053286,
    -5.810041458792619,
    11.627814069313255,
    -6.801248630024842,
    6.36322452525931,
    -2.4836589106503784,
    1.2999435784847326,
    -0.3062668592405986,
    0.08358617010280396,
    -0.008985840638113482,
    0.0007523142288142554,
)
_E3_Q = (
    1.0,
    -0.3411199990417048,
    1.527142836569607,
    -0.37402504541012604,
    0.8314673460493199,
    -0.13103570098627607,
    0.19120039678349834,
    -0.01586692147993551,
    0.017072539958385723,
    -0.0004683020641364629,
    0.00039969046410882696,
)
# B_2k / (2k (2k - 1)), the series of log-gamma's remainder (Abramowitz & Stegun 6.1.40).
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
STIRLING_FROM = 10.0
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def horner(coefficients, x):
    """Polynomial with ascending ``coefficients`` at ``x``."""
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def exp_capped(x):
    """exp(x), held at exp(log(largest float) - 8) beyond: sums of a few thousand such terms stay finite."""
    return jnp.exp(jnp.minimum(x, math.log(float(jnp.finfo(x.dtype).max)) - 8))


def mills(z):
    """Continued fraction of the normal tail at ``z >= 0``: ``(m, d, e1, e2, e3)``.

    m = phi(z) / Phi(-z) = z + d,  d = 1/(z + e1),  e1 = 2/(z + e2),  e2 = 3/(z + e3),  e3 = 4/(z + ...)

    (Laplace's fraction). Only e3 is approximated; the errors shrink from there on. As functions of x = -z each obeys
    e_k' = e_k (e_{k+1} - e_k), which gives the derivatives of log Phi(x) as products and mild differences, where the
    textbook forms w = m (m + x), a = m (1 - w) - w (m + x), ... cancel like z^2, z^4, z^6 times the rounding error.
    """
    v = (z - 5.0) / (z + 5.0)
    e3 = horner(_E3_P, v) / (horner(_E3_Q, v) * (z + 5.0))
    e2 = 3.0 / (z + e3)
    e1 = 2.0 / (z + e2)
    d = 1.0 / (z + e1)
    return z + d, d, e1, e2, e3


@jax.custom_jvp
def log1pmx(x):
    """log(1 + x) - x for ``x >= 0`` without cancellation for small x."""
    small = x < 0.5
    x_small = jnp.where(small, x, 0.0)
    u = x_small / (2.0 + x_small)
    series = 2.0 * u**3 * horner([1.0 / k for k in range(3, 27, 2)], u * u) - x_small * u
    return jnp.where(small, series, jnp.log1p(x) - x)


@log1pmx.defjvp
def _log1pmx_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return log1pmx(x), -x / (1.0 + x) * dx


@jax.custom_jvp
def xlog1pmx(x):
    """(1 + x) log(1 + x) - x for ``x >= 0`` without cancellation for small x."""
    small = x < 0.5
    x_small = jnp.where(small, x, 0.0)
    return jnp.where(small, (1.0 + x_small) * log1pmx(x_small) + x_small * x_small, (1.0 + x) * jnp.log1p(x) - x)


@xlog1pmx.defjvp
def _xlog1pmx_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return xlog1pmx(x), jnp.log1p(x) * dx


def stirling_remainder(x):
    """lgamma(x) - [(x - 1/2) log x - x + (1/2) log 2 pi] for ``x >= STIRLING_FROM``."""
    r = 1.0 / x
    return r * horner(_STIRLING, r * r)


def stirling_rise(y, x):
    """stirling_remainder(x + y) - stirling_remainder(x), of the relative accuracy of y, and 0 at y = 0.

    The remainder is r h(r^2) with r = 1/x. A difference of two such would leave the rounding of their products, where
    a compiler contracts one of them only; here y is a factor, by the divided difference of the polynomial h.
    """
    near, far = 1.0 / x, 1.0 / (x + y)
    value = slope = jnp.zeros_like(near)
    for coefficient in reversed(_STIRLING):
        slope = slope * (far * far) + value
        value = value * (near * near) + coefficient
    step, total = -y * near * far, near + far
    return step * (value + (step + near) * total * slope)


def lgamma_gap(x, log_x):
    """x log x - x - lgamma(x) for ``x > 0``, small where the three terms are huge.

    ``log_x`` is given by the caller, who may know it where x itself underflows.
    """
    large = x >= STIRLING_FROM
    x_large = jnp.where(large, x, STIRLING_FROM)
    x_small = jnp.where(large, 1.0, x)
    log_small = jnp.where(large, 0.0, log_x)
    far = 0.5 * log_x - _HALF_LOG_2PI - stirling_remainder(x_large)
    return jnp.where(large, far, (x_small + 1.0) * log_small - x_small - jax.lax.lgamma(1.0 + x_small))


def lgamma_rise(y, theta, log_theta):
    """lgamma(y + theta) - lgamma(theta) - y log(theta) for ``y >= 0``: sum of log(1 + j/theta) for whole y.

    For large theta it is y (y - 1)/(2 theta), which the difference of two log-gammas would lose altogether.
    """
    y, theta, log_theta = jnp.broadcast_arrays(y, theta, log_theta)
    large = theta >= STIRLING_FROM
    big = jnp.where(large, theta, STIRLING_FROM)
    small = jnp.where(large, 1.0, theta)
    x = y / big
    far = big * xlog1pmx(x) - 0.5 * jnp.log1p(x) + stirling_rise(y, big)
    near = jax.lax.lgamma(y + small) - jax.lax.lgamma(small) - y * jnp.where(large, 0.0, log_theta)
    return jnp.where(large, far, near)


def polygammas(x):
    """(psi, psi', psi'', psi''')(x) for ``x >= 1``: upward recurrence by 8, then the asymptotic series."""
    shift = 8
    sums = [jnp.zeros_like(x)] * 4
    for j in range(shift):
        r = 1.0 / (x + j)
        power = r
        for order in range(4):
            sums[order] = sums[order] + power
            power = power * r
    top = x + shift
    r = 1.0 / top
    r2 = r * r
    # Term by term derivatives of psi(x) = log x - 1/(2x) - sum_k B_2k/(2k) x^-2k (Abramowitz & Stegun 6.3.18).
    b = [value * (2 * k + 1) for k, value in enumerate(_STIRLING)]
    k = [2 * i + 2 for i in range(len(b))]
    psi = jnp.log(top) - 0.5 * r - r2 * horner(b, r2) - sums[0]
    psi1 = r + 0.5 * r2 + r * r2 * horner([bi * ki for bi, ki in zip(b, k, strict=True)], r2) + sums[1]
    third = [bi * ki * (ki + 1) for bi, ki in zip(b, k, strict=True)]
    psi2 = -r2 - r * r2 - r2 * r2 * horner(third, r2) - 2.0 * sums[2]
    fourth = [bi * (ki + 2) for bi, ki in zip(third, k, strict=True)]
    psi3 = 2.0 * r * r2 + 3.0 * r2 * r2 + r * r2 * r2 * horner(fourth, r2) + 6.0 * sums[3]
    return psi, psi1, psi2, psi3
