// Response families as row functions: the log-density of weight 1 as a function of eta, and its derivatives.
//
// The formulas are those of jaxglmm/model, where they are explained and tested against 50 digits. Terms that
// do not depend on eta are not here (see jaxglmm/ops/fused.py and cpu/count_table.h). What a caller does not
// read of a Row is never computed, since everything is inlined.
#pragma once

#include "jaxglmm/vec.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

// l, s = dl/deta, w = -ds/deta, a = dw/deta, c = da/deta; their first and second derivatives in log_phi.
struct Row {
  V l, s, w, a, c;
  V l_p, s_p, w_p, a_p;
  V l_pp, s_pp, w_pp;
};

// What all rows share of the dispersion.
struct Dispersion {
  V log_phi, phi, precision;  // precision = phi^-2
};

JAXGLMM_INLINE Dispersion dispersion_of(double log_phi) {
  const V v = splat(log_phi);
  return {v, exp(v), exp(-2.0 * v)};
}

// exp(x), held 8 below the largest exponent: sums of a few thousand such terms stay finite.
JAXGLMM_INLINE V exp_capped(V x) { return exp(minimum(x, splat(709.782712893384 - 8.0))); }

struct Gaussian {  // identity link, log_phi = log sigma
  static constexpr bool kDispersion = true, kLogResponse = false;
  static JAXGLMM_INLINE Row row(V eta, V y, const Dispersion& d) {
    const V residual = y - eta, s = d.precision * residual, square = s * residual, zero = V{};
    return {-0.5 * square, s,       d.precision,      zero, zero, square, -2.0 * s, -2.0 * d.precision, zero,
            -2.0 * square, 4.0 * s, 4.0 * d.precision};
  }
};

struct Logit {
  static constexpr bool kDispersion = false, kLogResponse = false;
  static JAXGLMM_INLINE Row row(V eta, V y, const Dispersion&) {
    const M negative = eta < 0.0;
    const V size = magnitude(eta), t = exp(-size), near = 1.0 / (1.0 + t), far = t * near;
    const V unlikely = select(negative, y, 1.0 - y), sign = select(negative, splat(1.0), splat(-1.0));
    const V w = near * far;
    Row r{};
    r.l = -log1p_of_share(t, near) - size * unlikely;
    r.s = sign * (unlikely * near - (1.0 - unlikely) * far);
    r.w = w;
    r.a = sign * w * (near - far);
    r.c = w * (1.0 - 6.0 * w);
    return r;
  }
};

struct Probit {
  static constexpr bool kDispersion = false, kLogResponse = false;
  static JAXGLMM_INLINE Row row(V eta, V y, const Dispersion&) {
    // e_3 of Laplace's continued fraction of the normal tail, times (z + 5), in powers of (z - 5) / (z + 5).
    static const double kTailP[] = {6.8539484053286,       -5.810041458792619,   11.627814069313255,
                                    -6.801248630024842,    6.36322452525931,     -2.4836589106503784,
                                    1.2999435784847326,    -0.3062668592405986,  0.08358617010280396,
                                    -0.008985840638113482, 0.0007523142288142554};
    static const double kTailQ[] = {1.0,
                                    -0.3411199990417048,
                                    1.527142836569607,
                                    -0.37402504541012604,
                                    0.8314673460493199,
                                    -0.13103570098627607,
                                    0.19120039678349834,
                                    -0.01586692147993551,
                                    0.017072539958385723,
                                    -0.0004683020641364629,
                                    0.00039969046410882696};
    const V z = magnitude(eta), v = (z - 5.0) / (z + 5.0);
    const V e3 = polynomial(kTailP, v) / (polynomial(kTailQ, v) * (z + 5.0));
    const V e2 = 3.0 / (z + e3), e1 = 2.0 / (z + e2), d = 1.0 / (z + e1), m = z + d;
    const V skew = m * d * d * e1, third = skew * (e2 - e1);
    const V fourth = skew * ((e2 - e1) * (e2 - 3.0 * d) + e2 * (e3 - e2));
    const V log_density = -0.5 * z * z - 0.91893853320467274178, density = exp(log_density);
    const V outside = density / m, s = density / (1.0 - outside), w = s * (s + z);
    const V u = 2.0 * s + z, a = s - w * u, c = a * u + 2.0 * w * (1.0 - w);
    const M negative = eta < 0.0;
    const V far = select(negative, y, 1.0 - y), near = 1.0 - far;
    const V sign = select(negative, splat(1.0), splat(-1.0));
    Row r{};
    r.l = far * (log_density - log(m)) + near * log1p(-outside);
    r.s = sign * (far * m - near * s);
    r.w = far * m * d + near * w;
    r.a = -sign * (far * third + near * a);
    r.c = -(far * fourth + near * c);
    return r;
  }
};

struct Cloglog {
  static constexpr bool kDispersion = false, kLogResponse = false;
  static JAXGLMM_INLINE Row row(V eta, V y, const Dispersion&) {
    // r + r / (e^r - 1) - 1 = r / 2 + r^2 times this, in powers of r^2: Bernoulli numbers over factorials.
    static const double kBernoulli[] = {1.0 / 12,
                                        -1.0 / 720,
                                        1.0 / 30240,
                                        -1.0 / 1209600,
                                        1.0 / 47900160,
                                        -691.0 / 1307674368000,
                                        1.0 / 74724249600,
                                        -3617.0 / 10670622842880000,
                                        43867.0 / 5109094217170944000,
                                        -174611.0 / 802857662698291200000.0};
    const V rate = exp_capped(eta), r = minimum(rate, splat(1000.0));  // e^-1000 is 0
    const M small = r < 1.0;
    const V r_small = select(small, r, V{}), r_large = select(small, splat(1.0), r);
    const V series = r_small * (0.5 + r_small * polynomial(kBernoulli, r_small * r_small));
    const V e = exp(-r_large), b_large = r_large * e / (1.0 - e);
    const V k = select(small, series, r_large + b_large - 1.0);
    const V b = select(small, 1.0 + series - r_small, b_large);
    const V j = r - k * (k + b), dk = r - b * k, dj = r - dk * (k + b) - k * (dk - b * k);
    const V log_mu = select(small, eta - r - log(select(small, b, splat(1.0))), log1p(-e));
    const V rest = (1.0 - y) * rate;
    Row out{};
    out.l = y * log_mu - rest;
    out.s = y * b - rest;
    out.w = y * (b * k) + rest;
    out.a = y * (b * j) + rest;
    out.c = y * (b * (dj - k * j)) + rest;
    return out;
  }
};

struct Poisson {  // log link
  static constexpr bool kDispersion = false, kLogResponse = false;
  static JAXGLMM_INLINE Row row(V eta, V y, const Dispersion&) {
    const V mu = exp_capped(eta);
    Row r{};
    r.l = y * eta - mu;
    r.s = y - mu;
    r.w = r.a = r.c = mu;
    return r;
  }
};

struct NegativeBinomial {  // log link, phi = theta; l = y eta - (y + theta) log(1 + mu / theta)
  static constexpr bool kDispersion = true, kLogResponse = false;
  static JAXGLMM_INLINE Row row(V eta, V y, const Dispersion& d) {
    const V theta = d.phi, q = eta - d.log_phi, t = exp(-magnitude(q));
    const M low = q <= 0.0;
    const V near = 1.0 / (1.0 + t), far = t * near;
    const V p = select(low, far, near), rest = select(low, near, far);  // mu / (mu + theta), and 1 minus it
    const V soft = log1p_of_share(t, near) + select(low, V{}, q);
    const V n = y + theta, v = p * rest, tilt = rest - p, bend = v * (1.0 - 6.0 * v);
    return {y * eta - n * soft,
            y * rest - theta * p,
            n * v,
            n * v * tilt,
            n * bend,
            n * p - theta * soft,
            p * (y * rest - theta * p),
            v * (theta - n * tilt),
            theta * v * tilt - n * bend,
            theta * (2.0 * p - soft) - n * v,
            theta * (2.0 * v - p) - n * v * tilt,
            theta * v * (1.0 - 2.0 * tilt) + n * bend};
  }
};

struct Gamma {  // log link, phi = shape; the response comes as its logarithm
  static constexpr bool kDispersion = true, kLogResponse = true;
  static JAXGLMM_INLINE Row row(V eta, V log_y, const Dispersion& d) {
    const V log_ratio = log_y - eta, k = d.phi * exp_capped(log_ratio);
    const V l = d.phi * (1.0 + log_ratio) - k, s = k - d.phi;
    return {l, s, k, -k, k, l, s, k, -k, l, s, k};
  }
};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
