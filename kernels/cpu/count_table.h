// The part of the negative binomial's log-density that does not depend on eta,
//
//   lgamma(y + theta) - lgamma(theta) - y log theta = sum over j < y of log(1 + j / theta),
//
// with its first two derivatives in log theta, for all counts up to the largest one. Whole counts only: NaN
// otherwise.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace jaxglmm {

class CountTable {
 public:
  using Entry = std::array<double, 3>;

  template <class Numbers>
  CountTable(const Numbers& y, const Numbers& weight, int64_t rows, double log_theta)
      : log_theta_(log_theta) {
    double largest = 0;
    for (int64_t i = 0; i < rows; ++i)
      if (weight[i] > 0 && y[i] > largest) largest = y[i];
    const int64_t last = static_cast<int64_t>(std::min(largest, kLongest));
    const double theta = std::exp(log_theta);
    Entry sum = {0, 0, 0};
    table_.push_back(sum);
    for (int64_t j = 0; j < last; ++j) {
      const double part = j / (theta + j);
      sum[0] += std::log1p(j / theta), sum[1] -= part, sum[2] += part * theta / (theta + j);
      table_.push_back(sum);
    }
  }

  Entry operator[](double y) const {
    if (!(y >= 0 && y == std::floor(y) && y < 0x1p53)) return {kNaN, kNaN, kNaN};
    if (y < static_cast<double>(table_.size())) return table_[static_cast<size_t>(y)];
    // Beyond the table by Stirling's series, which is exact to rounding for arguments this large.
    const double theta = std::exp(log_theta_), from = table_.size() - 1.0, top = y + theta,
                 bottom = from + theta;
    const auto lgamma = [](double x) { return (x - 0.5) * std::log(x) - x + 1 / (12 * x); };
    const auto digamma = [](double x) { return std::log(x) - 1 / (2 * x) - 1 / (12 * x * x); };
    const auto trigamma = [](double x) { return 1 / x + 1 / (2 * x * x) + 1 / (6 * x * x * x); };
    const double slope = theta * (digamma(top) - digamma(bottom));
    Entry entry = table_.back();
    entry[0] += lgamma(top) - lgamma(bottom) - (y - from) * log_theta_;
    entry[1] += slope - (y - from);
    entry[2] += slope + theta * theta * (trigamma(top) - trigamma(bottom));
    return entry;
  }

 private:
  static constexpr double kLongest = 1 << 17;
  static constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  double log_theta_;
  std::vector<Entry> table_;
};

}  // namespace jaxglmm
