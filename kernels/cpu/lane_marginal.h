// Marginal likelihoods of kLanes fits at once.
#pragma once

#include "jaxglmm/group_derivatives.h"
#include "jaxglmm/group_mode.h"
#include "jaxglmm/group_nodes.h"
#include "lane_rows.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

// Sums over the groups of each lane: value, first and second derivatives in the unknowns; in beta.
template <class F, int S>
class LaneMarginal {
 public:
  LaneMarginal(const LaneProblem& problem, int64_t first, double* memory)
      : q(problem), fits(problem, first), p(problem.columns), m(p + kUnknowns), memory(memory) {}

  void run() {
    int64_t largest = 1;
    for (int64_t g = 0; g < q.groups; ++g) largest = std::max(largest, fits.size(g));
    double* at = memory;
    const auto take = [&](int64_t vectors) {
      double* begin = at;
      at += vectors * kLanes;
      return begin;
    };
    rows = take(R::arrays * largest), modes = take(S);
    pairs = q.nodes == 1 ? nullptr : take(largest * (largest + 1) / 2);
    x = take(largest * p), scaled = take(largest * p);
    beta = take(p), factor = take(kPairs), vectors = take(4 * kForm * p);
    sums = take(kSums(p));
    gradient = sums + (1 + kPairs + pairs_of(kPairs)) * kLanes;
    mixed = gradient + p * kLanes, hessian = mixed + kPairs * p * kLanes;
    for (int64_t c = 0; c < p; ++c) store(beta + c * kLanes, fits.parameter(c, m));
    for (int64_t k = 0; k < kPairs; ++k) store(factor + k * kLanes, fits.parameter(p + k, m));
    std::fill_n(sums, kSums(p) * kLanes, 0.0);
    for (int64_t g = 0; g < q.groups; ++g)
      if (const int64_t size = fits.size(g)) add_group(g, size);
    write();
  }

 private:
  using Pass = GroupPass<F, S, V>;
  using R = Rows<S>;
  static constexpr int kForm = Pass::kForm, kPairs = pairs_of(S), kUnknowns = kPairs + 1;
  static_assert(!F::kDispersion && !F::kLogResponse, "families without a dispersion");
  static constexpr int64_t kSums(int64_t p) {
    return 1 + kPairs + pairs_of(kPairs) + p + kPairs * p + p * (p + 1) / 2;
  }

  const LaneProblem& q;
  const LaneFits fits;
  const int64_t p, m;
  double* memory;
  double *rows, *modes, *pairs, *x, *scaled, *beta, *factor, *vectors;
  double *sums, *gradient, *mixed, *hessian;

  void add_group(int64_t g, int64_t size) {
    const Setting setting = {factor, q.points, q.log_weights, q.stride, q.nodes, 0.0, true, true};
    Pass pass(setting, false, size, kLanes, rows);
    LaneGroup group = {pass.r[R::y], pass.r[R::weight], pass.r[R::eta], pass.r[R::z], x, pass.r.length};
    group.load(fits, g, size);
    for (int64_t j = 0; j < kLanes; ++j)
      for (int a = 0; a < S; ++a) {
        const double start = q.modes[(fits.fit[j] * q.groups + g) * S + a];
        modes[a * kLanes + j] = std::isfinite(start) ? start : 0.0;
      }
    pass.modes = modes, pass.pairs = pairs;
    if (q.shared)
      add_group(pass, group, SharedColumns{q.X + (fits.design[0] + fits.begin[0][g]) * p, p}, size);
    else
      add_group(pass, group, OwnColumns{x, p}, size);
    for (int64_t j = 0; j < fits.lanes; ++j)
      for (int a = 0; a < S; ++a) q.modes[(fits.fit[j] * q.groups + g) * S + a] = modes[a * kLanes + j];
  }

  template <class Columns>
  void add_group(Pass& pass, const LaneGroup& group, const Columns& columns, int64_t size) {
    group.add_linear(columns, beta, p, size);
    pass.evaluate(0, kLanes);
    double* at = sums;
    const auto add = [&](V v) { store(at, load(at) + v), at += kLanes; };
    add(pass.totals.value);
    for (int k = 0; k < kPairs; ++k) add(pass.totals.first[k]);
    for (int j = 0; j < kPairs; ++j)
      for (int k = j; k < kPairs; ++k) add(pass.totals.second(j, k));
    add_weighted(pass.r[R::d_eta], columns, size, p, gradient);
    for (int k = 0; k < kPairs; ++k)
      add_weighted(pass.r[R::mixed + k], columns, size, p, mixed + k * p * kLanes);
    if (q.nodes == 1)
      add_form(pass, columns, size);
    else
      add_pairs(columns, size);
  }

  // The Hessian in eta as a diagonal and a form in few row vectors.
  template <class Columns>
  void add_form(const Pass& pass, const Columns& columns, int64_t size) {
    double *g = vectors, *r = g + kForm * p * kLanes, *right = r + kForm * p * kLanes;
    std::fill_n(g, 2 * kForm * p * kLanes, 0.0);
    for (int64_t i = 0; i < size; ++i) {
      const auto form = pass.form_of(i * kLanes);
      const V diagonal = load(pass.r[R::diagonal] + i * kLanes);
      for (int64_t c = 0; c < p; ++c) {
        const V entry = V{} + columns(i, c);
        store(scaled + (i * p + c) * kLanes, diagonal * entry);
        for (int k = 0; k < kForm; ++k) {
          double *to_g = g + (k * p + c) * kLanes, *to_r = r + (k * p + c) * kLanes;
          store(to_g, load(to_g) + form.g[k] * entry), store(to_r, load(to_r) + form.r[k] * entry);
        }
      }
    }
    add_outer(OwnColumns{scaled, p}, columns, size, p, hessian);
    for (int64_t c = 0; c < p; ++c)
      for (int k = 0; k < kForm; ++k) {
        V to = load(r + (k * p + c) * kLanes);
        for (int j = 0; j < kForm; ++j) to += pass.form.entry[k][j] * load(g + (j * p + c) * kLanes);
        store(right + (k * p + c) * kLanes, to);
        store(right + ((kForm + k) * p + c) * kLanes, load(g + (k * p + c) * kLanes));
      }
    add_outer(OwnColumns{g, p}, OwnColumns{right, p}, 2 * kForm, p, hessian);
  }

  template <class Columns>
  void add_pairs(const Columns& columns, int64_t size) {
    for (int64_t i = 0; i < size; ++i)
      for (int64_t c = 0; c < p; ++c) {
        V total{};
        for (int64_t j = 0; j < size; ++j) {
          const int64_t low = i < j ? i : j, high = i < j ? j : i;
          total += load(pairs + (low * size - low * (low - 1) / 2 + high - low) * kLanes) * columns(j, c);
        }
        store(scaled + (i * p + c) * kLanes, total);
      }
    add_outer(OwnColumns{scaled, p}, columns, size, p, hessian);
  }

  void write() const {
    for (int64_t j = 0; j < fits.lanes; ++j) {
      const double* at = sums + j;
      const auto next = [&] {
        const double v = *at;
        at += kLanes;
        return v;
      };
      double *slope = q.gradient + (fits.first + j) * m, *H = q.hessian + (fits.first + j) * m * m;
      std::fill_n(H, m * m, 0.0);
      const auto set = [&](int64_t a, int64_t b, double v) { H[a * m + b] = H[b * m + a] = v; };
      q.value[fits.first + j] = next();
      for (int k = 0; k < kPairs; ++k) slope[p + k] = next();
      slope[m - 1] = 0.0;
      for (int k = 0; k < kPairs; ++k)
        for (int l = k; l < kPairs; ++l) set(p + k, p + l, next());
      for (int64_t c = 0; c < p; ++c) slope[c] = next();
      for (int k = 0; k < kPairs; ++k)
        for (int64_t c = 0; c < p; ++c) set(p + k, c, next());
      for (int64_t c = 0; c < p; ++c)
        for (int64_t d = c; d < p; ++d) set(c, d, next());
    }
  }
};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
