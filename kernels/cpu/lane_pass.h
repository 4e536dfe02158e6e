// One evaluation of very many fits of few rows each: a lane for each fit, so that nothing is added up across
// lanes and no group is padded to a class. What is computed is that of the fused pass.
#pragma once

#include <algorithm>
#include <cstdint>

#include "fused_pass.h"

namespace jaxglmm {

constexpr int kMostLaneEffects = 2;

// Rows of a fit lie together, group after group. Fit f has its rows of the design from row `design_row[f]` on
// and its responses from `response_row[f]` on; its group g begins at row begin[f * begin_stride + g] of
// those. `shared`: all fits have the same rows of the design. Null weights and z are ones, null offsets
// zeros.
struct LaneProblem {
  const double *X, *y, *weight, *offset, *z;  // X (rows, columns), z (effects, rows)
  const int64_t *design_row, *response_row;
  const int32_t* begin;
  int64_t begin_stride, rows, columns, effects, groups;
  int64_t shared;
  int64_t family;
  // Which fits, and where: psi (fits, m) = (beta, the lower triangle of Lambda by columns, log dispersion).
  const int64_t* which;
  int64_t fits;
  const double* psi;
  const double *points, *log_weights;  // (effects, stride), of which `nodes` are used
  int64_t stride, nodes;
  double* modes;                       // (all fits, groups, effects): where the search begins, and ends
  double *value, *gradient, *hessian;  // (fits,), (fits, m), (fits, m, m)
  double* spread;  // without random effects, psi = (beta, log dispersion): (fits, 3 effects + 1)
};

// kLanes of the fits, from `first` on. `memory` has what `lane_workspace` says, 64-byte aligned.
struct LaneTarget {
  int64_t lanes;
  int64_t (*workspace)(const LaneProblem&, int64_t largest);
  void (*marginal[kMostLaneEffects])(const LaneProblem&, int64_t first, double* memory);
  void (*fixed)(const LaneProblem&, int64_t first, double* memory);
};

const LaneTarget& best_lane_target();

// Rows of the largest group of some fits.
inline int64_t largest_group(const LaneProblem& q, const int64_t* which, int64_t fits) {
  int64_t largest = 1;
  for (int64_t b = 0; b < (q.begin_stride ? fits : std::min<int64_t>(fits, 1)); ++b) {
    const int32_t* begin = q.begin + which[b] * q.begin_stride;
    for (int64_t g = 0; g < q.groups; ++g) largest = std::max<int64_t>(largest, begin[g + 1] - begin[g]);
  }
  return largest;
}

}  // namespace jaxglmm
