// Moments over the nodes of each group.
#pragma once

#include "jaxglmm/group_pass.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

// With one node, all moments are what they are at the mode.
template <class F, int S, class L>
JAXGLMM_HD void GroupPass<F, S, L>::one_node(Group& g) const {
  g.mass = splat(1.0);
  for (int a = 0; a < S; ++a) g.H[pair_at(S, a, a)](0, 0) = splat(1.0);
  for (int c = 0; c < S; ++c)
    for (int k = c; k < S; ++k) {
      const int x = pair_at(S, c, k);
      for (int d = 0; d < S; ++d)
        for (int j = d; j < S; ++j) g.second(x, pair_at(S, d, j)) = -g.u[c] * g.u[d] * g.w(k, j);
      if constexpr (F::kDispersion) g.second(x, kPhi) = g.u[c] * g.s_p[k];
    }
  if constexpr (F::kDispersion) g.second(kPhi, kPhi) = g.l_pp;
  for (int x = 0; x < kUsed; ++x) {
    g.x[x].mean = g.x[x].at_mode;
    for (int a = 0; a < S; ++a) g.x[x].r[a] = g.x[x].g[a];
  }
}

template <class F, int S, class L>
JAXGLMM_STEP void GroupPass<F, S, L>::over_nodes(Group& g, int64_t v0, int64_t v1) {
  const int64_t n_pairs = pairs ? size * (size + 1) / 2 : 0;
  each_row(v0, v1, [&](int64_t i) {
    for (int k = R::mean_s; k < R::node_s; ++k) store(r[k] + i, V{});
    for (int k = R::mean_spread; k < R::arrays; ++k) store(r[k] + i, V{});
  });
  for (int64_t k = 0; k < n_pairs; ++k) store(pairs + k * width + v0, V{});
  const Symmetric<S> identity = transposed_times(g.M, g.M);
  const auto add = [](double* to, V v) { store(to, load(to) + v); };

  for (int64_t k = 0; k < q.nodes; ++k) {
    Vector<S> e, at = g.u, b = g.b;
    for (int a = 0; a < S; ++a) e[a] = splat(node(a, k));
    for (int a = 0; a < S; ++a)
      for (int c = 0; c < S; ++c) at[a] += g.M(a, c) * e[c], b[a] += g.T(a, c) * e[c];
    V l{}, l_p{}, l_pp{};
    Vector<S> s{}, s_p{};
    Symmetric<S> w{};
    each_row(v0, v1, [&](int64_t i) {
      const Row f = row(i, b);
      const Vector<S> z = this->z(i);
      store(r[R::node_s] + i, f.s), store(r[R::node_w] + i, f.w);
      l += f.l;
      for (int a = 0; a < S; ++a) {
        s[a] += z[a] * f.s;
        for (int c = a; c < S; ++c) w(a, c) += z[a] * z[c] * f.w;
      }
      if constexpr (F::kDispersion) {
        store(r[R::node_sp] + i, f.s_p);
        l_p += f.l_p, l_pp += f.l_pp;
        for (int a = 0; a < S; ++a) s_p[a] += z[a] * f.s_p;
      }
    });
    l = total(l), total(s.at), total(w.at);
    if constexpr (F::kDispersion) l_p = total(l_p), l_pp = total(l_pp), total(s_p.at);
    const V pi = exp(q.log_weights[k] + (l - 0.5 * dot(at, at) - g.peak));
    Vector<S> slope = transposed_times(g.T, s);
    const Vector<S> prior = transposed_times(g.M, at);
    Symmetric<S> slope_e;
    for (int a = 0; a < S; ++a) slope[a] -= prior[a];
    for (int a = 0; a < S; ++a)
      for (int c = a; c < S; ++c) slope_e(a, c) = slope[a] * e[c];
    if (nodes) {
      nodes[k] = lane(pi, 0);
      for (int a = 0; a < S; ++a) nodes[(1 + a) * q.nodes + k] = lane(slope[a], 0);
    }
    g.mass += pi;
    for (int a = 0; a < S; ++a) g.f1[a] += pi * slope[a];
    for (int p = 0; p < kPairs; ++p) g.f2.at[p] += pi * slope_e.at[p];
    for (int c = 0; c < S; ++c)
      for (int j = c; j < S; ++j) g.x[pair_at(S, c, j)].mean += pi * at[c] * s[j];
    if constexpr (F::kDispersion) g.x[kPhi].mean += pi * l_p;
    each_row(v0, v1, [&](int64_t i) { add(r[R::mean_s] + i, pi * load(r[R::node_s] + i)); });
    if (!q.second) continue;

    const Square<S> wT = times(w, g.T);
    Symmetric<S> H = transposed_times(g.T, wT);
    V outer[pairs_of(S + 1)];
    for (int a = 0; a <= S; ++a)
      for (int c = a; c <= S; ++c) {
        V& o = outer[pair_at(S + 1, a, c)];
        o = pi;
        if (a > 0) o *= e[a - 1];
        if (c > 0) o *= e[c - 1];
      }
    for (int p = 0; p < kPairs; ++p)
      for (int o = 0; o < pairs_of(S + 1); ++o) g.H[p].at[o] += (H.at[p] + identity.at[p]) * outer[o];
    V by[kUnknowns] = {};
    const auto unknown = [&](int which, V f_x, const Vector<S>& f_xu) {
      Unknown& x = g.x[which];
      V spread = f_x - x.at_mode;
      for (int a = 0; a < S; ++a) {
        spread += slope[a] * x.g[a], x.r[a] += pi * f_xu[a];
        for (int c = a; c < S; ++c) {
          const int p = S + pair_at(S, a, c);
          spread += slope_e(a, c) * x.g[p], x.r[p] += outer[pair_at(S + 1, 0, c + 1)] * f_xu[a];
        }
      }
      by[which] = spread, x.spread += pi * spread;
    };
    for (int c = 0; c < S; ++c)
      for (int j = c; j < S; ++j) {
        const int x = pair_at(S, c, j);
        Vector<S> f_xu;
        for (int a = 0; a < S; ++a) f_xu[a] = g.M(c, a) * s[j] - at[c] * wT(j, a);
        unknown(x, at[c] * s[j], f_xu);
        for (int d = 0; d < S; ++d)
          for (int t = d; t < S; ++t)
            if (pair_at(S, d, t) >= x) g.second(x, pair_at(S, d, t)) -= pi * at[c] * at[d] * w(j, t);
        if constexpr (F::kDispersion) g.second(x, kPhi) += pi * at[c] * s_p[j];
      }
    if constexpr (F::kDispersion) {
      unknown(kPhi, l_p, transposed_times(g.T, s_p));
      g.second(kPhi, kPhi) += pi * l_pp;
    }
    for (int x = 0; x < kUsed; ++x)
      for (int y = x; y < kUsed; ++y) g.cov(x, y) += pi * by[x] * by[y];

    each_row(v0, v1, [&](int64_t i) {
      const V w = pi * load(r[R::node_w] + i), spread = spread_of(i, load(r[R::node_s] + i), slope, slope_e);
      add(r[R::mean_w] + i, w);
      for (int a = 0; a < S; ++a) add(r[R::mean_we + a] + i, w * e[a]);
      if constexpr (F::kDispersion) add(r[R::mean_sp] + i, pi * load(r[R::node_sp] + i));
      add(r[R::mean_spread] + i, pi * spread);
      for (int x = 0; x < kUsed; ++x) add(r[R::varied + x] + i, pi * spread * by[x]);
      store(r[R::spread] + i, spread);
    });
    if (direction) {
      V along{};
      each_row(v0, v1, [&](int64_t i) { along += load(r[R::spread] + i) * load(r[R::t] + i); });
      along = total(along), g.along += pi * along;
      each_row(v0, v1, [&](int64_t i) { add(r[R::pushed] + i, pi * along * load(r[R::spread] + i)); });
    }
    if (n_pairs == 0) continue;
    double* pair = pairs + v0;
    for (int64_t i = v0; i < size * width; i += width) {
      const V left = pi * load(r[R::spread] + i);
      for (int64_t j = i; j < size * width; j += width, pair += width)
        add(pair, left * load(r[R::spread] + j));
    }
  }

  const V per = 1.0 / g.mass;
  g.along *= per;
  for (int a = 0; a < S; ++a) g.f1[a] *= per;
  for (int p = 0; p < kPairs; ++p) {
    g.f2.at[p] *= per;
    for (V& v : g.H[p].at) v *= per;
  }
  for (int x = 0; x < kUsed; ++x) {
    g.x[x].mean *= per, g.x[x].spread *= per;
    for (V& v : g.x[x].r) v *= per;
  }
  for (int x = 0; x < kUsed; ++x)
    for (int y = x; y < kUsed; ++y) {
      g.second(x, y) *= per;
      g.cov(x, y) = g.cov(x, y) * per - g.x[x].spread * g.x[y].spread;
    }
  each_row(v0, v1, [&](int64_t i) {
    const auto scale = [&](int which) { store(r[which] + i, load(r[which] + i) * per); };
    for (int k = R::mean_s; k < R::node_s; ++k) scale(k);
    scale(R::mean_spread), scale(R::pushed);
    for (int x = 0; x < kUsed; ++x) {
      const V mean = load(r[R::mean_spread] + i);
      store(r[R::varied + x] + i, load(r[R::varied + x] + i) * per - mean * g.x[x].spread);
    }
  });
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
