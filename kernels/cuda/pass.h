// One evaluation on a GPU, and the small steps around the groups' own (group_tile.h). A step is a body that
// the grid calls in every thread with its block: Body{...}(team, block). There are no atomic operations: each
// block of the grid has sums of its own, which `AddSums` adds in order, so that results are the same bits
// each time.
#pragma once

#include "jaxglmm/count_terms.h"
#include "jaxglmm/group_total.h"
#include "jaxglmm/problem.h"
#include "jaxglmm/team.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

constexpr int64_t kThreads = 64;  // of a block
constexpr int64_t kShortParts =
    512;  // blocks that share the short groups: sums of their own, whatever the device
constexpr int64_t kLongParts = 64;  // the same for long groups, and for the rows' constants
constexpr int64_t kPiece = 32;      // rows of a piece, design.groups.LONGEST

// What a part is given of `n` things, and where it begins.
JAXGLMM_HD inline int64_t begin_of(int64_t part, int64_t parts, int64_t n) { return part * n / parts; }
JAXGLMM_HD inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Problem and results, all in the device's memory. Of `q`, the pointers to parameters and nodes lead into
// scratch memory, which Prepare fills; count and log_phi are read there by `problem_of`.
struct Pass {
  Problem q;
  Column psi, points, log_weights, t_unknowns;  // as the caller has them
  const int32_t *sizes, *pieces, *count;
  int64_t n_sizes, n_pieces;
  MutableColumn value, gradient, hessian, pushed_unknowns;  // gradient and Hessian with the columns' part
  // Doubles each: parameters and nodes; sums of the parts and of all; constants of rows; work on short and
  // long groups.
  double *numbers, *sums, *total, *constants, *short_work, *long_work;

  JAXGLMM_HD int64_t parameters() const { return q.columns + q.unknowns(); }
  JAXGLMM_HD int64_t short_parts() const { return least(n_sizes, kShortParts); }
  JAXGLMM_HD int64_t long_parts() const { return least(n_pieces, kLongParts); }
  JAXGLMM_HD int64_t parts() const { return short_parts() + long_parts(); }
  JAXGLMM_HD Sums sums_of(int64_t part) const {
    Sums out = {sums, q.columns, q.unknowns()};
    out.at += part * out.size();
    return out;
  }
  JAXGLMM_HD Problem problem() const {
    Problem out = q;
    out.log_phi = numbers[parameters() - 1];
    out.nodes = count[0] < 1 ? 1 : least(count[0], q.stride);
    return out;
  }
};

// Parameters and nodes to doubles. One block.
struct Prepare {
  Pass p;
  JAXGLMM_HD void operator()(const Team& team, int64_t) const {
    const int64_t m = p.parameters(), S = p.q.effects, K = p.q.stride;
    double* to = p.numbers;
    const auto read = [&](const Column& from, int64_t n) {
      for (int64_t k = team.rank; k < n; k += team.size) to[k] = from.at ? from[k] : 0.0;
      to += n;
    };
    read(p.psi, m), read(p.points, S * K), read(p.log_weights, K), read(p.t_unknowns, p.q.unknowns());
  }
};

// The negative binomial's terms without eta; kLongParts blocks.
struct CountRows {
  Pass p;
  JAXGLMM_HD void operator()(const Team& team, int64_t part) const {
    double sum[3] = {};
    const double log_theta = p.numbers[p.parameters() - 1];
    const int64_t end = begin_of(part + 1, kLongParts, p.q.slots);
    for (int64_t i = begin_of(part, kLongParts, p.q.slots) + team.rank; i < end; i += team.size) {
      const double weight = p.q.weight[i];
      if (!(weight > 0)) continue;
      double terms[3] = {};
      add_count(terms, p.q.y[i], log_theta);
      for (int k = 0; k < 3; ++k) sum[k] += weight * terms[k];
    }
    for (int k = 0; k < 3; ++k) {
      const double total = team.total(sum[k]);
      if (team.rank == 0) p.constants[part * 3 + k] = total;
    }
  }
};

// Sums of the parts, one after the other. A block for every kThreads of the sums.
struct AddSums {
  Pass p;
  JAXGLMM_HD void operator()(const Team& team, int64_t block) const {
    const Sums shape = p.sums_of(0);
    const int64_t e = block * team.size + team.rank, size = shape.size();
    if (e >= size) return;
    double total = 0;
    for (int64_t part = 0; part < p.parts(); ++part) total += p.sums[part * size + e];
    if (p.q.family == Family::negativebinomial) {
      const int64_t u = p.q.unknowns(), second = u + u * (u + 1) / 2;  // where log_phi meets itself
      const int k = e == 0 ? 0 : e == u ? 1 : e == second ? 2 : -1;
      for (int64_t part = 0; k >= 0 && (k < 2 || p.q.second) && part < kLongParts; ++part)
        total += p.constants[part * 3 + k];
    }
    p.total[e] = total;
  }
};

// Value, gradient, Hessian and its product with a direction, from the sums of all. Blocks for (m, m) entries.
struct Write {
  Pass p;
  JAXGLMM_HD void operator()(const Team& team, int64_t block) const {
    const int64_t columns = p.q.columns, u = p.q.unknowns(), m = columns + u;
    const Sums sums = {p.total, columns, u};
    const int64_t at = block * team.size + team.rank, i = at / m, j = at % m;
    if (at >= m * m) return;
    const auto second = [&](int64_t x, int64_t y) {
      const int64_t a = x < y ? x : y, b = x < y ? y : x;
      return sums.second()[a * u - a * (a - 1) / 2 + b - a];
    };
    if (p.value && at == 0) p.value.set(0, sums.value());
    if (p.gradient && i == 0) p.gradient.set(j, j < columns ? sums.gradient()[j] : sums.first()[j - columns]);
    if (p.hessian) {
      const int64_t low = i < j ? i : j, high = i < j ? j : i;
      const double entry = high < columns  ? sums.hessian()[low * columns + high]
                           : low < columns ? sums.mixed(high - columns)[low]
                                           : second(low - columns, high - columns);
      p.hessian.set(at, entry);
    }
    if (p.pushed_unknowns && at < u) {
      double pushed = sums.pushed()[at];
      for (int64_t y = 0; y < u; ++y) pushed += second(at, y) * p.q.t_unknowns[y];
      p.pushed_unknowns.set(at, pushed);
    }
  }
};

// For every slot the sum of its group's slots; a block of the grid for each block of slots. A size that does
// not divide the block gives NaN.
template <typename T>
struct GroupTotal {
  const T* v;
  const int32_t* sizes;
  T* out;
  int64_t slots;
  JAXGLMM_HD void operator()(const Team& team, int64_t block) const {
    const T* from = v + block * slots;
    T* to = out + block * slots;
    const int64_t size = sizes[block];
    if (!is_class_size(size, slots)) {
      for (int64_t i = team.rank; i < slots; i += team.size) to[i] = static_cast<T>(kNaN);
      return;
    }
    const int64_t groups = slots / size;
    for (int64_t g = team.rank; g < groups; g += team.size) {
      const T total = total_of_group(from, size, groups, g);
      for (int64_t k = 0; k < size; ++k) to[k * groups + g] = total;
    }
  }
};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
