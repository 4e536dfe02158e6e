// Newton's method in very many fits, as the exported function takes them.
#pragma once

#include "lane_pass.h"
#include "newton.h"

namespace jaxglmm {

// What jaxglmm_lane_climb reads and writes. The unknowns of fit k are (beta, e) with Lambda's lower triangle
// = block[k] e.
struct LaneClimb {
  LaneProblem lanes;  // but `which`, `fits`, `psi` and the results
  const int64_t* which;
  int64_t fits;
  int64_t entries, triangle;  // zero without random effects
  const double* block;        // (fits, triangle, entries)
  NewtonRules rules;
  double *x, *value, *gradient, *hessian, *decrement, *move;  // (fits, ...)
  int64_t *reason, *evaluations;
  double* spread;  // without random effects: at the last step that was taken
};

}  // namespace jaxglmm
