// Posteriors on lattices for one target: compiled once for each, as fused_target.cc is.
//
// Of a group with rows l_i(eta_i + z_i b) and prior N(m, s^2): the mode by safeguarded Newton; a lattice of
// points k h, h a power of two; the weights pi_k = exp(f(k h) - f(mode)) made to sum to 1; mean and variance
// from them.
#include "lattices.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "jaxglmm/families.h"
#include "jaxglmm/scalar_mode.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {
namespace {

constexpr int64_t kJoined = 64;  // from so many rows on a group has all lanes
constexpr int64_t kMostPoints = 1 << 14;
constexpr double kCloser = 1e-14;  // Newton decrement at which one more step ends the search for a mode

// One vector: kLanes short groups, or kLanes rows at a time of a long one. Rows are those of eta, y, weight,
// z.
template <class F>
struct Groups {
  const double *eta, *y, *weight, *z;
  int64_t rows;  // vectors
  bool joined;
  V sd;
  Dispersion d;

  Row row(int64_t i, V b) const {
    return F::row(load(eta + i * kLanes) + load(z + i * kLanes) * b, load(y + i * kLanes), d);
  }
  V total(V v) const { return joined ? splat(sum(v)) : v; }

  // f(u) = sum l(eta + z sd u) - u^2/2
  V density(V u) const {
    V l{};
    const V b = sd * u;
    for (int64_t i = 0; i < rows; ++i) {
      const V w = load(weight + i * kLanes);
      l += select(w > 0.0, w * row(i, b).l, V{});
    }
    return total(l) - 0.5 * u * u;
  }
  void slopes(V u, V& first, V& second) const {
    V S{}, W{};
    const V b = sd * u;
    for (int64_t i = 0; i < rows; ++i) {
      const V w = load(weight + i * kLanes), v = load(z + i * kLanes);
      const Row r = row(i, b);
      S += select(w > 0.0, w * v * r.s, V{}), W += select(w > 0.0, w * v * v * r.w, V{});
    }
    first = sd * total(S) - u, second = 1.0 + sd * sd * total(W);
  }
};

template <class F>
int64_t posteriors(const LatticeProblem& q) {
  std::vector<double> memory, up, down;
  int64_t needed = 0;
  const auto rows_of = [&](int64_t g) { return q.begin[q.group[g] + 1] - q.begin[q.group[g]]; };
  for (int64_t g = 0, here; g < q.groups; g += here) {
    const bool joined = rows_of(g) >= kJoined;
    here = 1;
    int64_t size = rows_of(g);
    while (!joined && here < kLanes && g + here < q.groups && rows_of(g + here) < kJoined)
      size = std::max(size, rows_of(g + here++));
    const int64_t vectors = joined ? (size + kLanes - 1) / kLanes : size, entries = vectors * kLanes;
    memory.resize(4 * entries + 1);
    double *eta = memory.data(), *y = eta + entries, *weight = y + entries, *z = weight + entries;
    V prior{}, sd{}, u{}, widest{};
    for (int64_t k = 0; k < kLanes; ++k) {  // lanes beyond the last group repeat the first one
      const int64_t own = q.group[g + (k < here ? k : 0)], begin = q.begin[own],
                    rows = q.begin[own + 1] - begin;
      prior[k] = q.mean[q.own ? own : 0], sd[k] = q.sd[q.own ? own : 0];
      u[k] = q.start ? q.start[own] : 0.0;
      for (int64_t i = 0; i < vectors; ++i) {
        const int64_t to = i * kLanes + k, row = joined ? to : i;
        const bool there = row < rows;
        const int64_t at = begin + (there ? row : 0);
        eta[to] = rows ? q.eta[at] + q.z[at] * prior[k] : 0.0;
        y[to] = rows ? (F::kLogResponse ? std::log(q.y[at]) : q.y[at]) : 0.0;
        weight[to] = there ? q.weight[at] : 0.0, z[to] = there ? q.z[at] : 0.0;
        widest[k] = std::max(widest[k], std::abs(z[to]));
      }
    }
    if (joined)
      for (int64_t k = 1; k < kLanes; ++k) widest = splat(std::max(widest[0], widest[k]));
    const Groups<F> rows = {eta, y, weight, z, vectors, joined, sd, dispersion_of(q.log_phi)};
    const auto slopes = [&](V at, V& first, V& second) { rows.slopes(at, first, second); };
    u = scalar_mode(u, kCloser, slopes);
    V slope, D, h, middle;
    slopes(u, slope, D);
    const V mode = prior + sd * u, spread = sd / root(D), peak = rows.density(u);
    for (int64_t k = 0; k < kLanes; ++k) {
      double most = q.by_sd * spread[k];
      if (widest[k] > 0) most = std::min(most, q.by_eta / widest[k]);
      h[k] = std::isfinite(most) && most > 0 ? std::ldexp(1.0, std::ilogb(most)) : kNaN;
      middle[k] = std::nearbyint(mode[k] / h[k]);
    }
    V mass{}, first{}, second{};
    const auto walk = [&](double k, double way, std::vector<double>& found) {
      found.clear();
      M open = V{} < 1.0;  // a group ends where its own density does: it does not depend on its neighbours
      for (int64_t n = 0; n < kMostPoints; ++n, k += way) {
        const V b = (middle + k) * h, t = b - mode;
        const V p = select(open, exp(rows.density((b - prior) / sd) - peak), V{});
        mass += p, first += p * t, second += p * t * t;
        found.resize((n + 1) * kLanes);
        store(found.data() + n * kLanes, p);
        open = open & (p > q.smallest);
        if (!any(open)) break;
      }
    };
    walk(0.0, 1.0, up), walk(-1.0, -1.0, down);
    const int64_t above = up.size() / kLanes, below = down.size() / kLanes;
    for (int64_t k = 0; k < here; ++k) {
      const double shift = first[k] / mass[k];
      const int64_t to = g + k;
      q.mode[to] = mode[k], q.curvature[to] = spread[k];
      q.mean_out[to] = mode[k] + shift, q.variance[to] = second[k] / mass[k] - shift * shift;
      int64_t left = below, right = above;
      while (left > 0 && !(down[(left - 1) * kLanes + k] > q.smallest)) --left;
      while (right > 1 && !(up[(right - 1) * kLanes + k] > q.smallest)) --right;
      needed = std::max(needed, left + right);
      q.step[to] = h[k], q.first[to] = std::isfinite(middle[k]) ? static_cast<int64_t>(middle[k]) - left : 0;
      if (left + right > q.most) continue;
      double* w = q.weights + to * q.most;
      for (int64_t n = 0; n < left; ++n) w[left - 1 - n] = down[n * kLanes + k] / mass[k];
      for (int64_t n = 0; n < right; ++n) w[left + n] = up[n * kLanes + k] / mass[k];
      std::fill(w + left + right, w + q.most, 0.0);
    }
  }
  return needed;
}

int64_t posteriors_of_family(const LatticeProblem& q) {
  static constexpr decltype(&posteriors<Logit>) kPosteriors[kFamilies] = {
      posteriors<Gaussian>, posteriors<Logit>,   posteriors<Probit>,
      posteriors<Cloglog>,  posteriors<Poisson>, posteriors<NegativeBinomial>,
      posteriors<Gamma>};
  return kPosteriors[static_cast<int>(q.family)](q);
}

double dot(const double* a, const double* b, int64_t n) {
  V total{};
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) total += load(a + k) * load(b + k);
  double rest = sum(total);
  for (; k < n; ++k) rest += a[k] * b[k];
  return rest;
}

void expect(int64_t groups, int64_t most, const double* weights, const int64_t* first, const int32_t* level,
            const LatticeTables& tables, double* out) {
  const int64_t T = tables.functions;
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t t = 0, v = level[g] * T; t < T; ++t, ++v) {
      const int64_t last = tables.length[v] - most;
      const int64_t window = std::min(std::max(first[g] - tables.origin[v], int64_t{0}), last);
      out[t * groups + g] = dot(weights + g * most, tables.flat + tables.at[v] + window, most);
    }
}

// Distribution function at `fine` / parts beyond a group's first point. Of the kernel, (parts, 2 most - 1),
// row s has K(s / parts + most - 1 - j) at j.
struct Distribution {
  const double *weights, *kernel;
  int64_t most, parts;

  double operator()(int64_t fine) const {
    const int64_t i = fine / parts, s = fine % parts;
    return dot(weights, kernel + s * (2 * most - 1) + most - 1 - i, most);
  }
};

void quantiles(int64_t groups, int64_t most, const double* weights, const int64_t* first, const double* step,
               int64_t parts, const double* kernel, int64_t levels, const double* p, double* out) {
  constexpr int kNodes = 6;
  const int64_t end = (most - 1) * parts;  // the last place
  for (int64_t g = 0; g < groups; ++g) {
    const Distribution F = {weights + g * most, kernel, most, parts};
    for (int64_t l = 0; l < levels; ++l) {
      int64_t i = 0;
      for (double sum = 0; i < most - 2 && sum + 0.5 * F.weights[i + 1] + F.weights[i] <= p[l]; ++i)
        sum += F.weights[i];
      int64_t low = i * parts, high = low + parts;  // F(low) <= p < F(high)
      while (low > 0 && F(low) > p[l]) high = low, low -= parts;
      while (high < end && F(high) <= p[l]) low = high, high += parts;
      while (high - low > 1) {
        const int64_t between = low + (high - low) / 2;
        (F(between) > p[l] ? high : low) = between;
      }
      const int64_t from = std::min(std::max(low - kNodes / 2 + 1, int64_t{0}), end - kNodes + 1);
      double value[kNodes], at = 0;
      for (int a = 0; a < kNodes; ++a) value[a] = F(from + a) - p[l];
      for (int a = 0; a < kNodes; ++a) {  // Lagrange's polynomial of the place as a function of F, at p
        double share = 1;
        for (int b = 0; b < kNodes; ++b)
          if (b != a) share *= value[b] / (value[b] - value[a]);
        at += share * a;
      }
      if (!(at >= low - from && at <= low - from + 1)) at = low - from + 0.5;  // far out, where F is flat
      out[g * levels + l] = (first[g] + (from + at) / parts) * step[g];
    }
  }
}

}  // namespace

extern const LatticeCode lattice_code;
const LatticeCode lattice_code = {posteriors_of_family, expect, quantiles};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
