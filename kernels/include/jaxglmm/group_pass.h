// The marginal likelihood of groups with S effects each, and its exact derivatives: a vector of groups, a
// lane each, or one joined group whose rows fill all lanes. For host and device, where threads are the lanes.
//
// A group's value is
//
//   V = -log det L + log sum_k omega_k exp f(u_k),   f(u) = sum_i l_i(eta_i + z_i' Lambda u) - u'u/2,
//
// with u^ the mode of f, -f_uu(u^) = L L', M = L^-T and nodes u_k = u^ + M e_k, e_k = sqrt(2) z_k. Let x and
// y be any two of the unknowns (eta_i, the entries of Lambda, log_phi), f_x, f_xu, ... partial derivatives,
// and from here on every index of u multiplied by M, so that f_uu(u^) = -I and Lambda'z_i becomes v_i.
// Differentiating f_u(u^) = 0 and M'f_uu M = -I gives
//
//   u^ moves by M a_x,  a_x = f_xu        M moves by M U_x,  U_x = the upper triangle of K_x = f_uux + f_uuu
//   a_x with half its diagonal, so that node k moves by M (a_x + U_x e_k)
//
//   V_x  = <E, U_x> + F1 a_x + E[f_x]
//   V_xy = <R, f_uuxy> + rho f_uxy + E[f_xy] + Cov(f_x + f_u (a_x + U_x e), the same of y)
//          + a_x' (<R, f_uuuu> + rho f_uuu - E[H]) a_y - E[(U_x e)' H a_y] - E[a_x' H U_y e]
//          + delta tr(U_x U_y) + <F2, U_x U_y + U_y U_x> + 2 <R, U_x' U_y> - E[(U_x e)' H U_y e]
//          + a_x r_y + r_x a_y + <U_x, h_y> + <h_x, U_y>
//
// with expectations over the nodes' weights, F1 = E[f_u], F2 = E[f_u e'] (its upper triangle), H = -f_uu,
// E = delta I + F2, R the symmetric matrix with the upper triangle E/2, and
//
//   rho = F1 + <R, f_uuu>        r_x = <R, f_uuux> + rho f_uux + E[f_xu]        h_x = E[f_xu e'].
//
// One node has e = 0 and is Laplace's approximation. delta is 1, and 0 where the determinant is left out.
// A group's Hessian in eta is thus a diagonal plus a form in few row vectors: in g = (a, U), r, h and those
// of the nodes.
#pragma once

#include <type_traits>

#include "jaxglmm/families.h"
#include "jaxglmm/team.h"
#include "jaxglmm/tiny.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

// What all groups share. `factor` holds the lower triangle of Lambda by columns, kLanes of each entry where
// every lane has a Lambda of its own; node k is at points[a * stride + k], a < S.
struct Setting {
  const double *factor, *points, *log_weights;
  int64_t stride, nodes;
  double log_phi;
  bool determinant, second;
};

// Arrays with an entry for each row of a tile. The last ones serve several nodes or the second derivatives.
template <int S>
struct Rows {
  static constexpr int kPairs = pairs_of(S), kUnknowns = kPairs + 1;
  enum : int {
    eta,
    y,
    weight,
    t,  // a direction in eta, of which the Hessian's product is wanted
    z,
    s = z + S,  // s, w, a, c and their derivatives in log_phi at the mode
    w,
    a,
    c,
    s_p,
    w_p,
    a_p,
    white,                  // v_i
    bend = white + S,       // U of this row's eta
    d_eta = bend + kPairs,  // V_x
    diagonal,               // the part of V_xx of this row alone
    mixed,                  // V_x with the unknowns
    mean_s = mixed + kUnknowns,
    mean_w,
    mean_we,  // E[w e]
    mean_sp = mean_we + S,
    node_s,
    node_w,
    node_sp,
    spread,  // f_x + f_u (a_x + U_x e) - f_x(u^), its mean, and with what it varies
    mean_spread,
    varied,
    pushed = varied +
        kUnknowns,  // V_xy times the direction; until the end, its part from the spread over nodes
    arrays
  };
  double* base;
  int64_t length;
  JAXGLMM_INLINE double* operator[](int which) const { return base + which * length; }
};

// Sums of a tile: the value, its first derivatives in the unknowns (Lambda by columns, log_phi), its second.
template <int S>
struct Totals {
  static constexpr int kUnknowns = pairs_of(S) + 1;
  V value{}, first[kUnknowns] = {};
  Symmetric<kUnknowns> second{};
  V pushed[kUnknowns] = {};  // the Hessian's mixed part times a direction in eta
};

// `L` is the type of an entry of Lambda: double, or V where every lane has its own.
template <class F, int S, class L = double>
class GroupPass {
 public:
  static constexpr int kPairs = pairs_of(S), kUnknowns = kPairs + 1, kForm = S + kPairs;
  static constexpr int kUsed = F::kDispersion ? kUnknowns : kPairs, kPhi = kPairs;
  using R = Rows<S>;

  // One lane's group, or the joined one, after `evaluate`.
  struct Form {
    V entry[kForm][kForm];  // of the quadratic form in g = (a, U)
    V mass;
  };

  JAXGLMM_INLINE GroupPass(const Setting& setting, bool joined, int64_t size, int64_t width, double* rows)
      : q(setting),
        joined(joined),
        size(size),
        width(width),
        r{rows, size * width},
        d(dispersion_of(setting.log_phi)) {}

  const Setting& q;
  const bool joined;
  const int64_t size, width;
  const R r;
  const Dispersion d;
  Team team;
  double* modes = nullptr;  // (S, width)
  double* pairs =
      nullptr;  // (size (size + 1) / 2, width): the Hessian in eta of each group; only if not joined
  double* curvatures = nullptr;       // (pairs, width): -f_uu before it is made the identity; where wanted
  const double* direction = nullptr;  // in the unknowns, where the Hessian's product is wanted
  double* nodes = nullptr;            // (1 + S, nodes): weight and f_u of each node; only if joined
  Totals<S> totals;
  Form form;
  Vector<S> mode_shift;  // Lambda u^ and Lambda M of the last group
  Square<S> mode_root;

  // Lanes v0 .. v1 of every row: one vector, or all of them where the tile is joined.
  JAXGLMM_HD void evaluate(int64_t v0, int64_t v1);

  template <class Body>
  JAXGLMM_INLINE void each_row(int64_t v0, int64_t v1, const Body& body) const {
    for (int64_t k = 0; k < size; ++k)
      for (int64_t i = k * width + v0 + team.rank * kLanes; i < k * width + v1; i += team.size * kLanes)
        body(i);
  }

  // a_x, U_x and -f_xu of a row.
  struct RowForm {
    V g[kForm], r[kForm];
  };
  JAXGLMM_INLINE RowForm form_of(int64_t i) const;
  // f_x + f_u (a_x + U_x e) - f_x(u^) of a row whose score at the node is s.
  JAXGLMM_INLINE V spread_of(int64_t i, V s, const Vector<S>& slope, const Symmetric<S>& slope_e) const;
  // Lambda u of the last group at a node.
  JAXGLMM_INLINE Vector<S> shift_at(int64_t k) const {
    Vector<S> b = mode_shift;
    for (int a = 0; a < S; ++a)
      for (int c = 0; c < S; ++c) b[a] += mode_root(a, c) * node(c, k);
    return b;
  }
  // Row i at the shift b = Lambda u of its group.
  JAXGLMM_INLINE Row row(int64_t i, const Vector<S>& b) const;
  JAXGLMM_INLINE double node(int a, int64_t k) const {
    return 1.4142135623730951 * q.points[a * q.stride + k];
  }
  JAXGLMM_INLINE L lambda(int row, int column) const {
    if (row < column) return L{};
    if constexpr (std::is_same_v<L, V>)
      return load(q.factor + pair_at(S, column, row) * kLanes);
    else
      return q.factor[pair_at(S, column, row)];
  }
  JAXGLMM_INLINE Vector<S> z(int64_t i) const { return load_vector(r[R::z], r.length, i); }
  static JAXGLMM_INLINE Vector<S> load_vector(const double* from, int64_t stride, int64_t i) {
    Vector<S> out;
    for (int a = 0; a < S; ++a) out[a] = load(from + a * stride + i);
    return out;
  }

 private:
  // What an unknown that is not some eta_i has of its own: g = (a, U) and (r, h), E[f_x], f_x at the mode,
  // and the mean of the spread.
  struct Unknown {
    V g[kForm], r[kForm], mean, at_mode, spread;
  };
  struct Group {
    Vector<S> u, b;    // the mode, and Lambda u
    Square<S> M, T;    // T = Lambda M
    V log_root, peak;  // log det L; f at the mode
    V l_p, mass;
    Vector<S> s, s_p;     // sums of z s and its like over rows
    Symmetric<S> w, w_p;  // of z z' w
    Symmetric<S> a[S];    // of z z z' a
    Symmetric<S> f3[S];   // f_uuu
    Vector<S> f1, s_pp;
    Symmetric<S> f2, w_pp;
    V l_pp;
    Symmetric<S + 1> H[kPairs];  // E[H_ab (1, e)(1, e)']
    Unknown x[kUnknowns];
    Symmetric<kUnknowns> second, cov;  // E[f_xy], Cov
    V along;                           // mean over the nodes of the spread of all rows along the direction
  };

  JAXGLMM_INLINE V total(V v) const { return joined ? team.total(v) : v; }
  template <int N>
  JAXGLMM_INLINE void total(V (&v)[N]) const {
    for (int k = 0; k < N; ++k) v[k] = total(v[k]);
  }
  JAXGLMM_INLINE Vector<S> shift(const Vector<S>& u) const {
    Vector<S> b{};
    for (int c = 0; c < S; ++c)
      for (int k = c; k < S; ++k) b[k] += lambda(k, c) * u[c];
    return b;
  }
  JAXGLMM_INLINE Square<S> shift(const Square<S>& u) const {
    Square<S> b{};
    for (int c = 0; c < S; ++c)
      for (int k = c; k < S; ++k)
        for (int a = 0; a < S; ++a) b(k, a) += lambda(k, c) * u(c, a);
    return b;
  }
  // I + Lambda' w Lambda.
  JAXGLMM_INLINE Symmetric<S> curvature(const Symmetric<S>& w) const {
    Square<S> factor;
    for (int k = 0; k < S; ++k)
      for (int c = 0; c < S; ++c) factor(k, c) = V{} + lambda(k, c);
    Symmetric<S> H = congruent(w, factor);
    for (int a = 0; a < S; ++a) H(a, a) += 1.0;
    return H;
  }

  JAXGLMM_STEP Vector<S> find_mode(int64_t v0, int64_t v1) const;
  JAXGLMM_STEP void at_mode(Group& g, int64_t v0, int64_t v1);
  JAXGLMM_STEP void over_nodes(Group& g, int64_t v0, int64_t v1);
  JAXGLMM_HD void one_node(Group& g) const;
  JAXGLMM_STEP void first_order(const Group& g, V once, int64_t v0, int64_t v1);
  JAXGLMM_STEP void second_order(Group& g, V once, int64_t v0, int64_t v1);
  JAXGLMM_STEP void fill_pairs(int64_t v0);
  JAXGLMM_STEP void push(const Group& g, int64_t v0, int64_t v1);
};

template <class F, int S, class L>
JAXGLMM_INLINE Row GroupPass<F, S, L>::row(int64_t i, const Vector<S>& b) const {
  const V weight = load(r[R::weight] + i);
  const M live = weight > 0.0;
  V eta = load(r[R::eta] + i);
  for (int a = 0; a < S; ++a) eta += load(r[R::z + a] + i) * b[a];
  Row f = F::row(eta, load(r[R::y] + i), d);
  const auto weigh = [&](V& v) { v = select(live, weight * v, V{}); };
  weigh(f.l), weigh(f.s), weigh(f.w), weigh(f.a), weigh(f.c);
  if constexpr (F::kDispersion)
    weigh(f.l_p), weigh(f.s_p), weigh(f.w_p), weigh(f.a_p), weigh(f.l_pp), weigh(f.s_pp), weigh(f.w_pp);
  return f;
}

template <class F, int S, class L>
JAXGLMM_INLINE auto GroupPass<F, S, L>::form_of(int64_t i) const -> RowForm {
  RowForm out{};
  const bool laplace = q.nodes == 1;
  const V w = load(r[R::w] + i), diagonal = load(r[R::diagonal] + i);
  for (int a = 0; a < S; ++a) {
    const V white = load(r[R::white + a] + i);
    out.g[a] = -w * white, out.r[a] = diagonal * white;
    for (int b = a; b < S; ++b) {
      out.g[S + pair_at(S, a, b)] = load(r[R::bend + pair_at(S, a, b)] + i);
      if (!laplace) out.r[S + pair_at(S, a, b)] = -load(r[R::mean_we + b] + i) * white;
    }
  }
  return out;
}

template <class F, int S, class L>
JAXGLMM_INLINE V GroupPass<F, S, L>::spread_of(int64_t i, V s, const Vector<S>& slope,
                                               const Symmetric<S>& slope_e) const {
  V along{}, out = s - load(r[R::s] + i);
  for (int a = 0; a < S; ++a) along += slope[a] * load(r[R::white + a] + i);
  for (int k = 0; k < kPairs; ++k) out += slope_e.at[k] * load(r[R::bend + k] + i);
  return out - load(r[R::w] + i) * along;
}

template <class F, int S, class L>
JAXGLMM_HD void GroupPass<F, S, L>::evaluate(int64_t v0, int64_t v1) {
  Group g{};
  g.u = find_mode(v0, v1);
  for (int64_t v = v0 + team.rank * kLanes; v < v1; v += team.size * kLanes)
    for (int a = 0; a < S; ++a) store(modes + a * width + v, g.u[a]);
  at_mode(g, v0, v1);
  if (curvatures) {
    const Symmetric<S> H = curvature(g.w);
    for (int64_t v = v0 + team.rank * kLanes; v < v1; v += team.size * kLanes)
      for (int p = 0; p < kPairs; ++p) store(curvatures + p * width + v, H.at[p]);
  }
  if (q.nodes == 1)
    one_node(g);
  else
    over_nodes(g, v0, v1);
  mode_shift = g.b, mode_root = g.T;
  const V once = joined ? team.once() : splat(1.0);
  first_order(g, once, v0, v1);
  if (!q.second) return;
  second_order(g, once, v0, v1);
  if (pairs) fill_pairs(v0);
  if (direction) push(g, v0, v1);
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
