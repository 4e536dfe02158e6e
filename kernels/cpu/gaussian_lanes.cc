// Profiled Gaussian likelihoods of very many models, with derivatives, and their maximisation: a model at a
// time, from its cross products. The formulas are those of jaxglmm/objectives/gaussian_lanes.py, in the same
// notation.
#include "gaussian_lanes.h"

#include <cmath>

#include "threads.h"

namespace jaxglmm {

namespace {

// Lower Cholesky factor of the n x n matrix in place. False where it is not positive definite.
bool factorise(double* A, int64_t n, double least) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double rest = A[i * n + j];
      for (int64_t k = 0; k < j; ++k) rest -= A[i * n + k] * A[j * n + k];
      if (i != j)
        A[i * n + j] = rest / A[j * n + j];
      else if (rest > least)
        A[i * n + i] = std::sqrt(rest);
      else
        return false;
    }
  return true;
}

template <int S>
class GaussianLane {
 public:
  explicit GaussianLane(const GaussianLanes& lanes)
      : q(lanes),
        p(lanes.columns),
        Q(lanes.entries),
        P(S * S * lanes.groups),
        B(S * S * lanes.groups),
        Y(p * S * lanes.groups),
        q_xx(p * p),
        inverse(p * p),
        L(p * p),
        q_xr(p),
        c(p),
        load(p * Q),
        yf(p * S * S),
        yy(p * S * p * S),
        by(Q * p * p),
        scratch(p * S + p * p),
        gradient(Q),
        hessian(Q * Q),
        rss1(Q),
        rss2(Q * Q),
        bend(Q * Q),
        log_det2(Q * Q) {}

  double value = 0, rss = 0;

  // At raw (entries,) of a lane.
  void evaluate(const double* raw, int64_t of) {
    lane = of;
    for (auto& row : T)
      for (double& t : row) t = 0;
    for (int64_t k = 0; k < Q; ++k) T[q.entry_row[k]][q.entry_column[k]] = raw[k];
    ok = true;
    eliminate();
    if (ok) solve();
    if (ok) {
      add_groups();
      differentiate();
    }
    if (!ok) {
      value = rss = NAN;
      for (auto* v : {&gradient, &hessian, &c, &inverse, &load, &bend, &rss1, &rss2, &log_det2})
        fill(*v, NAN);
    }
  }

  const std::vector<double>& slope() const { return gradient; }
  const std::vector<double>& curvature() const { return hessian; }
  void write(int64_t k) const {
    q.value[k] = value, q.rss[k] = rss;
    const auto put = [&](const std::vector<double>& from, double* to) {
      std::copy(from.begin(), from.end(), to + k * from.size());
    };
    put(gradient, q.gradient), put(hessian, q.hessian), put(c, q.c), put(inverse, q.inverse),
        put(load, q.load);
    put(bend, q.bend), put(rss1, q.rss1), put(rss2, q.rss2), put(log_det2, q.log_det2), put(q_xx, q.q_xx);
  }

 private:
  using Square = double[S][S];
  const GaussianLanes& q;
  const int64_t p, Q;
  int64_t lane = 0;
  bool ok = true;
  Square T;
  std::vector<double> P, B, Y;  // of each group
  std::vector<double> q_xx, inverse, L, q_xr, c, load, yf, yy, by, scratch;
  std::vector<double> gradient, hessian, rss1, rss2, bend, log_det2;
  double q_rr = 0, log_det = 0, rows = 0;
  Square ff, sb, sw;
  double fbf[S][S][S][S], bb[S][S][S][S], wb[S][S][S][S];

  static void fill(std::vector<double>& v, double with) { std::fill(v.begin(), v.end(), with); }
  double read(const LaneArray& a, int64_t entry) const { return a.at[entry * a.step + lane * a.lane]; }
  double ztz(int a, int b, int64_t g) const { return read(q.ztz, (a * S + b) * q.groups + g); }
  double ztx(int64_t i, int a, int64_t g) const { return read(q.ztx, (i * S + a) * q.groups + g); }
  double ztr(int a, int64_t g) const { return read(q.ztr, a * q.groups + g); }

  // What the groups' effects take from the cross products of columns and residuals; P, B and Y of each group.
  void eliminate() {
    for (int64_t i = 0; i < p * p; ++i) q_xx[i] = read(q.xx, i);
    for (int64_t i = 0; i < p; ++i) q_xr[i] = read(q.xr, i);
    q_rr = read(q.rr, 0), log_det = 0;
    for (int64_t g = 0; g < q.groups; ++g) {
      Square A, M;
      double inner[S * S], half[S * S];  // of T'AT + I; its root's inverse times T'
      for (int a = 0; a < S; ++a)
        for (int b = 0; b < S; ++b) A[a][b] = ztz(a, b, g);
      for (int i = 0; i < S; ++i)
        for (int j = 0; j <= i; ++j) {
          double sum = i == j;
          for (int a = 0; a < S; ++a)
            for (int b = 0; b < S; ++b) sum += T[a][i] * A[a][b] * T[b][j];
          inner[i * S + j] = sum;
        }
      if (!factorise(inner, S, 0)) {
        ok = false;
        return;
      }
      for (int i = 0; i < S; ++i) {
        log_det += 2 * std::log(inner[i * S + i]);
        for (int a = 0; a < S; ++a) {
          double rest = T[a][i];
          for (int k = 0; k < i; ++k) rest -= inner[i * S + k] * half[k * S + a];
          half[i * S + a] = rest / inner[i * S + i];
        }
      }
      double *Pg = P.data() + g * S * S, *Bg = B.data() + g * S * S, *Yg = Y.data() + g * p * S;
      double* MX = scratch.data();
      for (int a = 0; a < S; ++a)
        for (int b = 0; b < S; ++b) {
          M[a][b] = 0;
          for (int i = 0; i < S; ++i) M[a][b] += half[i * S + a] * half[i * S + b];
        }
      for (int a = 0; a < S; ++a)
        for (int b = 0; b < S; ++b) {
          Pg[a * S + b] = a == b;
          for (int k = 0; k < S; ++k) Pg[a * S + b] -= M[a][k] * A[k][b];
        }
      for (int a = 0; a < S; ++a)
        for (int b = 0; b < S; ++b) {
          Bg[a * S + b] = 0;
          for (int k = 0; k < S; ++k) Bg[a * S + b] += A[a][k] * Pg[k * S + b];
        }
      double r[S], Mr[S];
      for (int a = 0; a < S; ++a) r[a] = ztr(a, g);
      for (int a = 0; a < S; ++a) {
        Mr[a] = 0;
        for (int b = 0; b < S; ++b) Mr[a] += M[a][b] * r[b];
        q_rr -= Mr[a] * r[a];
      }
      for (int64_t i = 0; i < p; ++i) {
        double x[S];
        for (int a = 0; a < S; ++a) x[a] = ztx(i, a, g), q_xr[i] -= x[a] * Mr[a];
        for (int a = 0; a < S; ++a) {
          MX[i * S + a] = Yg[i * S + a] = 0;
          for (int b = 0; b < S; ++b) MX[i * S + a] += M[a][b] * x[b], Yg[i * S + a] += Pg[b * S + a] * x[b];
        }
        for (int64_t j = 0; j <= i; ++j) {
          double sum = 0;
          for (int a = 0; a < S; ++a) sum += MX[j * S + a] * x[a];
          q_xx[i * p + j] -= sum;
        }
      }
    }
    for (int64_t i = 0; i < p; ++i)
      for (int64_t j = 0; j < i; ++j) q_xx[j * p + i] = q_xx[i * p + j];
  }

  // The coefficients, their inverse and the residual sum of squares.
  void solve() {
    std::vector<double>& d = c;  // until the coefficients come
    for (int64_t i = 0; i < p; ++i) d[i] = std::sqrt(q_xx[i * p + i]);
    for (int64_t i = 0; i < p; ++i)
      for (int64_t j = 0; j < p; ++j) L[i * p + j] = q_xx[i * p + j] / d[i] / d[j];
    if (!factorise(L.data(), p, 1e-15)) {
      ok = false;
      return;
    }
    rows = read(q.n, 0) - (q.reml ? p : 0);
    for (int64_t i = 0; i < p; ++i) {
      if (q.reml) log_det += 2 * std::log(L[i * p + i] * d[i]);
      double* column = scratch.data();
      for (int64_t k = 0; k < p; ++k) {
        double rest = k == i;
        for (int64_t l = 0; l < k; ++l) rest -= L[k * p + l] * column[l];
        column[k] = rest / L[k * p + k];
      }
      for (int64_t k = p; k-- > 0;) {
        double rest = column[k];
        for (int64_t l = k + 1; l < p; ++l) rest -= L[l * p + k] * column[l];
        column[k] = rest / L[k * p + k];
      }
      for (int64_t k = 0; k < p; ++k) inverse[k * p + i] = column[k] / d[k] / d[i];
    }
    rss = q_rr;
    for (int64_t i = 0; i < p; ++i) {
      c[i] = 0;
      for (int64_t j = 0; j < p; ++j) c[i] += inverse[i * p + j] * q_xr[j];
      rss -= q_xr[i] * c[i];
    }
    ok = rss > 0;
  }

  void add_groups() {
    fill(yf, 0), fill(yy, 0);
    for (int a = 0; a < S; ++a)
      for (int b = 0; b < S; ++b) {
        ff[a][b] = sb[a][b] = sw[a][b] = 0;
        for (int k = 0; k < S; ++k)
          for (int l = 0; l < S; ++l) fbf[a][b][k][l] = bb[a][b][k][l] = wb[a][b][k][l] = 0;
      }
    for (int64_t g = 0; g < q.groups; ++g) {
      const double *Pg = P.data() + g * S * S, *Bg = B.data() + g * S * S, *Yg = Y.data() + g * p * S;
      double e[S], f[S];
      for (int a = 0; a < S; ++a) {
        e[a] = ztr(a, g);
        for (int64_t i = 0; i < p; ++i) e[a] -= ztx(i, a, g) * c[i];
      }
      for (int a = 0; a < S; ++a) {
        f[a] = 0;
        for (int b = 0; b < S; ++b) f[a] += Pg[b * S + a] * e[b];
      }
      for (int64_t i = 0; i < p; ++i)
        for (int a = 0; a < S; ++a)
          for (int b = 0; b < S; ++b) yf[(i * S + a) * S + b] += Yg[i * S + a] * f[b];
      for (int a = 0; a < S; ++a)
        for (int b = 0; b < S; ++b) {
          ff[a][b] += f[a] * f[b], sb[a][b] += Bg[a * S + b];
          for (int k = 0; k < S; ++k)
            for (int l = 0; l < S; ++l) {
              fbf[a][b][k][l] += f[a] * Bg[b * S + k] * f[l];
              bb[a][b][k][l] += Bg[a * S + b] * Bg[k * S + l];
            }
        }
      if (q.reml) add_restricted(Bg, Yg);
    }
  }

  void add_restricted(const double* Bg, const double* Yg) {
    Square w;
    double* turned = scratch.data();  // inverse Y
    for (int64_t i = 0; i < p; ++i)
      for (int a = 0; a < S; ++a) {
        double sum = 0;
        for (int64_t j = 0; j < p; ++j) sum += inverse[i * p + j] * Yg[j * S + a];
        turned[i * S + a] = sum;
      }
    for (int a = 0; a < S; ++a)
      for (int b = 0; b < S; ++b) {
        w[a][b] = 0;
        for (int64_t i = 0; i < p; ++i) w[a][b] += turned[i * S + a] * Yg[i * S + b];
        sw[a][b] += w[a][b];
      }
    for (int a = 0; a < S; ++a)
      for (int b = 0; b < S; ++b)
        for (int k = 0; k < S; ++k)
          for (int l = 0; l < S; ++l) wb[a][b][k][l] += w[a][l] * Bg[b * S + k];
    for (int64_t i = 0; i < p * S; ++i)
      for (int64_t j = 0; j < p * S; ++j) yy[i * p * S + j] += Yg[i] * Yg[j];
  }

  // First and second derivatives of C = TT' in the entries of T.
  void slope_of(int64_t k, Square& out) const {
    const int64_t r = q.entry_row[k], column = q.entry_column[k];
    for (int a = 0; a < S; ++a)
      for (int b = 0; b < S; ++b) out[a][b] = (a == r ? T[b][column] : 0) + (b == r ? T[a][column] : 0);
  }
  double bend_of(int64_t k, int64_t l, const Square& with) const {
    if (q.entry_column[k] != q.entry_column[l]) return 0;
    const int64_t r = q.entry_row[k], s = q.entry_row[l];
    return with[r][s] + with[s][r];
  }
  static double dot(const Square& a, const Square& b) {
    double sum = 0;
    for (int i = 0; i < S; ++i)
      for (int j = 0; j < S; ++j) sum += a[i][j] * b[i][j];
    return sum;
  }
  // out_cd = sum_ab d_ab m_abcd
  static void contract(const Square& d, const double (&m)[S][S][S][S], Square& out) {
    for (int k = 0; k < S; ++k)
      for (int l = 0; l < S; ++l) {
        out[k][l] = 0;
        for (int a = 0; a < S; ++a)
          for (int b = 0; b < S; ++b) out[k][l] += d[a][b] * m[a][b][k][l];
      }
  }

  void differentiate() {
    constexpr int kMost = S * (S + 1) / 2;
    Square d[kMost], turned[kMost], bd[kMost], half[kMost];
    double log_det1[kMost];
    for (int64_t k = 0; k < Q; ++k) {
      slope_of(k, d[k]);
      rss1[k] = -dot(d[k], ff), log_det1[k] = dot(d[k], sb);
      contract(d[k], fbf, turned[k]), contract(d[k], wb, half[k]);
      for (int a = 0; a < S; ++a)  // sum_bc bb_abcd d_bc
        for (int l = 0; l < S; ++l) {
          bd[k][a][l] = 0;
          for (int b = 0; b < S; ++b)
            for (int e = 0; e < S; ++e) bd[k][a][l] += bb[a][b][e][l] * d[k][b][e];
        }
      for (int64_t i = 0; i < p; ++i) {
        load[i * Q + k] = 0;
        for (int a = 0; a < S; ++a)
          for (int b = 0; b < S; ++b) load[i * Q + k] -= yf[(i * S + a) * S + b] * d[k][a][b];
      }
      if (q.reml) log_det1[k] += turn_columns(k, d[k]);
    }
    for (int64_t k = 0; k < Q; ++k)
      for (int64_t l = 0; l < Q; ++l) {
        bend[k * Q + l] = 2 * dot(turned[k], d[l]) - bend_of(k, l, ff);
        rss2[k * Q + l] = bend[k * Q + l];
        for (int64_t i = 0; i < p; ++i)
          for (int64_t j = 0; j < p; ++j)
            rss2[k * Q + l] -= 2 * load[i * Q + k] * inverse[i * p + j] * load[j * Q + l];
        double& second = log_det2[k * Q + l];
        second = bend_of(k, l, sb);
        for (int a = 0; a < S; ++a)
          for (int b = 0; b < S; ++b) second -= bd[k][a][b] * d[l][b][a];
        if (q.reml) {
          for (int64_t i = 0; i < p; ++i)
            for (int64_t j = 0; j < p; ++j) second -= by[(k * p + i) * p + j] * by[(l * p + j) * p + i];
          second += 2 * dot(half[k], d[l]) - bend_of(k, l, sw);
        }
      }
    const double log_sigma = 0.5 * std::log(rss / rows);
    value = 0.5 * (read(q.log_weights, 0) - log_det) - rows * (log_sigma + 0.5 * std::log(2 * M_PI) + 0.5);
    for (int64_t k = 0; k < Q; ++k) {
      gradient[k] = -0.5 * (rows * rss1[k] / rss + log_det1[k]);
      for (int64_t l = 0; l < Q; ++l)
        hessian[k * Q + l] =
            -0.5 * (rows * (rss2[k * Q + l] / rss - rss1[k] * rss1[l] / (rss * rss)) + log_det2[k * Q + l]);
    }
  }

  // by_k = inverse times the derivative of Q_xx in entry k; its trace.
  double turn_columns(int64_t k, const Square& d) {
    double *slopes = scratch.data(), trace = 0, *to = by.data() + k * p * p;
    for (int64_t i = 0; i < p; ++i)
      for (int64_t j = 0; j < p; ++j) {
        slopes[i * p + j] = 0;
        for (int a = 0; a < S; ++a)
          for (int b = 0; b < S; ++b) slopes[i * p + j] -= d[a][b] * yy[(i * S + a) * p * S + j * S + b];
      }
    for (int64_t i = 0; i < p; ++i) {
      for (int64_t l = 0; l < p; ++l) {
        to[i * p + l] = 0;
        for (int64_t j = 0; j < p; ++j) to[i * p + l] += inverse[i * p + j] * slopes[j * p + l];
      }
      trace += to[i * p + i];
    }
    return trace;
  }
};

template <int S>
void profile(const GaussianLanes& q, int64_t threads) {
  for_pieces(q.fits, 16, threads, [&](int64_t begin, int64_t end) {
    GaussianLane<S> lane(q);
    std::vector<double> raw(q.entries);
    for (int64_t k = begin; k < end; ++k) {
      for (int64_t e = 0; e < q.entries; ++e)
        raw[e] = q.scale[q.which[k] * q.entries + e] * q.x[k * q.entries + e];
      lane.evaluate(raw.data(), q.which[k]);
      lane.write(k);
    }
  });
}

template <int S>
void climb(const GaussianLanes& q, int64_t threads) {
  for_pieces(q.fits, 16, threads, [&](int64_t begin, int64_t end) {
    const int64_t m = q.entries;
    GaussianLane<S> lane(q);
    Newton newton(q.rules);
    std::vector<double> raw(m), gradient(m), hessian(m * m);
    for (int64_t k = begin; k < end; ++k) {
      const double* scale = q.scale + q.which[k] * m;
      newton.begin({q.x + k * m, q.value + k, q.gradient + k * m, q.hessian + k * m * m, q.decrement + k,
                    q.move + k * m, q.reason + k, q.evaluations + k});
      bool kept, goes_on = true;
      while (goes_on) {
        for (int64_t e = 0; e < m; ++e) raw[e] = scale[e] * newton.trial[e];
        lane.evaluate(raw.data(), q.which[k]);
        for (int64_t e = 0; e < m; ++e) {
          gradient[e] = scale[e] * lane.slope()[e];
          for (int64_t f = 0; f < m; ++f)
            hessian[e * m + f] = scale[e] * scale[f] * lane.curvature()[e * m + f];
        }
        goes_on = newton.take(lane.value, gradient.data(), hessian.data(), &kept);
      }
    }
  });
}

}  // namespace
}  // namespace jaxglmm

JAXGLMM_EXPORT void jaxglmm_gaussian_profile(const jaxglmm::GaussianLanes* q, int64_t threads) {
  using namespace jaxglmm;
  q->effects == 1   ? profile<1>(*q, threads)
  : q->effects == 2 ? profile<2>(*q, threads)
                    : profile<3>(*q, threads);
}

JAXGLMM_EXPORT void jaxglmm_gaussian_climb(const jaxglmm::GaussianLanes* q, int64_t threads) {
  using namespace jaxglmm;
  q->effects == 1 ? climb<1>(*q, threads) : q->effects == 2 ? climb<2>(*q, threads) : climb<3>(*q, threads);
}
