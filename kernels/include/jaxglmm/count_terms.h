// The part of the negative binomial's log-density that does not depend on eta,
//
//   lgamma(y + theta) - lgamma(theta) - y log theta = sum over j < y of log(1 + j / theta),
//
// with its first two derivatives in log theta, for whole counts. For host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "jaxglmm/tile.h"

namespace jaxglmm {

// Adds the term of j.
JAXGLMM_HD inline void add_count_term(double* sum, double j, double theta) {
  const double part = j / (theta + j);
  sum[0] += ::log1p(j / theta), sum[1] -= part, sum[2] += part * theta / (theta + j);
}

// Adds the terms of j = from .. y - 1 by Stirling's series, which is exact to rounding for arguments in the
// thousands.
JAXGLMM_HD inline void add_count_tail(double* sum, double from, double y, double theta, double log_theta) {
  const double top = y + theta, bottom = from + theta;
  const auto lgamma = [](double x) { return (x - 0.5) * ::log(x) - x + 1 / (12 * x); };
  const auto digamma = [](double x) { return ::log(x) - 1 / (2 * x) - 1 / (12 * x * x); };
  const auto trigamma = [](double x) { return 1 / x + 1 / (2 * x * x) + 1 / (6 * x * x * x); };
  const double slope = theta * (digamma(top) - digamma(bottom));
  sum[0] += lgamma(top) - lgamma(bottom) - (y - from) * log_theta;
  sum[1] += slope - (y - from);
  sum[2] += slope + theta * theta * (trigamma(top) - trigamma(bottom));
}

JAXGLMM_HD inline bool is_count(double y) { return y >= 0 && y == ::floor(y) && y < 0x1p53; }

// All terms of one count, where no table of them is at hand.
JAXGLMM_HD inline void add_count(double* sum, double y, double log_theta) {
  if (!is_count(y)) {
    for (int k = 0; k < 3; ++k) sum[k] += __builtin_nan("");
    return;
  }
  constexpr double kLongest = 4096;
  const double theta = ::exp(log_theta);
  for (double j = 1; j < y && j < kLongest; ++j) add_count_term(sum, j, theta);
  if (y > kLongest) add_count_tail(sum, kLongest, y, theta, log_theta);
}

}  // namespace jaxglmm
