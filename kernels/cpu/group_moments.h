// Posteriors of scalar effects: what the handler hands to the code of each target.
#pragma once

#include <cstdint>

#include "fused_pass.h"

namespace jaxglmm {

// What is wanted of each level: moments at quadrature nodes, or, where there is a covariance, effects.
struct MomentsResults {
  const double *points = nullptr, *log_weights = nullptr;
  int64_t nodes = 0;
  double *moments = nullptr,
         *weights = nullptr;           // (levels, 3): root, mean, variance; (levels, nodes) if wanted
  const double* covariance = nullptr;  // of psi, (columns + 2, columns + 2)
  // (levels, 3): mean and variance of b = tau u, and d'V d, d the derivatives of the mean in psi.
  double* effects = nullptr;
};

// T is the type that rows are stored in.
template <typename T>
struct MomentsProblem : MomentsResults {
  const T *X, *y, *weight, *offset, *z, *modes;  // X (slots, columns), the others (slots,)
  const int32_t* level;                          // (slots,) level of the group whose first row it is
  const double* beta;
  double tau, log_phi;
  int64_t columns;
  Family family;
};

// Groups stored side by side: row k of group j is in slot first + j + k * stride. A long group has one lane;
// its rows are 32 of each piece, the pieces `first`, first + 1, ... as `across`, `block` and `base` place
// them.
struct MomentsTile {
  int64_t first, lanes, size, stride;
  int64_t pieces;  // 0 for short groups
  int64_t across, block, base;

  int64_t slot(int64_t lane, int64_t row) const {
    if (!pieces) return first + lane + row * stride;
    const int64_t piece = first + row / 32;
    return base + piece / across * block + row % 32 * across + piece % across;
  }
};

}  // namespace jaxglmm
