// Groups nested in parents: what the handler hands to the code of each target.
#pragma once

#include <cstdint>
#include <vector>

#include "fused_pass.h"

namespace jaxglmm {

// One evaluation: data in tile storage, and what is held of each parent.
struct NestedProblem {
  Column X, eta, y, weight;              // X (slots, columns), the others (slots,)
  const int32_t *group, *parent;         // (slots,): at a group's first slot its number, else -1; (groups,)
  const double *shift, *kappa, *lambda;  // (parents,)
  Column start;                          // (groups,)
  double tau, log_phi;
  int64_t slots, columns;
  Family family;
  MutableColumn modes, information;  // (groups,)
};

// Sums of a group that its parent needs, in this order; then the three vectors in beta, `padded` long each.
enum : int { kScore, kInformation, kP, kR, kPe, kRe, kVectors, kParentSums = kVectors + 6 };

// Sums by parent of one chunk: groups come sorted by parent within a class, so that a parent's are few runs.
class ParentRuns {
 public:
  explicit ParentRuns(int64_t width) : width(width) {}
  double* of(int32_t parent);  // the current run, or a new one of zeros

  const int64_t width;
  std::vector<int32_t> parents;
  std::vector<double> sums;
};

}  // namespace jaxglmm
