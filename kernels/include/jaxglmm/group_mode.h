// The mode of each group, and everything at it.
#pragma once

#include "jaxglmm/group_pass.h"
#include "jaxglmm/scalar_mode.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

template <class F, int S, class L>
JAXGLMM_STEP Vector<S> GroupPass<F, S, L>::find_mode(int64_t v0, int64_t v1) const {
  Vector<S> u = load_vector(modes, width, v0);
  if constexpr (S == 1) {
    const L tau = lambda(0, 0);
    u[0] = scalar_mode(u[0], kClose, [&](V at, V& slope, V& curvature) {
      V sums[2] = {};
      const Vector<S> b = shift(Vector<S>{{at}});
      each_row(v0, v1, [&](int64_t i) {
        const Row f = row(i, b);
        const V z = load(r[R::z] + i);
        sums[0] += z * f.s, sums[1] += z * z * f.w;
      });
      total(sums);
      slope = tau * sums[0] - at, curvature = 1.0 + tau * tau * sums[1];
    });
    return u;
  } else {
    // f is strictly concave, so that Newton's method converges where a step that does not improve is
    // shortened. A shortening too many costs a step, an overshoot in an exponential tail costs many.
    Vector<S> newton{}, trial = u;
    V best = splat(-kInfinity), decrement{}, shrink = splat(1.0);
    for (int step = 0; step < kMostSteps; ++step) {
      V l{};
      Vector<S> s{};
      Symmetric<S> w{};
      const Vector<S> b = shift(trial);
      each_row(v0, v1, [&](int64_t i) {
        const Row f = row(i, b);
        const Vector<S> z = this->z(i);
        l += f.l;
        for (int a = 0; a < S; ++a) {
          s[a] += z[a] * f.s;
          for (int c = a; c < S; ++c) w(a, c) += z[a] * z[c] * f.w;
        }
      });
      l = total(l), total(s.at), total(w.at);
      const V value = l - 0.5 * dot(trial, trial);
      const M better = value >= best - 1e-14 * (1.0 + magnitude(best)), first = best == -kInfinity;
      const M take = better | first;
      Vector<S> slope{};
      for (int a = 0; a < S; ++a) {
        slope[a] = -trial[a];
        for (int k = a; k < S; ++k) slope[a] += lambda(k, a) * s[k];
      }
      const Square<S> root = inverse_root(curvature(w));
      const Vector<S> white = transposed_times(root, slope), next = times(root, white);
      best = select(take, value, best), decrement = select(take, dot(white, white), decrement);
      shrink = select(take, splat(1.0), 0.25 * shrink);
      for (int a = 0; a < S; ++a) {
        u[a] = select(take, trial[a], u[a]), newton[a] = select(take, next[a], newton[a]);
      }
      const M far = decrement > kClose;
      for (int a = 0; a < S; ++a) trial[a] = select(far, u[a] + shrink * newton[a], u[a]);
      if (!any(far)) break;
    }
    // The last step squares an error that is already small; a group that did not get there keeps its best
    // point.
    for (int a = 0; a < S; ++a) u[a] = select(decrement > kClose, u[a], u[a] + newton[a]);
    return u;
  }
}

template <class F, int S, class L>
JAXGLMM_STEP void GroupPass<F, S, L>::at_mode(Group& g, int64_t v0, int64_t v1) {
  V l{};
  g.b = shift(g.u);
  each_row(v0, v1, [&](int64_t i) {
    const Row f = row(i, g.b);
    const Vector<S> z = this->z(i);
    store(r[R::s] + i, f.s), store(r[R::w] + i, f.w), store(r[R::a] + i, f.a), store(r[R::c] + i, f.c);
    l += f.l;
    for (int a = 0; a < S; ++a) {
      g.s[a] += z[a] * f.s;
      for (int b = a; b < S; ++b) {
        const V zz = z[a] * z[b];
        g.w(a, b) += zz * f.w;
        for (int c = b; c < S; ++c) g.a[a](b, c) += zz * z[c] * f.a;
      }
    }
    if constexpr (F::kDispersion) {
      store(r[R::s_p] + i, f.s_p), store(r[R::w_p] + i, f.w_p), store(r[R::a_p] + i, f.a_p);
      g.l_p += f.l_p, g.l_pp += f.l_pp;
      for (int a = 0; a < S; ++a) {
        g.s_p[a] += z[a] * f.s_p, g.s_pp[a] += z[a] * f.s_pp;
        for (int b = a; b < S; ++b) g.w_p(a, b) += z[a] * z[b] * f.w_p, g.w_pp(a, b) += z[a] * z[b] * f.w_pp;
      }
    }
  });
  l = total(l), total(g.s.at), total(g.w.at);
  for (int a = 0; a < S; ++a)
    for (int b = a; b < S; ++b)
      for (int c = b; c < S; ++c) {
        const V sum = total(g.a[a](b, c));
        g.a[a](b, c) = g.a[b](a, c) = g.a[c](a, b) = sum;
      }
  if constexpr (F::kDispersion) {
    g.l_p = total(g.l_p), g.l_pp = total(g.l_pp);
    total(g.s_p.at), total(g.s_pp.at), total(g.w_p.at), total(g.w_pp.at);
  }
  g.peak = l - 0.5 * dot(g.u, g.u);
  g.M = inverse_root(curvature(g.w)), g.T = shift(g.M);
  V scale = g.M(0, 0);
  for (int a = 1; a < S; ++a) scale *= g.M(a, a);
  g.log_root = -log(scale);

  // Of f_uuu, and of f_uux for the entries of Lambda.
  Symmetric<S> bent[S];
  for (int k = 0; k < S; ++k) bent[k] = congruent(g.a[k], g.T);
  for (int c = 0; c < S; ++c)
    for (int k = 0; k < S; ++k)
      for (int p = 0; p < kPairs; ++p) g.f3[c].at[p] -= g.T(k, c) * bent[k].at[p];
  const Square<S> w = times(g.w, g.T);
  const auto bend = [&](Unknown& x, Symmetric<S> K) {
    for (int a = 0; a < S; ++a)
      for (int b = a; b < S; ++b) {
        for (int c = 0; c < S; ++c) K(a, b) += g.f3[c](a, b) * x.g[c];
        x.g[S + pair_at(S, a, b)] = a == b ? 0.5 * K(a, b) : K(a, b);
      }
  };
  for (int c = 0; c < S; ++c)
    for (int k = c; k < S; ++k) {
      Unknown& x = g.x[pair_at(S, c, k)];
      Symmetric<S> K;
      for (int a = 0; a < S; ++a) {
        x.g[a] = g.M(c, a) * g.s[k] - g.u[c] * w(k, a);
        for (int b = a; b < S; ++b)
          K(a, b) = -(g.u[c] * bent[k](a, b) + g.M(c, a) * w(k, b) + w(k, a) * g.M(c, b));
      }
      bend(x, K);
      x.at_mode = g.u[c] * g.s[k];
    }
  if constexpr (F::kDispersion) {
    Unknown& x = g.x[kPhi];
    const Vector<S> s_p = transposed_times(g.T, g.s_p);
    Symmetric<S> K = congruent(g.w_p, g.T);
    for (V& v : K.at) v = -v;
    for (int a = 0; a < S; ++a) x.g[a] = s_p[a];
    bend(x, K);
    x.at_mode = g.l_p;
  }
  each_row(v0, v1, [&](int64_t i) {
    const Vector<S> v = transposed_times(g.T, z(i));
    const V w = load(r[R::w] + i), a = load(r[R::a] + i);
    for (int k = 0; k < S; ++k) store(r[R::white + k] + i, v[k]);
    for (int b = 0; b < S; ++b)
      for (int c = b; c < S; ++c) {
        V K = -a * v[b] * v[c];
        for (int k = 0; k < S; ++k) K -= g.f3[k](b, c) * w * v[k];
        store(r[R::bend + pair_at(S, b, c)] + i, b == c ? 0.5 * K : K);
      }
  });
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
