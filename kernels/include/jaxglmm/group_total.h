// The sum of a group's rows, told to each of its rows. For host and device.
#pragma once

#include <cstdint>

#include "jaxglmm/tile.h"

namespace jaxglmm {

// Total of group `g` in a block of `groups` groups of `size` rows. The rows are added in order, so that the
// sum has the same bits wherever it is computed.
template <typename T>
JAXGLMM_HD inline T total_of_group(const T* v, int64_t size, int64_t groups, int64_t g) {
  T total = v[g];
  for (int64_t k = 1; k < size; ++k) total += v[k * groups + g];
  return total;
}

// One block: out[k, g] = sum over j of v[j, g]. `out` must not overlap `v`. The groups are the inner loop,
// which compilers turn into vector instructions.
template <typename T>
inline void group_total_block(const T* __restrict v, T* __restrict out, int64_t size, int64_t groups) {
  for (int64_t g = 0; g < groups; ++g) out[g] = v[g];
  for (int64_t k = 1; k < size; ++k)
    for (int64_t g = 0; g < groups; ++g) out[g] += v[k * groups + g];
  for (int64_t k = 1; k < size; ++k)
    for (int64_t g = 0; g < groups; ++g) out[k * groups + g] = out[g];
}

}  // namespace jaxglmm
