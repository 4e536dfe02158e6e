// From moments to derivatives: of the unknowns, of each row, and of pairs of rows.
#pragma once

#include "jaxglmm/group_pass.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

// V, V_x.
template <class F, int S, class L>
JAXGLMM_STEP void GroupPass<F, S, L>::first_order(const Group& g, V once, int64_t v0, int64_t v1) {
  const bool laplace = q.nodes == 1;
  V value = g.peak + (laplace ? V{} : log(g.mass));
  if (q.determinant) value -= g.log_root;
  totals.value += once * value;
  V along[kForm];  // V_x = along g + E[f_x]
  for (int a = 0; a < S; ++a) {
    along[a] = g.f1[a];
    for (int b = a; b < S; ++b)
      along[S + pair_at(S, a, b)] = g.f2(a, b) + (a == b && q.determinant ? 1.0 : 0.0);
  }
  for (int x = 0; x < kUsed; ++x) {
    V slope = g.x[x].mean;
    for (int k = 0; k < kForm; ++k) slope += along[k] * g.x[x].g[k];
    totals.first[x] += once * slope;
  }
  const double* mean_s = r[laplace ? R::s : R::mean_s];
  each_row(v0, v1, [&](int64_t i) {
    V moved{}, slope = load(mean_s + i);
    for (int a = 0; a < S; ++a) moved += along[a] * load(r[R::white + a] + i);
    for (int p = 0; p < kPairs; ++p) slope += along[S + p] * load(r[R::bend + p] + i);
    store(r[R::d_eta] + i, slope - load(r[R::w] + i) * moved);
  });
}

// V_xy, but for pairs of rows.
template <class F, int S, class L>
JAXGLMM_STEP void GroupPass<F, S, L>::second_order(Group& g, V once, int64_t v0, int64_t v1) {
  const bool laplace = q.nodes == 1;
  const double delta = q.determinant ? 1.0 : 0.0;
  Symmetric<S> weight;  // R
  Vector<S> rho = g.f1;
  for (int a = 0; a < S; ++a)
    for (int b = a; b < S; ++b) weight(a, b) = 0.5 * (g.f2(a, b) + (a == b ? delta : 0.0));
  for (int c = 0; c < S; ++c) rho[c] += inner(weight, g.f3[c]);

  // kappa: <R, f_uuxx> + rho f_uxx of a row's own eta; its sums with z z', and of its like in log_phi with z.
  Symmetric<S> kappa{};
  Vector<S> kappa_p{};
  const auto own = [&](int64_t i, const Vector<S>& v, int by_r, int by_rho) {
    return -(load(r[by_r] + i) * quadratic(weight, v) + load(r[by_rho] + i) * dot(rho, v));
  };
  each_row(v0, v1, [&](int64_t i) {
    const Vector<S> z = this->z(i), v = load_vector(r[R::white], r.length, i);
    const V k = own(i, v, R::c, R::a);
    store(r[R::diagonal] + i, k);
    for (int a = 0; a < S; ++a)
      for (int b = a; b < S; ++b) kappa(a, b) += z[a] * z[b] * k;
    if constexpr (F::kDispersion) {
      const V k_p = own(i, v, R::a_p, R::w_p);
      for (int a = 0; a < S; ++a) kappa_p[a] += z[a] * k_p;
    }
  });
  total(kappa.at), total(kappa_p.at);

  // Of R and rho, moved to the scale of z and of the columns of Lambda.
  Square<S> root, column;  // root' root would be T R T'; column c of Lambda meets R in R M_c'
  for (int c = 0; c < S; ++c)
    for (int a = 0; a < S; ++a) {
      root(c, a) = column(c, a) = V{};
      for (int b = 0; b < S; ++b) {
        root(c, a) += g.T(c, b) * weight(b, a);
        column(c, a) += g.M(c, b) * weight(b, a);
      }
    }
  const Vector<S> rho_z = times(g.T, rho), rho_u = times(g.M, rho);
  Symmetric<S> mass_z;  // T R T'
  Square<S> column_z;   // entry (c, k): (T R M_c')_k
  Symmetric<S> corner;  // M_c R M_d'
  for (int c = 0; c < S; ++c)
    for (int k = 0; k < S; ++k) {
      column_z(c, k) = V{};
      for (int a = 0; a < S; ++a) column_z(c, k) += g.T(k, a) * column(c, a);
      if (k < c) continue;
      mass_z(c, k) = corner(c, k) = V{};
      for (int a = 0; a < S; ++a) {
        mass_z(c, k) += root(c, a) * g.T(k, a);
        corner(c, k) += column(c, a) * g.M(k, a);
      }
    }
  // chi: the same of a row's eta and column c of Lambda is z chi_c; its sums with z z'.
  Symmetric<S> chi[S];
  for (int c = 0; c < S; ++c)
    for (int k = 0; k < S; ++k)
      for (int j = k; j < S; ++j) {
        V twice{};
        for (int t = 0; t < S; ++t) twice += g.a[t](k, j) * column_z(c, t);
        chi[c](k, j) = kappa(k, j) * g.u[c] - 2.0 * twice - g.w(k, j) * rho_u[c];
      }
  const Square<S> w_p = times(g.w_p, g.T);

  for (int c = 0; c < S; ++c)
    for (int k = c; k < S; ++k) {
      Unknown& x = g.x[pair_at(S, c, k)];
      V pull = inner(mass_z, g.a[k]);
      for (int t = 0; t < S; ++t) pull += g.w(k, t) * rho_z[t];
      for (int a = 0; a < S; ++a) {
        x.r[a] -= pull * g.M(c, a);
        for (int t = 0; t < S; ++t) x.r[a] += chi[c](k, t) * g.T(t, a);
      }
    }
  if constexpr (F::kDispersion)
    for (int a = 0; a < S; ++a)
      for (int t = 0; t < S; ++t) g.x[kPhi].r[a] += kappa_p[t] * g.T(t, a);

  // The form in g.
  for (int x = 0; x < kForm; ++x)
    for (int y = 0; y < kForm; ++y) form.entry[x][y] = V{};
  const Symmetric<S> bent = congruent(kappa, g.T);
  for (int a = 0; a < S; ++a)
    for (int b = 0; b < S; ++b) {
      form.entry[a][b] = bent(a, b) - g.H[pair_at(S, a, b)](0, 0);
      for (int c = b; c < S; ++c) {
        const int bc = S + pair_at(S, b, c);
        form.entry[a][bc] = form.entry[bc][a] = -g.H[pair_at(S, a, b)](0, c + 1);
      }
    }
  for (int a = 0; a < S; ++a)
    for (int b = a; b < S; ++b) {
      const int ab = S + pair_at(S, a, b);
      if (a == b) form.entry[ab][ab] += delta;
      for (int c = 0; c < S; ++c)
        for (int d = c; d < S; ++d)
          form.entry[ab][S + pair_at(S, c, d)] -= g.H[pair_at(S, a, c)](b + 1, d + 1);
      for (int d = a; d < S; ++d) form.entry[ab][S + pair_at(S, a, d)] += 2.0 * weight(b, d);
      for (int d = a; d <= b; ++d) {
        const int ad = S + pair_at(S, a, d), db = S + pair_at(S, d, b);
        form.entry[ad][db] += g.f2(a, b), form.entry[db][ad] += g.f2(a, b);
      }
    }
  form.mass = g.mass;

  V to[kUnknowns][kForm];  // the form's other side, of each unknown
  for (int y = 0; y < kUsed; ++y)
    for (int k = 0; k < kForm; ++k) {
      to[y][k] = g.x[y].r[k];
      for (int j = 0; j < kForm; ++j) to[y][k] += form.entry[k][j] * g.x[y].g[j];
    }
  const auto add = [&](int x, int y, V direct) {
    V out = direct + g.second(x, y) + g.cov(x, y);
    for (int k = 0; k < kForm; ++k) out += g.x[x].g[k] * to[y][k] + g.x[x].r[k] * g.x[y].g[k];
    totals.second(x, y) += once * out;
  };
  for (int c = 0; c < S; ++c)
    for (int k = c; k < S; ++k) {
      const int x = pair_at(S, c, k);
      for (int d = 0; d < S; ++d)
        for (int j = d; j < S; ++j) {
          const int y = pair_at(S, d, j);
          if (y >= x)
            add(x, y,
                chi[c](k, j) * g.u[d] + chi[d](k, j) * g.u[c] - kappa(k, j) * g.u[c] * g.u[d] -
                    2.0 * g.w(k, j) * corner(c, d));
        }
      if constexpr (F::kDispersion) {
        V twice{};
        for (int a = 0; a < S; ++a) twice += w_p(k, a) * column(c, a);
        add(x, kPhi, kappa_p[k] * g.u[c] - 2.0 * twice + g.s_p[k] * rho_u[c]);
      }
    }
  if constexpr (F::kDispersion) add(kPhi, kPhi, dot(rho_z, g.s_pp) - inner(mass_z, g.w_pp));

  const double* mean_w = r[laplace ? R::w : R::mean_w];
  each_row(v0, v1, [&](int64_t i) {
    const Vector<S> z = this->z(i), v = load_vector(r[R::white], r.length, i);
    const V w = load(r[R::w] + i), a = load(r[R::a] + i), w_mean = load(mean_w + i);
    const V k = load(r[R::diagonal] + i);
    store(r[R::diagonal] + i, k - w_mean);
    const RowForm x = form_of(i);
    const auto mixed = [&](int y, V direct) {
      V out = direct;
      if (!laplace) out += load(r[R::varied + y] + i);
      for (int k = 0; k < kForm; ++k) out += x.g[k] * to[y][k] + x.r[k] * g.x[y].g[k];
      store(r[R::mixed + y] + i, out);
    };
    for (int c = 0; c < S; ++c) {
      V chi = (k - w_mean) * g.u[c] - w * rho_u[c];
      for (int t = 0; t < S; ++t) chi -= 2.0 * a * column(c, t) * v[t];
      if (!laplace)
        for (int t = c; t < S; ++t) chi -= g.M(c, t) * load(r[R::mean_we + t] + i);
      for (int j = c; j < S; ++j) mixed(pair_at(S, c, j), z[j] * chi);
    }
    if constexpr (F::kDispersion)
      mixed(kPhi, own(i, v, R::a_p, R::w_p) + load(r[laplace ? R::s_p : R::mean_sp] + i));
  });
}

// V_xy of the rows of a group: the upper triangle, row by row.
template <class F, int S, class L>
JAXGLMM_STEP void GroupPass<F, S, L>::fill_pairs(int64_t v0) {
  const bool laplace = q.nodes == 1;
  const V per = 1.0 / form.mass;
  double* pair = pairs + v0;
  for (int64_t i = v0; i < size * width; i += width) {
    const RowForm x = form_of(i);
    const V centre = laplace ? V{} : load(r[R::mean_spread] + i);
    V to[kForm];
    for (int k = 0; k < kForm; ++k) {
      to[k] = x.r[k];
      for (int j = 0; j < kForm; ++j) to[k] += form.entry[k][j] * x.g[j];
    }
    for (int64_t j = i; j < size * width; j += width, pair += width) {
      const RowForm y = form_of(j);
      V entry{};
      for (int k = 0; k < kForm; ++k) entry += to[k] * y.g[k] + x.g[k] * y.r[k];
      if (!laplace) entry += load(pair) * per - centre * load(r[R::mean_spread] + j);
      if (i == j) entry += load(r[R::diagonal] + i);
      store(pair, entry);
    }
  }
}

// The Hessian's product with a direction: its part in eta row by row, and of the unknowns' part what comes
// from eta.
template <class F, int S, class L>
JAXGLMM_STEP void GroupPass<F, S, L>::push(const Group& g, int64_t v0, int64_t v1) {
  const bool laplace = q.nodes == 1;
  V along_g[kForm] = {}, along_r[kForm] = {}, to[kForm];
  each_row(v0, v1, [&](int64_t i) {
    const RowForm x = form_of(i);
    const V t = load(r[R::t] + i);
    for (int k = 0; k < kForm; ++k) along_g[k] += x.g[k] * t, along_r[k] += x.r[k] * t;
    for (int y = 0; y < kUsed; ++y) totals.pushed[y] += load(r[R::mixed + y] + i) * t;
  });
  total(along_g), total(along_r);
  for (int k = 0; k < kForm; ++k) {
    to[k] = along_r[k];
    for (int j = 0; j < kForm; ++j) to[k] += form.entry[k][j] * along_g[j];
  }
  each_row(v0, v1, [&](int64_t i) {
    const RowForm x = form_of(i);
    V out = load(r[R::diagonal] + i) * load(r[R::t] + i);
    if (!laplace) out += load(r[R::pushed] + i) - load(r[R::mean_spread] + i) * g.along;
    for (int k = 0; k < kForm; ++k) out += x.g[k] * to[k] + x.r[k] * along_g[k];
    for (int y = 0; y < kUsed; ++y) out += load(r[R::mixed + y] + i) * direction[y];
    store(r[R::pushed] + i, out);
  });
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
