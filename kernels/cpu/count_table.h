// The terms of counts (jaxglmm/count_terms.h) for all counts up to the largest one. Whole counts only: NaN
// otherwise.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "jaxglmm/count_terms.h"

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
      add_count_term(sum.data(), j, theta);
      table_.push_back(sum);
    }
  }

  Entry operator[](double y) const {
    if (!is_count(y)) return {kNaN, kNaN, kNaN};
    if (y < static_cast<double>(table_.size())) return table_[static_cast<size_t>(y)];
    Entry entry = table_.back();
    add_count_tail(entry.data(), table_.size() - 1.0, y, std::exp(log_theta_), log_theta_);
    return entry;
  }

 private:
  static constexpr double kLongest = 1 << 17;
  static constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  double log_theta_;
  std::vector<Entry> table_;
};

}  // namespace jaxglmm
