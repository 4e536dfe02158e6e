// The caller's columns, read by the code of each target: moments, and rows of scaled values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "host.h"

namespace jaxglmm {

constexpr int64_t kTurned = 64;  // rows that are turned at a time: their part of each column is in cache

// Least and largest value, mass, mean, and sum of squares about the mean.
struct Moments {
  double low = std::numeric_limits<double>::infinity(), high = -low, mass = 0, mean = 0, square = 0;

  // Chan, Golub & LeVeque (1983), Am. Stat. 37, 242.
  void add(const Moments& m) {
    if (!(m.mass > 0)) return;
    low = std::min(low, m.low), high = std::max(high, m.high);
    const double gap = m.mean - mean, total = mass + m.mass;
    square += m.square + gap * gap * mass * m.mass / total;
    mean += gap * m.mass / total;
    mass = total;
  }
};

struct RowsTarget {
  // Of rows begin ... end of a column; a weight of null is ones.
  Moments (*moments)(const HostColumn& column, const HostColumn* weight, int64_t begin, int64_t end);
  // Rows begin ... begin + m of so many columns, m at most kTurned: out (m, columns), value - center over
  // scale.
  void (*turn)(const HostColumn* column, int64_t columns, int64_t begin, int64_t m, const double* center,
               const double* scale, double* out);
  void (*turn_single)(const HostColumn* column, int64_t columns, int64_t begin, int64_t m,
                      const double* center, const double* scale, float* out);
};

const RowsTarget& best_rows_target();

}  // namespace jaxglmm
