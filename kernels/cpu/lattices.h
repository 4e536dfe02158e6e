// Posteriors of scalar group effects on lattices: what the exported functions hand to the code of each
// target.
#pragma once

#include <cstdint>

#include "fused_pass.h"

namespace jaxglmm {

// Some groups of rows that are sorted by group, and where their posteriors go.
struct LatticeProblem {
  const double *y, *weight, *eta, *z;  // (rows,)
  const int64_t* begin;                // (all groups + 1,) first row of each group
  const int64_t* group;                // (groups,) those wanted here
  int64_t groups;
  const double *mean, *sd;  // prior N(mean, sd^2): of all groups, or of each where `own`
  const double* start;      // (all groups,) modes to begin at, in prior sds; or null
  bool own;
  Family family;
  double log_phi;
  double smallest;       // weights below this share of the largest are left out
  double by_sd, by_eta;  // the spacing is at most so many sds of the curvature, and so much eta
  int64_t most;          // points to keep of a group
  double *mode, *curvature, *mean_out, *variance;  // (groups,); curvature: its standard deviation
  int64_t* first;                                  // (groups,) number of the first point
  double *step, *weights;                          // (groups,), (groups, most)
};

// Values on lattices, by spacing ("level") and by function: those of function t on level v begin at flat + at
// and belong to the numbers origin, origin + 1, ..., length of them; beyond both ends the outermost window
// serves.
struct LatticeTables {
  const int64_t *origin, *at, *length;  // (levels, functions)
  const double* flat;
  int64_t functions;
};

// The code of one target.
struct LatticeCode {
  int64_t (*posteriors)(const LatticeProblem&);  // the most points that any group needs
  void (*expect)(int64_t groups, int64_t most, const double* weights, const int64_t* first,
                 const int32_t* level, const LatticeTables&, double* out);
  void (*quantiles)(int64_t groups, int64_t most, const double* weights, const int64_t* first,
                    const double* step, int64_t parts, const double* kernel, int64_t levels, const double* p,
                    double* out);
};

}  // namespace jaxglmm
