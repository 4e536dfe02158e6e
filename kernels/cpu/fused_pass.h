// The fused pass: what the handler hands to the code of each target.
#pragma once

#include <cstdint>

namespace jaxglmm {

enum class Family { gaussian, logit, probit, cloglog, poisson, negativebinomial, gamma };
constexpr int kFamilies = 7;

// One evaluation: data in tile storage, parameters, and where the modes go.
struct Problem {
  const double *X, *y, *weight, *offset, *z, *start;  // X (slots, columns), the others (slots,)
  const double* beta;
  double tau, log_phi;
  const double *points, *log_weights;  // (nodes,); Laplace's approximation where nodes is 1
  int64_t columns, nodes, block;
  Family family;
  bool determinant, second;
  double* modes;  // (slots,)
};

// Some groups of one class, a lane each; or, joined, one long group, each lane a piece of 32 of its rows.
struct Tile {
  bool joined;
  int64_t size, lanes;
  int64_t first;   // slot of the first lane's first row; joined: number of the group's first piece
  int64_t stride;  // slots from a lane's row to its next
  int64_t base;    // joined: the first slot of the long section

  // Slot of lane j's first row.
  int64_t slot(int64_t j) const {
    if (!joined) return first + j;
    const int64_t piece = first + j;
    return base + piece / stride * (stride * size) + piece % stride;
  }
};

// Sums over groups, as doubles in one piece of memory. `padded` is the number of columns, rounded up; the
// entries of `hessian` below the diagonal hold nothing of use.
struct Sums {
  enum Scalar { value, tau, phi, tau_tau, tau_phi, phi_phi, scalars };
  double* at;
  int64_t padded;

  static constexpr int64_t kHead = 8;  // keeps what follows aligned
  static int64_t size(int64_t padded) { return kHead + 3 * padded + padded * padded; }
  double& operator[](Scalar which) const { return at[which]; }
  double* gradient() const { return at + kHead; }
  double* by_tau() const { return gradient() + padded; }
  double* by_phi() const { return by_tau() + padded; }
  double* hessian() const { return by_phi() + padded; }
};

// The code of one target.
struct Target {
  const char* name;
  int64_t lanes;
  int64_t (*padded)(int64_t columns);
  int64_t (*workspace)(const Problem&, const Tile&);  // doubles that `add` needs, 64-byte aligned
  void (*add)(const Problem&, const Tile&, double* workspace, const Sums&);
  void (*elementary)(int which, int64_t n, const double* x, double* out);  // exp, log, log1p: for the tests
};

const Target& best_target();

}  // namespace jaxglmm
