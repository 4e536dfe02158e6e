// What the handlers hand to the code of each target.
#pragma once

#include <cstdint>

#include "jaxglmm/problem.h"

namespace jaxglmm {

// The code of one target. `add` has an entry for each number of effects.
struct Target {
  const char* name;
  int64_t lanes;
  int64_t (*padded)(int64_t columns);
  int64_t (*workspace[kMostEffects])(const Problem&,
                                     const Tile&);  // doubles that `add` needs, 64-byte aligned
  void (*add[kMostEffects])(const Problem&, const Tile&, double* workspace, const Sums&);
  void (*elementary)(int which, int64_t n, const double* x, double* out);  // exp, log, log1p: for the tests
};

const Target& best_target();

}  // namespace jaxglmm
