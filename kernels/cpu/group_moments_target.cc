// Posterior moments for one target: compiled once for each, as fused_target.cc is.
//
// Of each group with linear predictor eta and mode u: D = 1 + tau^2 sum z_i^2 w_i there, root = D^(-1/2), nodes
// u + t_k with t_k = sqrt(2) root z_k, their weights pi_k = omega_k exp(f(u_k) - f(u)) made to sum to 1, mean
// u + sum pi_k t_k and variance sum pi_k t_k^2 - (sum pi_k t_k)^2.
#include "group_moments.h"

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

// One vector: kLanes short groups, or kLanes rows at a time of a long one. Rows are those of eta, y, weight, z.
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
  V curvature(V u) const {
    V W{};
    for (int64_t i = 0; i < rows; ++i) {
      const V w = load(weight + i * kLanes), v = load(z + i * kLanes);
      W += select(w > 0.0, w * v * v * row(i, u).w, V{});
    }
    return 1.0 + tau * tau * total(W);
  }
};

template <class F, typename T>
void add(const MomentsProblem<T>& q, const MomentsTile& tile, std::vector<double>& memory) {
  const bool joined = tile.pieces > 0;
  const int64_t size = joined ? tile.pieces * 32 : tile.size * kLanes;  // entries of a vector's rows
  memory.resize(4 * size + q.nodes * kLanes);
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
    const V D = g.curvature(u), peak = g.log_density(u);
    V root, mass{}, first{}, second{};
    for (int64_t k = 0; k < kLanes; ++k) root[k] = 1 / std::sqrt(D[k]);
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
      double* weights = q.weights + q.nodes * static_cast<int64_t>(level);
      for (int64_t node = 0; node < q.nodes; ++node) weights[node] = pi[node * kLanes + k] / mass[k];
    }
  }
}

template <typename T>
void of_family(const MomentsProblem<T>& q, const MomentsTile& tile, std::vector<double>& memory) {
  static constexpr decltype(&add<Logit, T>) kAdd[kFamilies] = {
      add<Gaussian, T>, add<Logit, T>, add<Probit, T>, add<Cloglog, T>, add<Poisson, T>, add<NegativeBinomial, T>,
      add<Gamma, T>};
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
