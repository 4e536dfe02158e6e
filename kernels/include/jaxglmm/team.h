// Who shares a joined group: the lanes of a vector, or the threads of a block.
#pragma once

#include "jaxglmm/vec.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

#if JAXGLMM_LANES == 1

// The threads of a block, when `size` is theirs; a thread alone by default. All of them must call `total`
// together.
struct Team {
  int64_t rank = 0, size = 1;
  double* shared = nullptr;  // (size,), seen by all of them

  JAXGLMM_HD V total(V v) const {
    if (size == 1) return v;
    shared[rank] = v;
    JAXGLMM_SYNC();
    V sum = shared[0];
    for (int64_t k = 1; k < size; ++k) sum += shared[k];
    JAXGLMM_SYNC();
    return sum;
  }
  // Of a number that all of them have: once.
  JAXGLMM_INLINE V once() const { return rank == 0 ? 1.0 : 0.0; }
};

#else

struct Team {
  static constexpr int64_t rank = 0, size = 1;
  JAXGLMM_INLINE V total(V v) const { return splat(sum(v)); }
  JAXGLMM_INLINE V once() const {
    V once{};
    once[0] = 1.0;
    return once;
  }
};

#endif

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
