// Which of the compiled targets runs here: the best one, or the one that JAXGLMM_SIMD names.
#include <cstdlib>
#include <cstring>

#include "fused_pass.h"
#include "lane_pass.h"
#include "rows.h"

namespace jaxglmm {

namespace baseline {
extern const Target target;
extern const LaneTarget lane_target;
extern const RowsTarget rows_target;
}  // namespace baseline
#if defined(JAXGLMM_X86)
namespace avx2 {
extern const Target target;
extern const LaneTarget lane_target;
extern const RowsTarget rows_target;
}  // namespace avx2
namespace avx512 {
extern const Target target;
extern const LaneTarget lane_target;
extern const RowsTarget rows_target;
}  // namespace avx512
#endif

namespace {

const Target& choose() {
#if defined(JAXGLMM_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  const char* wanted = std::getenv("JAXGLMM_SIMD");
  const auto allowed = [&](const Target& target) {
    return !wanted || !*wanted || !std::strcmp(wanted, target.name);
  };
  if (avx512 && allowed(avx512::target)) return avx512::target;
  if (avx2 && allowed(avx2::target)) return avx2::target;
#endif
  return baseline::target;
}

}  // namespace

const Target& best_target() {
  static const Target& target = choose();
  return target;
}

const LaneTarget& best_lane_target() {
  const Target& target = best_target();
#if defined(JAXGLMM_X86)
  if (&target == &avx512::target) return avx512::lane_target;
  if (&target == &avx2::target) return avx2::lane_target;
#endif
  (void)target;
  return baseline::lane_target;
}

const RowsTarget& best_rows_target() {
  const Target& target = best_target();
#if defined(JAXGLMM_X86)
  if (&target == &avx512::target) return avx512::rows_target;
  if (&target == &avx2::target) return avx2::rows_target;
#endif
  (void)target;
  return baseline::rows_target;
}

}  // namespace jaxglmm

// For the tests: exp (0), log (1) or log1p (2) of n numbers by the target's own code, and the target's name.
extern "C" __attribute__((visibility("default"))) const char* jaxglmm_elementary(int which, int64_t n,
                                                                                 const double* x,
                                                                                 double* out) {
  jaxglmm::best_target().elementary(which, n, x, out);
  return jaxglmm::best_target().name;
}
