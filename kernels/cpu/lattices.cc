// Posteriors of scalar group effects on lattices, and what is asked of them: plain functions on the caller's
// arrays, each called for a piece of the groups, on any thread. See jaxglmm/ops/lattices.py.
#include "lattices.h"

#include <cstring>
#include <new>

#include "host.h"

namespace jaxglmm {

namespace baseline {
extern const LatticeCode lattice_code;
}
#if defined(JAXGLMM_X86)
namespace avx2 {
extern const LatticeCode lattice_code;
}
namespace avx512 {
extern const LatticeCode lattice_code;
}
#endif

namespace {

const LatticeCode& code() {
#if defined(JAXGLMM_X86)
  const char* name = best_target().name;
  if (!std::strcmp(name, "avx512")) return avx512::lattice_code;
  if (!std::strcmp(name, "avx2")) return avx2::lattice_code;
#endif
  return baseline::lattice_code;
}

}  // namespace
}  // namespace jaxglmm

// The most points that any group needs, so that weights are complete where this is at most `most`; -1 where
// there is no memory, -2 where a group is none of `all`, or its rows are none of `rows`. Groups of like size
// should be neighbours.
JAXGLMM_EXPORT int64_t jaxglmm_lattices(const double* y, const double* weight, const double* eta,
                                        const double* z, const int64_t* begin, int64_t rows, int64_t all,
                                        const int64_t* group, int64_t groups, const double* mean,
                                        const double* sd, int32_t own, const double* start, int32_t family,
                                        double log_phi, double smallest, double by_sd, double by_eta,
                                        int64_t most, double* mode, double* curvature, double* mean_out,
                                        double* variance, int64_t* first, double* step, double* weights) try {
  using namespace jaxglmm;
  if (!within(group, groups, all)) return -2;
  for (int64_t g = 0; g < groups; ++g)
    if (!rises(begin + group[g], 1, rows)) return -2;
  return code().posteriors({y,         weight,   eta,      z,      begin,    group,
                            groups,    mean,     sd,       start,  own != 0, static_cast<Family>(family),
                            log_phi,   smallest, by_sd,    by_eta, most,     mode,
                            curvature, mean_out, variance, first,  step,     weights});
} catch (const std::bad_alloc&) {
  return -1;
}

// out[t, g] = sum_k weights[g, k] function_t((first[g] + k) h), the function's values on the group's level as
// LatticeTables has them. Returns 1 where a level is none, or values are none of the tables' `all`, else 0.
JAXGLMM_EXPORT int32_t jaxglmm_lattice_expect(int64_t groups, int64_t most, const double* weights,
                                              const int64_t* first, const int32_t* level, int64_t levels,
                                              int64_t functions, const int64_t* origin, const int64_t* at,
                                              const int64_t* length, const double* flat, int64_t all,
                                              double* out) {
  if (!jaxglmm::within(level, groups, levels)) return 1;
  for (int64_t v = 0; v < levels * functions; ++v)
    if (length[v] < most || length[v] > all || at[v] < 0 || at[v] > all - length[v]) return 1;
  jaxglmm::code().expect(groups, most, weights, first, level, {origin, at, length, flat, functions}, out);
  return 0;
}

// mass[at[level] + first[g] - origin[level] + k] += weights[g, k], groups in order. Returns 1 where a level
// is none, or a place is none of mass (all,), else 0.
JAXGLMM_EXPORT int32_t jaxglmm_lattice_add(int64_t groups, int64_t most, const double* weights,
                                           const int64_t* first, const int32_t* level, int64_t levels,
                                           const int64_t* origin, const int64_t* at, double* mass,
                                           int64_t all) {
  if (!jaxglmm::within(level, groups, levels)) return 1;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t place = at[level[g]] + first[g] - origin[level[g]];
    if (place < 0 || place > all - most) return 1;
    for (int64_t k = 0; k < most; ++k) mass[place + k] += weights[g * most + k];
  }
  return 0;
}

JAXGLMM_EXPORT void jaxglmm_lattice_quantiles(int64_t groups, int64_t most, const double* weights,
                                              const int64_t* first, const double* step, int64_t parts,
                                              const double* kernel, int64_t levels, const double* p,
                                              double* out) {
  jaxglmm::code().quantiles(groups, most, weights, first, step, parts, kernel, levels, p, out);
}
