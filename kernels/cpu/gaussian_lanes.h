// Cross products of very many Gaussian models, as the exported functions take them.
#pragma once

#include "newton.h"

namespace jaxglmm {

// Products of a lane are `lanes` apart, entry by entry; those that all lanes share have a step of 1 and no
// lanes.
struct LaneArray {
  const double* at;
  int64_t step, lane;
};

// What jaxglmm_gaussian_profile and jaxglmm_gaussian_climb read and write; jaxglmm/ops/gaussian_lanes.py has
// the same.
struct GaussianLanes {
  int64_t columns, effects, groups, entries, reml;
  const int64_t *entry_row, *entry_column;  // (entries,) of T
  LaneArray ztz, ztx, ztr, xx, xr, rr, n, log_weights;
  const int64_t* which;  // (fits,)
  int64_t fits;
  const double* scale;  // (lanes, entries): T's entries are raw = scale x
  NewtonRules rules;    // of the climb
  double *x, *value, *gradient, *hessian, *decrement, *move;  // (fits, ...); in x
  int64_t *reason, *evaluations;
  // Of the profile alone, in raw: (fits,), (fits, entries) and so on; c are the coefficients beside the
  // origin's.
  double *rss, *c, *inverse, *load, *bend, *rss1, *rss2, *log_det2, *q_xx;
};

}  // namespace jaxglmm
