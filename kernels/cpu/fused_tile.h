// The marginal likelihood of a tile of groups with one scalar effect each, with exact derivatives.
//
// A group's value is V = -(1/2) log D + log sum_k omega_k exp f(u_k), where f(u) = sum_i l_i(eta_i + tau z_i
// u) - u^2/2, u^ is its mode, D = -f''(u^), and the nodes are u_k = u^ + t_k, t_k = sqrt(2 / D) z_k. Let x
// and y be any two of the unknowns (eta_i, tau, log_phi); f_x, f_xu, ... are partial derivatives.
// Differentiating f_u(u^) = 0 gives
//
//   a_x = du^/dx = f_xu / D          b_x = dlog(kappa)/dx = (f_uux + f_uuu a_x) / (2 D),   kappa = D^(-1/2)
//   V_x  = (1 + F2) b_x + F1 a_x + E[f_x]
//   V_xy = e / (2 D) f_uuxy + psi / D f_uxy + E[f_xy] + Cov(f_x + f_u (a_x + t b_x), the same of y)
//          + aa a_x a_y + ab (a_x b_y + b_x a_y) + bb b_x b_y + a_x r_y + r_x a_y + b_x h_y + h_x b_y
//
// with expectations over the nodes' weights, F1 = E[f_u], F2 = E[f_u t], D_j = E[-f_uu t^j], e = 1 + F2,
//
//   psi = F1 + e f_uuu / (2 D)       aa = -psi f_uuu / D + e f_uuuu / (2 D) - D_0      ab = 2 psi - D_1
//   bb = 2 e + F2 - D_2              r_x = e / (2 D) f_uuux + E[f_xu]                  h_x = E[f_xu t]
//
// One node has t = 0 and is Laplace's approximation. Without the determinant, e is 0 + F2.
// A group's Hessian in eta is thus a diagonal plus a form in the row vectors a, b, r, h and those of the
// nodes. A group of few rows forms that matrix; a joined tile keeps the vectors, and multiplies them with X
// one by one.
#pragma once

#include <initializer_list>

#include "columns.h"
#include "fused_pass.h"
#include "jaxglmm/families.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

// Arrays with an entry for each row of a tile.
struct Rows {
  double *eta, *y, *weight, *z;
  double *s, *w, *a, *c, *s_p, *w_p, *a_p;      // at the mode
  double *mean_s, *mean_w, *mean_wt, *mean_sp;  // over the nodes
  double *node_s, *node_w, *node_sp;            // at one node
  double *spread, *mean_spread, *cov_tau,
      *cov_phi;  // f_x + f_u (a_x + t b_x) - f_x(u^), and with what it varies
  double *mode_x, *scale_x, *cross_x, *tilt_x,
      *diagonal;                    // a, b, r, h, and the part of V_xx of this row alone
  double *d_eta, *by_tau, *by_phi;  // V_x, V_x,tau, V_x,phi
};

inline double* carve(Rows& r, double* at, int64_t n) {
  for (double** array :
       {&r.eta,     &r.y,       &r.weight,   &r.z,           &r.s,       &r.w,       &r.a,       &r.c,
        &r.s_p,     &r.w_p,     &r.a_p,      &r.mean_s,      &r.mean_w,  &r.mean_wt, &r.mean_sp, &r.node_s,
        &r.node_w,  &r.node_sp, &r.spread,   &r.mean_spread, &r.cov_tau, &r.cov_phi, &r.mode_x,  &r.scale_x,
        &r.cross_x, &r.tilt_x,  &r.diagonal, &r.d_eta,       &r.by_tau,  &r.by_phi}) {
    *array = at;
    at += n;
  }
  return at;
}

// What the unknowns tau and log_phi have, as each eta_i has in its row.
struct Direction {
  V a{}, b{}, c{}, r{}, h{};      // c = f_uuux
  V mean{}, mean_u{}, mean_ut{};  // E[f_x], E[f_xu], E[f_xu t]
};

// Sums over one group and its nodes.
struct Group {
  V u, D, S, W, A, C, peak;
  V S_p, W_p, A_p, l_p, S_pp, W_pp, l_pp;
  V mass, f1, f2, d0, d1, d2;
  V tau_tau, tau_phi, phi_phi;              // E[f_xy]
  V cov_tau_tau, cov_tau_phi, cov_phi_phi;  // Cov
  V spread_tau, spread_phi;
  Direction tau, phi;
};

constexpr double kClose = 1e-12;  // Newton decrement at which one more step ends the search for a mode
constexpr int kMostSteps = 100;

template <class F>
class TilePass {
 public:
  TilePass(const Problem& problem, const Tile& tile, double* workspace, const Sums& sums)
      : q(problem), tile(tile), sums(sums), d(dispersion_of(problem.log_phi)) {
    width = lanes_of(tile);
    padded = padded_columns(q.columns);
    double* at = carve(r, workspace, tile.size * width);
    modes = at, at += width;
    pairs = at, at += pairs_of(q, tile) * width;
    nodes = at, at += (3 * q.nodes + kLanes) / kLanes * kLanes;
    x = at, at += tile.size * slice() * padded;
    scaled = at, at += tile.size * slice() * padded;
    vectors = at;
  }

  static int64_t workspace(const Problem& q, const Tile& tile) {
    const int64_t width = lanes_of(tile), padded = padded_columns(q.columns);
    const int64_t lanes = tile.joined ? kLanes : width;
    return sizeof(Rows) / sizeof(double*) * tile.size * width + width + pairs_of(q, tile) * width +
           3 * q.nodes + kLanes + (2 * tile.size * lanes + 2 * (q.nodes + 8)) * padded + padded;
  }

  void run() {
    if (load_rows()) {
      if (tile.joined)
        evaluate(0, width);
      else
        for (int64_t v = 0; v < width; v += kLanes) evaluate(v, v + kLanes);
      add_columns();
      for (int k = 0; k < Sums::scalars; ++k) sums.at[k] += sum(totals[k]);
    }
    for (int64_t k = 0; k < tile.size; ++k)
      for (int64_t j = 0; j < tile.lanes; ++j) q.modes[tile.slot(j) + k * tile.stride] = modes[j];
  }

 private:
  const Problem& q;
  const Tile& tile;
  const Sums& sums;
  const Dispersion d;
  int64_t width, padded;
  Rows r;
  double *modes, *pairs, *nodes, *x, *scaled, *vectors;
  V totals[Sums::scalars] = {};
  V aa, ab, bb, mass;  // of the last group, for joined tiles

  static int64_t lanes_of(const Tile& tile) { return (tile.lanes + kLanes - 1) / kLanes * kLanes; }
  static int64_t pairs_of(const Problem& q, const Tile& tile) {
    return q.second && !tile.joined ? tile.size * (tile.size + 1) / 2 : 0;
  }
  int64_t slice() const { return tile.joined ? kLanes : width; }

  template <class Body>
  JAXGLMM_INLINE void each_row(int64_t v0, int64_t v1, const Body& body) {
    for (int64_t k = 0; k < tile.size; ++k)
      for (int64_t i = k * width + v0; i < k * width + v1; i += kLanes) body(i);
  }
  JAXGLMM_INLINE V total(V v) const { return tile.joined ? splat(sum(v)) : v; }

  JAXGLMM_INLINE Row row(int64_t i, V u) const {
    const V weight = load(r.weight + i);
    const M live = weight > 0.0;
    Row f = F::row(load(r.eta + i) + q.tau * load(r.z + i) * u, load(r.y + i), d);
    const auto weigh = [&](V& v) { v = select(live, weight * v, V{}); };
    weigh(f.l), weigh(f.s), weigh(f.w), weigh(f.a), weigh(f.c);
    if (F::kDispersion)
      weigh(f.l_p), weigh(f.s_p), weigh(f.w_p), weigh(f.a_p), weigh(f.l_pp), weigh(f.s_pp), weigh(f.w_pp);
    return f;
  }

  // Rows into contiguous arrays, eta at the fixed effects. False where no row has a weight: then modes are
  // zero.
  bool load_rows() {
    bool live = false;
    for (int64_t j = 0; j < width; ++j) {
      const bool inside = j < tile.lanes;
      modes[j] = inside ? q.start[tile.slot(j)] : tile.joined ? modes[0] : 0.0;
      for (int64_t k = 0; k < tile.size; ++k) {
        const int64_t i = k * width + j, slot = inside ? tile.slot(j) + k * tile.stride : 0;
        r.y[i] = inside ? q.y[slot] : 1.0;
        r.weight[i] = inside ? q.weight[slot] : 0.0;
        r.z[i] = inside ? q.z[slot] : 0.0;
        r.eta[i] = inside ? q.offset[slot] : 0.0;
        live |= r.weight[i] != 0;
      }
    }
    if (!live) {
      for (int64_t j = 0; j < width; ++j) modes[j] = 0;
      return false;
    }
    if (F::kLogResponse)
      for (int64_t i = 0; i < tile.size * width; i += kLanes) store(r.y + i, log(load(r.y + i)));
    for (int64_t j = 0; j < width; j += slice()) {
      load_columns(q, tile, j, slice(), padded, x);
      const double* at = x;
      for (int64_t k = 0; k < tile.size; ++k)
        for (int64_t g = 0; g < slice(); ++g, at += padded)
          r.eta[k * width + j + g] += dot(at, q.beta, padded);
    }
    return true;
  }

  // f' is decreasing with slope at most -1, so that the mode lies between u and u + f'(u): that is the
  // bracket. A Newton step no shorter than half the last one is doubled if it has the same sign (in an
  // exponential tail all steps are alike) and replaced by bisection if it has the other (between two flat
  // tails it would go back and forth).
  V find_mode(int64_t v0, int64_t v1) {
    V u = load(modes + v0), low = splat(-kInfinity), high = splat(kInfinity), last = high,
      stretch = splat(1.0);
    for (int step = 0; step < kMostSteps; ++step) {
      V S{}, W{};
      each_row(v0, v1, [&](int64_t i) {
        const Row f = row(i, u);
        const V z = load(r.z + i);
        S += z * f.s;
        W += z * z * f.w;
      });
      const V slope = q.tau * total(S) - u, newton = slope / (1.0 + q.tau * q.tau * total(W));
      const M up = slope > 0.0, far = slope * newton > kClose;
      low = select(up, u, maximum(low, u + slope));
      high = select(up, minimum(high, u + slope), u);
      const M stuck = magnitude(newton) > 0.5 * magnitude(last), turned = newton * last < 0.0;
      stretch = select(stuck & ~turned, 2.0 * stretch, splat(1.0));
      last = newton;
      V next = u + stretch * newton;
      next = select((stuck & turned) | (next < low) | (next > high), 0.5 * (low + high), next);
      u = select(far, next, u + newton);
      if (!any(far)) break;
    }
    return u;
  }

  void evaluate(int64_t v0, int64_t v1);
  void at_mode(Group& g, int64_t v0, int64_t v1);
  void over_nodes(Group& g, int64_t v0, int64_t v1);
  void add_columns();
  void add_joined(int64_t j, int64_t lanes);
  void finish_joined();
};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
