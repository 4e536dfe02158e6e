// One vector of groups, or one joined group: sums at the mode and over the nodes, and the derivatives row by
// row.
#pragma once

#include "fused_tile.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

// Everything at the mode, and the vectors a, b of rows and unknowns.
template <class F>
void TilePass<F>::at_mode(Group& g, int64_t v0, int64_t v1) {
  const double tau = q.tau;
  const V u = g.u;
  V l{};
  each_row(v0, v1, [&](int64_t i) {
    const Row f = row(i, u);
    const V z = load(r.z + i), z2 = z * z;
    store(r.s + i, f.s), store(r.w + i, f.w), store(r.a + i, f.a), store(r.c + i, f.c);
    l += f.l, g.S += z * f.s, g.W += z2 * f.w, g.A += z2 * z * f.a, g.C += z2 * z2 * f.c;
    if (F::kDispersion) {
      store(r.s_p + i, f.s_p), store(r.w_p + i, f.w_p), store(r.a_p + i, f.a_p);
      g.S_p += z * f.s_p, g.W_p += z2 * f.w_p, g.A_p += z2 * z * f.a_p, g.l_p += f.l_p;
      g.l_pp += f.l_pp, g.S_pp += z * f.s_pp, g.W_pp += z2 * f.w_pp;
    }
  });
  for (V* v : {&l, &g.S, &g.W, &g.A, &g.C}) *v = total(*v);
  if (F::kDispersion)
    for (V* v : {&g.S_p, &g.W_p, &g.A_p, &g.l_p, &g.S_pp, &g.W_pp, &g.l_pp}) *v = total(*v);
  const V D = g.D = 1.0 + tau * tau * g.W, f3 = -tau * tau * tau * g.A;
  g.peak = l - 0.5 * u * u;
  g.tau.a = (g.S - u * tau * g.W) / D;
  g.tau.b = (-(2.0 * tau * g.W + tau * tau * u * g.A) + f3 * g.tau.a) / (2.0 * D);
  g.tau.c = -tau * tau * (3.0 * g.A + tau * u * g.C);
  g.phi.a = tau * g.S_p / D;
  g.phi.b = (-tau * tau * g.W_p + f3 * g.phi.a) / (2.0 * D);
  g.phi.c = -tau * tau * tau * g.A_p;
  each_row(v0, v1, [&](int64_t i) {
    const V z = load(r.z + i), a = -tau * z * load(r.w + i) / D;
    store(r.mode_x + i, a);
    store(r.scale_x + i, (-tau * tau * z * z * load(r.a + i) + f3 * a) / (2.0 * D));
  });
}

// Moments over the nodes. With one node, all of them are what they are at the mode.
template <class F>
void TilePass<F>::over_nodes(Group& g, int64_t v0, int64_t v1) {
  const double tau = q.tau;
  const V u = g.u;
  if (q.nodes == 1) {
    g.mass = splat(1.0), g.d0 = g.D;
    g.tau.mean = u * g.S, g.tau.mean_u = g.D * g.tau.a, g.tau_tau = -u * u * g.W;
    g.phi.mean = g.l_p, g.phi.mean_u = g.D * g.phi.a, g.phi_phi = g.l_pp, g.tau_phi = u * g.S_p;
    return;
  }
  each_row(v0, v1, [&](int64_t i) {
    for (double* p : {r.mean_s, r.mean_w, r.mean_wt, r.mean_sp, r.mean_spread, r.cov_tau, r.cov_phi})
      store(p + i, V{});
  });
  const int64_t n_pairs = pairs_of(q, tile);
  for (int64_t k = 0; k < n_pairs; ++k) store(pairs + k * width + v0, V{});
  V kappa;
  for (int64_t k = 0; k < kLanes; ++k) kappa[k] = __builtin_sqrt(2.0 / g.D[k]);

  for (int64_t node = 0; node < q.nodes; ++node) {
    const V t = kappa * q.points[node], at = u + t;
    V l{}, S{}, W{}, l_p{}, S_p{}, l_pp{};
    each_row(v0, v1, [&](int64_t i) {
      const Row f = row(i, at);
      const V z = load(r.z + i);
      store(r.node_s + i, f.s), store(r.node_w + i, f.w);
      l += f.l, S += z * f.s, W += z * z * f.w;
      if (F::kDispersion) {
        store(r.node_sp + i, f.s_p);
        l_p += f.l_p, S_p += z * f.s_p, l_pp += f.l_pp;
      }
    });
    for (V* v : {&l, &S, &W, &l_p, &S_p, &l_pp}) *v = total(*v);
    const V pi = exp(q.log_weights[node] + (l - 0.5 * at * at - g.peak));
    const V slope = tau * S - at, D = 1.0 + tau * tau * W;
    if (tile.joined) nodes[3 * node] = pi[0], nodes[3 * node + 1] = slope[0], nodes[3 * node + 2] = t[0];
    g.mass += pi, g.f1 += pi * slope, g.f2 += pi * slope * t;
    g.d0 += pi * D, g.d1 += pi * D * t, g.d2 += pi * D * t * t;
    const V tau_u = S - at * tau * W;
    const V by_tau = at * S - u * g.S + slope * (g.tau.a + t * g.tau.b);
    const V by_phi = l_p - g.l_p + slope * (g.phi.a + t * g.phi.b);
    g.tau.mean += pi * at * S, g.tau.mean_u += pi * tau_u, g.tau.mean_ut += pi * t * tau_u;
    g.phi.mean += pi * l_p, g.phi.mean_u += pi * tau * S_p, g.phi.mean_ut += pi * t * tau * S_p;
    g.tau_tau -= pi * at * at * W, g.tau_phi += pi * at * S_p, g.phi_phi += pi * l_pp;
    g.spread_tau += pi * by_tau, g.spread_phi += pi * by_phi;
    g.cov_tau_tau += pi * by_tau * by_tau, g.cov_tau_phi += pi * by_tau * by_phi,
        g.cov_phi_phi += pi * by_phi * by_phi;

    const auto add = [](double* to, V v) { store(to, load(to) + v); };
    each_row(v0, v1, [&](int64_t i) {
      const V s = load(r.node_s + i);
      add(r.mean_s + i, pi * s);
      if (!q.second) return;
      const V w = pi * load(r.node_w + i);
      const V spread = s - load(r.s + i) + slope * (load(r.mode_x + i) + t * load(r.scale_x + i));
      add(r.mean_w + i, w), add(r.mean_wt + i, t * w);
      add(r.mean_spread + i, pi * spread), add(r.cov_tau + i, pi * spread * by_tau);
      if (F::kDispersion)
        add(r.mean_sp + i, pi * load(r.node_sp + i)), add(r.cov_phi + i, pi * spread * by_phi);
      store(r.spread + i, spread);
    });
    if (n_pairs == 0) continue;
    double* pair = pairs + v0;
    for (int64_t i = v0; i < tile.size * width; i += width) {
      const V left = pi * load(r.spread + i);
      for (int64_t j = i; j < tile.size * width; j += width, pair += width)
        add(pair, left * load(r.spread + j));
    }
  }
  const V per = 1.0 / g.mass;
  for (V* v :
       {&g.f1, &g.f2, &g.d0, &g.d1, &g.d2, &g.tau.mean, &g.tau.mean_u, &g.tau.mean_ut, &g.phi.mean,
        &g.phi.mean_u, &g.phi.mean_ut, &g.tau_tau, &g.tau_phi, &g.phi_phi, &g.spread_tau, &g.spread_phi})
    *v *= per;
  g.cov_tau_tau = g.cov_tau_tau * per - g.spread_tau * g.spread_tau;
  g.cov_tau_phi = g.cov_tau_phi * per - g.spread_tau * g.spread_phi;
  g.cov_phi_phi = g.cov_phi_phi * per - g.spread_phi * g.spread_phi;
  each_row(v0, v1, [&](int64_t i) {
    for (double* p : {r.mean_s, r.mean_w, r.mean_wt, r.mean_sp, r.mean_spread, r.cov_tau, r.cov_phi})
      store(p + i, load(p + i) * per);
    store(r.cov_tau + i, load(r.cov_tau + i) - load(r.mean_spread + i) * g.spread_tau);
    store(r.cov_phi + i, load(r.cov_phi + i) - load(r.mean_spread + i) * g.spread_phi);
  });
}

template <class F>
void TilePass<F>::evaluate(int64_t v0, int64_t v1) {
  const double tau = q.tau;
  const bool laplace = q.nodes == 1;
  Group g{};
  g.u = find_mode(v0, v1);
  at_mode(g, v0, v1);
  over_nodes(g, v0, v1);
  for (int64_t v = v0; v < v1; v += kLanes) store(modes + v, g.u);

  V once = splat(1.0);  // a joined group counts in one lane
  if (tile.joined)
    for (int64_t k = 1; k < kLanes; ++k) once[k] = 0.0;
  const V u = g.u, D = g.D, f3 = -tau * tau * tau * g.A, f4 = -tau * tau * tau * tau * g.C;
  const V e = (q.determinant ? 1.0 : 0.0) + g.f2;
  V value = g.peak + (laplace ? V{} : log(g.mass));
  if (q.determinant) value -= 0.5 * log(D);
  totals[Sums::value] += once * value;
  totals[Sums::tau] += once * (e * g.tau.b + g.f1 * g.tau.a + g.tau.mean);
  totals[Sums::phi] += once * (e * g.phi.b + g.f1 * g.phi.a + g.phi.mean);
  const double* mean_s = laplace ? r.s : r.mean_s;
  each_row(v0, v1, [&](int64_t i) {
    store(r.d_eta + i, e * load(r.scale_x + i) + g.f1 * load(r.mode_x + i) + load(mean_s + i));
  });
  if (!q.second) return;

  const V half = e / (2.0 * D), psi = g.f1 + half * f3, bent = psi / D;
  aa = -bent * f3 + half * f4 - g.d0, ab = 2.0 * psi - g.d1, bb = 2.0 * e + g.f2 - g.d2, mass = g.mass;
  for (Direction* x : {&g.tau, &g.phi}) x->r = half * x->c + x->mean_u, x->h = x->mean_ut;
  const auto form = [&](const Direction& x, const Direction& y) {
    return aa * x.a * y.a + ab * (x.a * y.b + x.b * y.a) + bb * x.b * y.b + x.a * y.r + x.r * y.a +
           x.b * y.h + x.h * y.b;
  };
  const double tau2 = tau * tau;
  totals[Sums::tau_tau] +=
      once * (-half * (2.0 * g.W + 4.0 * tau * u * g.A + tau2 * u * u * g.C) -
              bent * (2.0 * u * g.W + u * u * tau * g.A) + g.tau_tau + g.cov_tau_tau + form(g.tau, g.tau));
  totals[Sums::tau_phi] +=
      once * (-half * (2.0 * tau * g.W_p + tau2 * u * g.A_p) + bent * (g.S_p - u * tau * g.W_p) + g.tau_phi +
              g.cov_tau_phi + form(g.tau, g.phi));
  totals[Sums::phi_phi] +=
      once * (-half * tau2 * g.W_pp + bent * tau * g.S_pp + g.phi_phi + g.cov_phi_phi + form(g.phi, g.phi));

  const double* mean_w = laplace ? r.w : r.mean_w;
  each_row(v0, v1, [&](int64_t i) {
    const V z = load(r.z + i), a = load(r.a + i), c = load(r.c + i), z2 = z * z, w = load(mean_w + i);
    const V wt = laplace ? V{} : load(r.mean_wt + i);
    const Direction x = {load(r.mode_x + i),
                         load(r.scale_x + i),
                         V{},
                         -half * tau2 * tau * z2 * z * c - tau * z * w,
                         -tau * z * wt,
                         V{},
                         V{},
                         V{}};
    store(r.cross_x + i, x.r), store(r.tilt_x + i, x.h);
    store(r.diagonal + i, -half * tau2 * z2 * c - bent * tau * z * a - w);
    V by_tau = -half * (2.0 * tau * z2 * a + tau2 * z2 * z * u * c) -
               bent * (z * load(r.w + i) + z2 * u * tau * a) - z * (u * w + wt) + form(x, g.tau);
    if (!laplace) by_tau += load(r.cov_tau + i);
    store(r.by_tau + i, by_tau);
    if (!F::kDispersion) return;
    V by_phi = -half * tau2 * z2 * load(r.a_p + i) - bent * tau * z * load(r.w_p + i) + form(x, g.phi);
    by_phi += laplace ? load(r.s_p + i) : load(r.mean_sp + i) + load(r.cov_phi + i);
    store(r.by_phi + i, by_phi);
  });

  if (tile.joined) return;
  const V per = 1.0 / g.mass;
  double* pair = pairs + v0;
  for (int64_t i = v0; i < tile.size * width; i += width) {
    const V a = load(r.mode_x + i), b = load(r.scale_x + i), centre = laplace ? V{} : load(r.mean_spread + i);
    const V to_a = aa * a + ab * b + load(r.cross_x + i), to_b = ab * a + bb * b + load(r.tilt_x + i);
    for (int64_t j = i; j < tile.size * width; j += width, pair += width) {
      V entry = to_a * load(r.mode_x + j) + to_b * load(r.scale_x + j) + a * load(r.cross_x + j);
      if (!laplace) entry += b * load(r.tilt_x + j) + load(pair) * per - centre * load(r.mean_spread + j);
      if (i == j) entry += load(r.diagonal + i);
      store(pair, entry);
    }
  }
}

// The rows' derivatives times X.
template <class F>
void TilePass<F>::add_columns() {
  if (!tile.joined) {
    const int64_t rows = tile.size * width;
    add_weighted(r.d_eta, x, rows, padded, sums.gradient());
    if (!q.second) return;
    add_weighted(r.by_tau, x, rows, padded, sums.by_tau());
    if (F::kDispersion) add_weighted(r.by_phi, x, rows, padded, sums.by_phi());
    multiply_groups(pairs, x, tile.size, width, padded, scaled);
    add_outer(scaled, x, rows, padded, sums.hessian());
    return;
  }
  if (q.second)
    for (int64_t k = 0; k < (q.nodes + 8) * padded; ++k) vectors[k] = 0;
  for (int64_t j = 0; j < width; j += kLanes) {
    load_columns(q, tile, j, kLanes, padded, x);
    add_joined(j, kLanes);
  }
  if (q.second) finish_joined();
}

// One slice of a joined tile.
template <class F>
void TilePass<F>::add_joined(int64_t j, int64_t lanes) {
  const auto add = [&](const double* weight, double* out) {
    for (int64_t k = 0; k < tile.size; ++k)
      add_weighted(weight + k * width + j, x + k * lanes * padded, lanes, padded, out);
  };
  add(r.d_eta, sums.gradient());
  if (!q.second) return;
  add(r.by_tau, sums.by_tau());
  if (F::kDispersion) add(r.by_phi, sums.by_phi());
  add(r.mode_x, vectors), add(r.scale_x, vectors + padded);
  add(r.cross_x, vectors + 2 * padded), add(r.tilt_x, vectors + 3 * padded);
  for (int64_t k = 0; k < tile.size; ++k)
    for (int64_t g = 0; g < lanes; ++g) {
      const double scale = r.diagonal[k * width + j + g];
      const int64_t at = (k * lanes + g) * padded;
      for (int64_t c = 0; c < padded; ++c) scaled[at + c] = scale * x[at + c];
    }
  add_outer(scaled, x, tile.size * lanes, padded, sums.hessian());
  if (q.nodes == 1) return;
  for (int64_t node = 0; node < q.nodes; ++node) {
    const V slope = splat(nodes[3 * node + 1]), t = splat(nodes[3 * node + 2]), at = load(modes) + t;
    each_row(j, j + lanes, [&](int64_t i) {
      store(r.spread + i,
            row(i, at).s - load(r.s + i) + slope * (load(r.mode_x + i) + t * load(r.scale_x + i)));
    });
    add(r.spread, vectors + (8 + node) * padded);
  }
}

// The form of a joined group in its p-vectors.
template <class F>
void TilePass<F>::finish_joined() {
  double *a = vectors, *b = a + padded, *cross = b + padded, *tilt = cross + padded, *others = tilt + padded;
  for (int64_t c = 0; c < padded; ++c) {
    others[c] = aa[0] * a[c] + ab[0] * b[c] + cross[c];
    others[padded + c] = ab[0] * a[c] + bb[0] * b[c] + tilt[c];
    others[2 * padded + c] = a[c];
    others[3 * padded + c] = b[c];
  }
  add_outer(vectors, others, 4, padded, sums.hessian());
  if (q.nodes == 1) return;
  double *at = vectors + 8 * padded, *centred = at + q.nodes * padded, *centre = centred + q.nodes * padded;
  for (int64_t c = 0; c < padded; ++c) {
    centre[c] = 0;
    for (int64_t k = 0; k < q.nodes; ++k) centre[c] += nodes[3 * k] / mass[0] * at[k * padded + c];
    for (int64_t k = 0; k < q.nodes; ++k)
      centred[k * padded + c] = nodes[3 * k] / mass[0] * (at[k * padded + c] - centre[c]);
  }
  add_outer(at, centred, q.nodes, padded, sums.hessian());
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
