// Posterior moments for one target: compiled once for each, as fused_target.cc is.
//
// Of each group with linear predictor eta and mode u: D = 1 + tau^2 sum z_i^2 w_i there, root = D^(-1/2),
// nodes u + t_k with t_k = sqrt(2) root z_k, their weights pi_k = omega_k exp(f(u_k) - f(u)) made to sum to
// 1, mean u + sum pi_k t_k and variance sum pi_k t_k^2 - (sum pi_k t_k)^2.
//
// Or by the trapezoid rule, whose error falls geometrically: nodes u + k h outwards until their weights
// vanish, h half a standard deviation of the curvature, and less where a row's eta would move by more than a
// half. With b = tau u and s_i = dl_i / deta the mean's derivatives are dE[b]/deta_i = Cov(b, s_i) and, in
// tau, E[u] + tau Cov(u, u sum z_i s_i).
#include "group_moments.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "jaxglmm/families.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {
namespace {

template <typename T>
double linear(const T* x, const double* beta, int64_t columns) {
  V total{};
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    V v;
    for (int64_t k = 0; k < kLanes; ++k) v[k] = x[c + k];
    total += v * load(beta + c);
  }
  double rest = sum(total);
  for (; c < columns; ++c) rest += x[c] * beta[c];
  return rest;
}

// One vector: kLanes short groups, or kLanes rows at a time of a long one. Rows are those of eta, y, weight,
// z.
template <class F>
struct Groups {
  const double *eta, *y, *weight, *z;
  int64_t rows;  // vectors
  bool joined;
  double tau;
  Dispersion d;

  Row row(int64_t i, V u) const {
    return F::row(load(eta + i * kLanes) + tau * load(z + i * kLanes) * u, load(y + i * kLanes), d);
  }
  V total(V v) const { return joined ? splat(sum(v)) : v; }

  V log_density(V u) const {
    V l{};
    for (int64_t i = 0; i < rows; ++i) {
      const V w = load(weight + i * kLanes);
      l += select(w > 0.0, w * row(i, u).l, V{});
    }
    return total(l) - 0.5 * u * u;
  }
  // Without u^2 / 2; scores of the rows go to `s`, their sum with z to `slope`, that in log_phi to `by_phi`.
  V log_density(V u, double* s, V& slope, V& by_phi) const {
    V l{}, sum_s{}, sum_p{};
    for (int64_t i = 0; i < rows; ++i) {
      const V w = load(weight + i * kLanes);
      const M live = w > 0.0;
      const Row f = row(i, u);
      const V score = select(live, w * f.s, V{});
      store(s + i * kLanes, score);
      l += select(live, w * f.l, V{}), sum_s += load(z + i * kLanes) * score;
      if constexpr (F::kDispersion) sum_p += select(live, w * f.l_p, V{});
    }
    slope = total(sum_s), by_phi = total(sum_p);
    return total(l);
  }
  V reach() const {  // the largest |z|
    V most{};
    for (int64_t i = 0; i < rows; ++i)
      most = maximum(most, select(load(weight + i * kLanes) > 0.0, magnitude(load(z + i * kLanes)), V{}));
    if (joined)
      for (int64_t k = 0; k < kLanes; ++k) most = maximum(most, splat(most[k]));
    return most;
  }
  V curvature(V u) const {
    V W{};
    for (int64_t i = 0; i < rows; ++i) {
      const V w = load(weight + i * kLanes), v = load(z + i * kLanes);
      W += select(w > 0.0, w * v * v * row(i, u).w, V{});
    }
    return 1.0 + tau * tau * total(W);
  }
};

constexpr double kNothing = 1e-17;  // of the largest weight
constexpr int kMostNodes = 4000;    // to each side

// Sums over a lattice, weights pi and t = u - mode: of pi (1, t, t^2) and pi (1, t) times the scores in tau,
// log_phi and, row by row, eta.
struct Lattice {
  V mass{}, first{}, second{}, tau[2] = {}, phi[2] = {};
  double* rows[2];
};

template <class F>
Lattice over_lattice(const Groups<F>& g, V u, V root, double* memory) {
  const int64_t size = g.rows * kLanes;
  Lattice sums;
  sums.rows[0] = memory, sums.rows[1] = memory + size;
  double* scores = memory + 2 * size;
  std::fill_n(memory, 2 * size, 0.0);
  const V step = minimum(0.5 * root, 0.5 / (std::abs(g.tau) * g.reach()));
  const V peak = g.log_density(u);
  const auto visit = [&](double k) {
    const V t = k * step, at = u + t;
    V slope, by_phi;
    const V l = g.log_density(at, scores, slope, by_phi);
    const V pi = exp(l - 0.5 * at * at - peak), moved = pi * t, by_tau = at * slope;
    sums.mass += pi, sums.first += moved, sums.second += moved * t;
    sums.tau[0] += pi * by_tau, sums.tau[1] += moved * by_tau;
    sums.phi[0] += pi * by_phi, sums.phi[1] += moved * by_phi;
    for (int64_t i = 0; i < size; i += kLanes) {
      const V s = load(scores + i);
      store(sums.rows[0] + i, load(sums.rows[0] + i) + pi * s);
      store(sums.rows[1] + i, load(sums.rows[1] + i) + moved * s);
    }
    return any(pi > kNothing);
  };
  visit(0.0);
  for (double side : {-1.0, 1.0})  // the density is log-concave: it only falls from here
    for (int k = 1; k <= kMostNodes && visit(side * k);) ++k;
  return sums;
}

// Mean and variance of b, and d'V d, of the groups in lanes 0 .. here.
template <class F, typename T, class Slot>
void add_effects(const MomentsProblem<T>& q, const Groups<F>& g, V u, V root, int64_t here, double* memory,
                 const Slot& slot) {
  const Lattice sums = over_lattice(g, u, root, memory);
  const int64_t m = q.columns + 2, size = g.rows * kLanes;
  double* d = memory + 3 * size;
  const V per = 1.0 / sums.mass, shift = sums.first * per;
  const auto covariance = [&](V plain, V with_t) { return g.tau * (with_t * per - shift * plain * per); };
  const V mean = u + shift, by_tau = mean + covariance(sums.tau[0], sums.tau[1]);
  const V by_phi = covariance(sums.phi[0], sums.phi[1]);
  for (int64_t i = 0; i < size; i += kLanes)
    store(sums.rows[0] + i, covariance(load(sums.rows[0] + i), load(sums.rows[1] + i)));
  for (int64_t k = 0; k < here; ++k) {
    const int32_t level = q.level[slot(k, 0)];
    if (level < 0) continue;  // fills a block
    std::fill_n(d, m, 0.0);
    for (int64_t i = g.joined ? 0 : k, row = 0; i < size; i += g.joined ? 1 : kLanes, ++row) {
      const double by_eta = sums.rows[0][i];
      const T* x = q.X + slot(k, row) * q.columns;
      for (int64_t c = 0; c < q.columns; ++c) d[c] += by_eta * x[c];
    }
    d[m - 2] = by_tau[k], d[m - 1] = by_phi[k];
    double added = 0;
    for (int64_t r = 0; r < m; ++r) {
      double along = 0;
      for (int64_t c = 0; c < m; ++c) along += q.covariance[r * m + c] * d[c];
      added += along * d[r];
    }
    double* effects = q.effects + 3 * static_cast<int64_t>(level);
    effects[0] = g.tau * mean[k];
    effects[1] = g.tau * g.tau * (sums.second[k] * per[k] - shift[k] * shift[k]);
    effects[2] = added;
  }
}

template <class F, typename T>
void add(const MomentsProblem<T>& q, const MomentsTile& tile, std::vector<double>& memory) {
  const bool joined = tile.pieces > 0;
  const int64_t size = joined ? tile.pieces * 32 : tile.size * kLanes;  // entries of a vector's rows
  memory.resize(4 * size + std::max(q.nodes * kLanes, 3 * size + q.columns + 2));
  double *eta = memory.data(), *y = eta + size, *weight = y + size, *z = weight + size, *pi = z + size;
  const auto fill = [&](int64_t at, int64_t slot) {
    eta[at] = q.offset[slot] + linear(q.X + slot * q.columns, q.beta, q.columns);
    y[at] = F::kLogResponse ? std::log(static_cast<double>(q.y[slot])) : q.y[slot];
    weight[at] = q.weight[slot], z[at] = q.z[slot];
  };
  for (int64_t lane = 0; lane < tile.lanes; lane += joined ? 1 : kLanes) {
    const int64_t here = joined ? 1 : tile.lanes - lane < kLanes ? tile.lanes - lane : kLanes;
    V u{};
    if (joined) {
      for (int64_t i = 0; i < size; ++i) fill(i, tile.slot(0, i));
      u = splat(q.modes[tile.slot(0, 0)]);
    } else {
      for (int64_t k = 0; k < kLanes; ++k) u[k] = q.modes[tile.slot(lane + (k < here ? k : 0), 0)];
      for (int64_t i = 0; i < tile.size; ++i)  // lanes beyond the last group repeat the first one
        for (int64_t k = 0; k < kLanes; ++k) fill(i * kLanes + k, tile.slot(lane + (k < here ? k : 0), i));
    }
    const Groups<F> g = {eta, y, weight, z, size / kLanes, joined, q.tau, dispersion_of(q.log_phi)};
    const V D = g.curvature(u);
    V root, mass{}, first{}, second{};
    for (int64_t k = 0; k < kLanes; ++k) root[k] = 1 / std::sqrt(D[k]);
    if (q.covariance) {
      add_effects(q, g, u, root, here, pi, [&](int64_t k, int64_t row) { return tile.slot(lane + k, row); });
      continue;
    }
    const V peak = g.log_density(u);
    for (int64_t node = 0; node < q.nodes; ++node) {
      const V t = 1.4142135623730951 * root * q.points[node];
      const V p = exp(q.log_weights[node] + (g.log_density(u + t) - peak));
      mass += p, first += p * t, second += p * t * t;
      store(pi + node * kLanes, p);
    }
    for (int64_t k = 0; k < here; ++k) {
      const int32_t level = q.level[tile.slot(lane + k, 0)];
      if (level < 0) continue;  // fills a block
      const double shift = first[k] / mass[k];
      double* moments = q.moments + 3 * static_cast<int64_t>(level);
      moments[0] = root[k], moments[1] = u[k] + shift, moments[2] = second[k] / mass[k] - shift * shift;
      if (!q.weights) continue;
      double* weights = q.weights + q.nodes * static_cast<int64_t>(level);
      for (int64_t node = 0; node < q.nodes; ++node) weights[node] = pi[node * kLanes + k] / mass[k];
    }
  }
}

template <typename T>
void of_family(const MomentsProblem<T>& q, const MomentsTile& tile, std::vector<double>& memory) {
  static constexpr decltype(&add<Logit, T>) kAdd[kFamilies] = {
      add<Gaussian, T>,         add<Logit, T>, add<Probit, T>, add<Cloglog, T>, add<Poisson, T>,
      add<NegativeBinomial, T>, add<Gamma, T>};
  kAdd[static_cast<int>(q.family)](q, tile, memory);
}

}  // namespace

void add_moments(const MomentsProblem<double>& q, const MomentsTile& tile, std::vector<double>& memory) {
  of_family(q, tile, memory);
}
void add_moments(const MomentsProblem<float>& q, const MomentsTile& tile, std::vector<double>& memory) {
  of_family(q, tile, memory);
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
