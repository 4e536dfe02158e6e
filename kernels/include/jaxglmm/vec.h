// Vectors of doubles, as wide as the target's registers, with exp, log and log1p of our own.
//
// A source is compiled once for each target (CMakeLists.txt): JAXGLMM_TARGET names the namespace that holds
// everything, so that the linker cannot mix code of two targets, and JAXGLMM_LANES is the width. One lane is
// a plain double: what a thread of a GPU computes with, and the host when it plays one (tests/host_grid.cc).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "jaxglmm/tile.h"

#if defined(__CUDACC__)
#define JAXGLMM_INLINE JAXGLMM_HD __forceinline__
#define JAXGLMM_STEP JAXGLMM_HD __noinline__  // all steps in one kernel take ptxas hours
#else
#define JAXGLMM_INLINE inline __attribute__((always_inline))
#define JAXGLMM_STEP
#endif

namespace jaxglmm {
namespace JAXGLMM_TARGET {

constexpr int64_t kLanes = JAXGLMM_LANES;

constexpr double kInfinity = __builtin_inf();
constexpr double kNaN = __builtin_nan("");

#if JAXGLMM_LANES == 1

typedef double V;
typedef bool M;  // masks
typedef uint64_t U;

JAXGLMM_INLINE void set_lane(V& v, int64_t, double x) { v = x; }
JAXGLMM_INLINE double lane(V v, int64_t) { return v; }
JAXGLMM_INLINE U bits_of(V v) {
  U bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}
JAXGLMM_INLINE V of_bits(U bits) {
  V v;
  memcpy(&v, &bits, sizeof v);
  return v;
}
JAXGLMM_INLINE V root(V x) { return ::sqrt(x); }

#else

typedef double V __attribute__((vector_size(8 * JAXGLMM_LANES)));   // values
typedef int64_t M __attribute__((vector_size(8 * JAXGLMM_LANES)));  // masks: 0 or -1
typedef uint64_t U __attribute__((vector_size(8 * JAXGLMM_LANES)));

JAXGLMM_INLINE void set_lane(V& v, int64_t k, double x) { v[k] = x; }
JAXGLMM_INLINE double lane(V v, int64_t k) { return v[k]; }
JAXGLMM_INLINE U bits_of(V v) { return (U)v; }
JAXGLMM_INLINE V of_bits(U bits) { return (V)bits; }
JAXGLMM_INLINE V root(V x) {
  V out;
  for (int64_t k = 0; k < kLanes; ++k) out[k] = __builtin_sqrt(x[k]);
  return out;
}

#endif

JAXGLMM_INLINE V splat(double x) { return V{} + x; }
JAXGLMM_INLINE V load(const double* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
JAXGLMM_INLINE void store(double* p, V v) { memcpy(p, &v, sizeof v); }
JAXGLMM_INLINE V select(M mask, V yes, V no) { return mask ? yes : no; }
JAXGLMM_INLINE V minimum(V x, V y) { return select(y < x, y, x); }  // NaN in x stays
JAXGLMM_INLINE V maximum(V x, V y) { return select(y > x, y, x); }
JAXGLMM_INLINE V magnitude(V x) { return of_bits(bits_of(x) & static_cast<uint64_t>(INT64_MAX)); }
JAXGLMM_INLINE double sum(V x) {
  double total = lane(x, 0);
  for (int64_t k = 1; k < kLanes; ++k) total += lane(x, k);
  return total;
}
JAXGLMM_INLINE bool any(M mask) {
#if JAXGLMM_LANES == 1
  return mask;
#else
  int64_t bits = 0;
  for (int64_t k = 0; k < kLanes; ++k) bits |= mask[k];
  return bits != 0;
#endif
}

// c[0] + c[1] x + ... by Estrin's scheme (1960): neighbours in pairs, pairs of pairs, ..., a short chain of
// dependences.
template <int N>
JAXGLMM_INLINE V polynomial(const double (&c)[N], V x) {
  constexpr int kPairs = (N + 1) / 2;
  V term[kPairs];
  for (int k = 0; k < kPairs; ++k) term[k] = 2 * k + 1 < N ? x * c[2 * k + 1] + c[2 * k] : splat(c[2 * k]);
  for (int left = kPairs; left > 1; left = (left + 1) / 2) {
    x = x * x;
    for (int k = 0; k < left; k += 2) term[k / 2] = k + 1 < left ? term[k + 1] * x + term[k] : term[k];
  }
  return term[0];
}

constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;

// exp(x) to 1 ulp; held at exp(-708) below and exp(709) above.
JAXGLMM_INLINE V exp(V x) {
  V bounded = select(x > 709.0, splat(709.0), select(x < -708.0, splat(-708.0), x));
  // Adding 1.5 * 2^52 rounds to a whole number, which then lies in the low bits.
  const V shifted = bounded * 1.44269504088896340736 + 0x1.8p52, k = shifted - 0x1.8p52;
  const V r = (bounded - k * kLn2High) - k * kLn2Low;
  static const double kTail[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                                 1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  const V value = 1.0 + (r + r * r * polynomial(kTail, r));
  return select(x == x, of_bits(bits_of(value) + (bits_of(shifted) << 52)), x);
}

// log(x) + correction for a positive normal x: the method of fdlibm (Sun Microsystems, 1993), f = x / 2^k - 1
// and s = f / (2 + f).
JAXGLMM_INLINE V log_plus(V x, V correction) {
  static const double kOdd[] = {6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01,
                                2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01,
                                1.479819860511658591e-01};
  // Subtracting the bits of sqrt(1/2) puts the mantissa into [sqrt(1/2), sqrt(2)).
  const U bits = bits_of(x) - 0x3fe6a09e667f3bcdULL;
  const U high = (bits >> 52) ^ 0x800;  // the exponent, made positive for the conversion
  const V k = of_bits(high | 0x4330000000000000ULL) - (0x1p52 + 2048.0);
  const V f = of_bits((bits & 0xfffffffffffffULL) + 0x3fe6a09e667f3bcdULL) - 1.0;
  const V s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
  return k * kLn2High - ((half - (s * (half + z * polynomial(kOdd, z)) + (k * kLn2Low + correction))) - f);
}

// log(x) to 1 ulp for normal x > 0; NaN for x <= 0.
JAXGLMM_INLINE V log(V x) { return select(x > 0.0, select(x < kInfinity, log_plus(x, V{}), x), splat(kNaN)); }

// log(1 + x) to 2 ulp for 0 <= x <= 1, given 1 / (1 + x).
JAXGLMM_INLINE V log1p_of_share(V x, V inverse) {
  const V y = 1.0 + x;
  return log_plus(y, (x - (y - 1.0)) * inverse);
}

// log(1 + x) to 2 ulp for x > -1; NaN otherwise.
JAXGLMM_INLINE V log1p(V x) {
  const V y = 1.0 + x;
  const V lost = select(x > 1.0, 1.0 - (y - x), x - (y - 1.0));
  const V value = log_plus(y, lost / y);
  return select(magnitude(x) < 0x1p-54, x, select(y > 0.0, select(y < kInfinity, value, y), splat(kNaN)));
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
