// One evaluation of the marginal likelihood: data in tile storage, parameters, and where the results go.
#pragma once

#include <cstdint>
#include <cstring>

#include "jaxglmm/tile.h"

namespace jaxglmm {

enum class Family { gaussian, logit, probit, cloglog, poisson, negativebinomial, gamma };
constexpr int kFamilies = 7;
constexpr int kMostEffects = 3;

// Numbers stored as float64 or float32; computed with as float64.
struct Column {
  const void* at = nullptr;
  bool narrow = false;

  JAXGLMM_HD double operator[](int64_t i) const {
    return narrow ? static_cast<double>(static_cast<const float*>(at)[i]) : static_cast<const double*>(at)[i];
  }
  JAXGLMM_HD void read(int64_t first, int64_t count, double* out) const {
    if (!narrow) {
      memcpy(out, static_cast<const double*>(at) + first, count * sizeof(double));
      return;
    }
    const float* from = static_cast<const float*>(at) + first;
    for (int64_t i = 0; i < count; ++i) out[i] = from[i];
  }
  JAXGLMM_HD Column from(int64_t first) const {
    return narrow ? Column{static_cast<const float*>(at) + first, true}
                  : Column{static_cast<const double*>(at) + first, false};
  }
};

struct MutableColumn {
  void* at = nullptr;
  bool narrow = false;

  JAXGLMM_HD explicit operator bool() const { return at != nullptr; }
  JAXGLMM_HD void set(int64_t i, double v) const {
    if (narrow)
      static_cast<float*>(at)[i] = static_cast<float>(v);
    else
      static_cast<double*>(at)[i] = v;
  }
  JAXGLMM_HD MutableColumn from(int64_t first) const {
    return narrow ? MutableColumn{static_cast<float*>(at) + first, true}
                  : MutableColumn{static_cast<double*>(at) + first, false};
  }
};

// One evaluation: data in tile storage, parameters, and where the modes go.
struct Problem {
  Column X, y, weight, offset;  // X (slots, columns), the others (slots,)
  Column z, start;              // (effects, slots)
  const double *beta, *factor;  // factor: the lower triangle of Lambda by columns
  double log_phi;
  const double *points,
      *log_weights;  // (effects, stride), (nodes,); Laplace's approximation where nodes is 1
  int64_t slots, columns, effects, stride, nodes, block;
  Family family;
  bool determinant, second;
  MutableColumn modes;  // (effects, slots)
  // What group_modes and group_push want besides, slot by slot; null elsewhere.
  MutableColumn d_eta, curvature, pushed;  // (slots,), (pairs, slots), (slots,)
  Column t_eta;                            // (slots,) and (unknowns,): a direction
  const double* t_unknowns = nullptr;

  JAXGLMM_HD int64_t unknowns() const {
    return effects * (effects + 1) / 2 + 1;
  }  // entries of Lambda, and log_phi
};

// Some groups of one class, a lane each; or, joined, one long group, each lane a piece of 32 of its rows.
struct Tile {
  bool joined;
  int64_t size, lanes;
  int64_t first;   // slot of the first lane's first row; joined: number of the group's first piece
  int64_t stride;  // slots from a lane's row to its next
  int64_t base;    // joined: the first slot of the long section

  // Slot of lane j's first row.
  JAXGLMM_HD int64_t slot(int64_t j) const {
    if (!joined) return first + j;
    const int64_t piece = first + j;
    return base + piece / stride * (stride * size) + piece % stride;
  }
};

// Sums over groups, as doubles in one piece of memory: the value, its derivatives in the unknowns (Lambda by
// columns, log_phi), the upper triangle of their second ones row by row; then those in beta. `padded` is the
// number of columns, rounded up; the entries of `hessian` below the diagonal hold nothing of use.
struct Sums {
  double* at;
  int64_t padded, unknowns;

  JAXGLMM_HD int64_t head() const {
    return (1 + 2 * unknowns + unknowns * (unknowns + 1) / 2 + 7) / 8 * 8;
  }  // aligns what follows
  JAXGLMM_HD int64_t size() const { return head() + (1 + unknowns) * padded + padded * padded; }
  JAXGLMM_HD double& value() const { return at[0]; }
  JAXGLMM_HD double* first() const { return at + 1; }
  JAXGLMM_HD double* second() const { return first() + unknowns; }
  JAXGLMM_HD double* pushed() const {
    return second() + unknowns * (unknowns + 1) / 2;
  }  // the mixed part times a direction
  JAXGLMM_HD double* gradient() const { return at + head(); }
  JAXGLMM_HD double* mixed(int64_t unknown) const { return gradient() + (1 + unknown) * padded; }
  JAXGLMM_HD double* hessian() const { return mixed(unknowns); }
};

}  // namespace jaxglmm
