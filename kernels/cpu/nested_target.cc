// nested_pass of one target. A group g with the scalar effect b and the row sums S, W, A, C of s, w, a, c at
// its mode: D = 1 + T W, q = T / D, T = tau^2. As a function of a shift e of its rows' eta, with b profiled
// out,
//
//   f_e = S,  f_ee = -omega = -W / D,  f_eee = -R = -A / D^3,  (-log D / 2)_e = -P / 2,  P = q A / D.
//
// What is differentiated is Phi = f - log D / 2 - (kappa / 2) omega + lambda S with e, kappa and lambda held,
// in the eta_i of the group's rows, T and log phi. In the vectors w, a, c, with t = a - q A w = dW/deta and k
// = c - q C w,
//
//   Phi_i  = s_i - (alpha / 2) t_i - lambda w_i / D,     alpha = q + kappa / D^2
//   Phi_ij = delta_ij [-w_i - (alpha / 2) (c_i - q A a_i) - lambda a_i / D]  + (w a c) M (w a c)'
//
// For the parent: P_e = T (C - 2 q A^2) / D^3, R_e = (C - 3 q A^2) / D^4, and derivatives of S, -omega and
// -(P + kappa R) / 2 in each unknown. (Derivation: the implicit function theorem at the mode; MATH of
// objectives/nested.)
#include <cstring>

#include "columns.h"
#include "jaxglmm/families.h"
#include "jaxglmm/scalar_mode.h"
#include "nested_pass.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {
namespace {

template <class F>
class NestedPass {
 public:
  enum : int { eta, y, weight, s, w, a, c, s_p, w_p, a_p, slope, diagonal, by_T, by_p, r1, r2, r3, arrays };

  NestedPass(const NestedProblem& problem, const Tile& tile, double* workspace, const Sums& sums,
             ParentRuns& runs)
      : q(problem),
        tile(tile),
        sums(sums),
        runs(runs),
        width(lanes_of(tile)),
        padded(padded_columns(problem.columns)),
        slice(tile.joined ? kLanes : width),
        d(dispersion_of(problem.log_phi)),
        tau(problem.tau),
        T(problem.tau * problem.tau) {
    double* at = workspace;
    const auto take = [&](int64_t doubles) {
      double* begin = at;
      at += (doubles + 7) / 8 * 8;
      return begin;
    };
    rows = take(arrays * tile.size * width);
    for (double** lane : {&mode, &information, &shift, &kappa, &lambda}) *lane = take(width);
    of_parent = take(kParentSums * width);
    pairs = take(pairs_of(tile) * width);
    x = take(tile.size * slice * padded);
    scaled = take(tile.size * slice * padded);
    vectors = take(6 * padded);
  }

  static int64_t workspace(const NestedProblem& q, const Tile& tile) {
    const int64_t width = lanes_of(tile), padded = padded_columns(q.columns);
    const int64_t slice = tile.joined ? kLanes : width;
    return (arrays * tile.size + 5 + kParentSums + pairs_of(tile)) * width +
           (2 * tile.size * slice + 6) * padded + 16 * 8;
  }

  void run() {
    load_rows();
    if (tile.joined)
      evaluate(0, width);
    else
      for (int64_t v = 0; v < width; v += kLanes) evaluate(v, v + kLanes);
    sums.value() += sum(value);
    for (int k = 0; k < 2; ++k) sums.first()[k] += sum(first[k]);
    for (int k = 0; k < 3; ++k) sums.second()[k] += sum(second[k]);
    for (int64_t j = 0; j < (tile.joined ? 1 : tile.lanes); ++j)
      if (const int32_t group = group_of(j); group >= 0) {
        q.modes.set(group, mode[j]), q.information.set(group, information[j]);
        double* to = runs.of(q.parent[group]);
        for (int k = 0; k < kParentSums; ++k) to[k] += of_parent[k * width + j];
      }
    if (q.columns) add_columns();
  }

 private:
  const NestedProblem& q;
  const Tile& tile;
  const Sums& sums;
  ParentRuns& runs;
  const int64_t width, padded, slice;
  const Dispersion d;
  const double tau, T;
  double *rows, *mode, *information, *shift, *kappa, *lambda, *of_parent, *pairs, *x, *scaled, *vectors;
  V value{}, first[2] = {}, second[3] = {};
  V form[4];  // ww, wa, wc, aa of M

  static int64_t lanes_of(const Tile& tile) { return (tile.lanes + kLanes - 1) / kLanes * kLanes; }
  static int64_t pairs_of(const Tile& tile) { return tile.joined ? 0 : tile.size * (tile.size + 1) / 2; }
  double* row_of(int which) const { return rows + which * tile.size * width; }
  int32_t group_of(int64_t lane) const { return q.group[tile.slot(tile.joined ? 0 : lane)]; }
  V total(V v) const { return tile.joined ? splat(sum(v)) : v; }
  template <class Body>
  JAXGLMM_INLINE void each_row(int64_t v0, int64_t v1, const Body& body) const {
    for (int64_t k = 0; k < tile.size; ++k)
      for (int64_t i = k * width + v0; i < k * width + v1; i += kLanes) body(i);
  }
  JAXGLMM_INLINE V at(int which, int64_t i) const { return load(row_of(which) + i); }
  JAXGLMM_INLINE void put(int which, int64_t i, V v) const { store(row_of(which) + i, v); }

  void load_column(const Column& column, double fill, double* out) const {
    for (int64_t k = 0; k < tile.size; ++k, out += width) {
      if (tile.joined)
        for (int64_t j = 0; j < tile.lanes; ++j) out[j] = column[tile.slot(j) + k * tile.stride];
      else
        column.read(tile.first + k * tile.stride, tile.lanes, out);
      for (int64_t j = tile.lanes; j < width; ++j) out[j] = fill;
    }
  }

  void load_rows() {
    load_column(q.eta, 0.0, row_of(eta)), load_column(q.y, 1.0, row_of(y)),
        load_column(q.weight, 0.0, row_of(weight));
    for (int64_t j = 0; j < width; ++j) {
      const int64_t lane = tile.joined ? 0 : j;
      const int32_t group = lane < tile.lanes ? group_of(lane) : -1;
      mode[j] = shift[j] = kappa[j] = lambda[j] = 0.0;
      if (group < 0) continue;
      const int32_t parent = q.parent[group];
      mode[j] = q.start[group], shift[j] = q.shift[parent], kappa[j] = q.kappa[parent],
      lambda[j] = q.lambda[parent];
    }
    each_row(0, width, [&](int64_t i) {
      put(eta, i, at(eta, i) + load(shift + i % width));
      if (F::kLogResponse) put(y, i, log(at(y, i)));
    });
  }

  JAXGLMM_INLINE Row row(int64_t i, V b) const {
    const V prior = at(weight, i);
    const M live = prior > 0.0;
    Row f = F::row(at(eta, i) + b, at(y, i), d);
    const auto weigh = [&](V& v) { v = select(live, prior * v, V{}); };
    weigh(f.l), weigh(f.s), weigh(f.w), weigh(f.a), weigh(f.c);
    if constexpr (F::kDispersion)
      weigh(f.l_p), weigh(f.s_p), weigh(f.w_p), weigh(f.a_p), weigh(f.l_pp), weigh(f.s_pp), weigh(f.w_pp);
    return f;
  }

  // The standardised mode.
  V find_mode(int64_t v0, int64_t v1) const {
    return scalar_mode(load(mode + v0), kClose, [&](V u, V& slope, V& curvature) {
      V S{}, W{};
      each_row(v0, v1, [&](int64_t i) {
        const Row f = row(i, tau * u);
        S += f.s, W += f.w;
      });
      slope = tau * total(S) - u, curvature = 1.0 + T * total(W);
    });
  }

  void evaluate(int64_t v0, int64_t v1) {
    const V u = find_mode(v0, v1), b = tau * u;
    for (int64_t v = v0; v < v1; v += kLanes) store(mode + v, u);
    V l{}, S{}, W{}, A{}, C{}, l_p{}, l_pp{}, S_p{}, W_p{}, A_p{}, S_pp{}, W_pp{};
    each_row(v0, v1, [&](int64_t i) {
      const Row f = row(i, b);
      put(s, i, f.s), put(w, i, f.w), put(a, i, f.a), put(c, i, f.c);
      l += f.l, S += f.s, W += f.w, A += f.a, C += f.c;
      if constexpr (F::kDispersion) {
        put(s_p, i, f.s_p), put(w_p, i, f.w_p), put(a_p, i, f.a_p);
        l_p += f.l_p, l_pp += f.l_pp, S_p += f.s_p, W_p += f.w_p, A_p += f.a_p, S_pp += f.s_pp,
            W_pp += f.w_pp;
      }
    });
    for (V* v : {&l, &S, &W, &A, &C, &l_p, &l_pp, &S_p, &W_p, &A_p, &S_pp, &W_pp}) *v = total(*v);
    V once = splat(1.0);  // a joined group counts in one lane
    if (tile.joined)
      for (int64_t k = 1; k < kLanes; ++k) once[k] = 0.0;

    for (int64_t v = v0; v < v1; v += kLanes) store(information + v, W);
    const V K = load(kappa + v0), L = load(lambda + v0);
    const V D = 1.0 + T * W, i1 = 1.0 / D, i2 = i1 * i1, i3 = i2 * i1, qq = T * i1, omega = W * i1,
            qA = qq * A;
    const V alpha = qq + K * i2, beta = 0.5 * qq * qq + K * qq * i2;
    form[0] = qq - 0.5 * alpha * (qq * qq * C - qq * qA * qA) + beta * qA * qA - L * qq * i1 * qA;
    form[1] = -0.5 * alpha * qq * qA - beta * qA + L * qq * i1;
    form[2] = 0.5 * alpha * qq;
    form[3] = beta;

    // Derivatives of S, W, A, D, omega in T.
    const V S_T = -omega * S, W_T = A * S * i1, A_T = C * S * i1, D_T = W + T * W_T;
    const V omega_T = W_T * i2 - omega * omega;
    const V S_TT = -omega_T * S - omega * S_T, W_TT = (A_T * S + A * S_T - A * S * D_T * i1) * i1;
    const V D_TT = T * W_TT + 2.0 * W_T;
    const V omega_TT = W_TT * i2 - 2.0 * W_T * D_T * i3 - 2.0 * omega * omega_T;
    value += once * (l - 0.5 * u * u - 0.5 * log(D));
    first[0] += once * (0.5 * S * S - 0.5 * D_T * i1 - 0.5 * K * omega_T + L * S_T);
    second[0] += once * (S * S_T - 0.5 * (D_TT * i1 - D_T * D_T * i2) - 0.5 * K * omega_TT + L * S_TT);
    const auto bent = [&](V A_x, V D_x, V direct) {  // of -(P + kappa R) / 2
      return -0.5 * (T * i2 * (A_x - 2.0 * A * D_x * i1) + direct) -
             0.5 * K * i3 * (A_x - 3.0 * A * D_x * i1);
    };
    const auto tell = [&](int which, V v) { store(of_parent + which * width + v0, v); };
    tell(kScore, S), tell(kInformation, omega), tell(kP, qA * i1), tell(kR, A * i3);
    tell(kPe, T * i3 * (C - 2.0 * qA * A)), tell(kRe, i2 * i2 * (C - 3.0 * qA * A));
    tell(kVectors, S_T), tell(kVectors + 1, -omega_T), tell(kVectors + 2, bent(A_T, D_T, A * i2));

    // The same in log phi.
    V b_p{}, S_x{}, W_x{}, A_x{}, D_x{}, q_x{};
    if constexpr (F::kDispersion) {
      b_p = qq * S_p, S_x = S_p * i1, W_x = W_p + A * b_p, A_x = A_p + C * b_p, D_x = T * W_x,
      q_x = -qq * i1 * D_x;
      const V S_moved = S_pp - W_p * b_p, omega_x = W_x * i2;
      const V S_xx = S_moved * i1 - S_p * D_x * i2;
      const V W_xx = W_pp + A_p * b_p + A_x * b_p + A * (q_x * S_p + qq * S_moved);
      const V omega_xx = W_xx * i2 - 2.0 * W_x * D_x * i3;
      const V S_Tx = -omega_x * S - omega * S_x, W_Tx = (A_x * S + A * S_x - A * S * D_x * i1) * i1;
      const V D_Tx = T * W_Tx + W_x, omega_Tx = W_Tx * i2 - 2.0 * W_x * D_T * i3;
      first[1] += once * (l_p - 0.5 * D_x * i1 - 0.5 * K * omega_x + L * S_x);
      second[1] += once * (S_p * S * i1 - 0.5 * (D_Tx * i1 - D_T * D_x * i2) - 0.5 * K * omega_Tx + L * S_Tx);
      second[2] +=
          once * (l_pp + S_p * b_p - 0.5 * (T * W_xx * i1 - D_x * D_x * i2) - 0.5 * K * omega_xx + L * S_xx);
      tell(kVectors + 3, S_x), tell(kVectors + 4, -omega_x), tell(kVectors + 5, bent(A_x, D_x, V{}));
    } else {
      for (int k = 3; k < 6; ++k) tell(kVectors + k, V{});
    }
    if (!q.columns) return;

    each_row(v0, v1, [&](int64_t i) {
      const V wi = at(w, i), ai = at(a, i), ci = at(c, i), t = ai - qA * wi, k = ci - qq * C * wi;
      put(slope, i, at(s, i) - 0.5 * alpha * t - L * i1 * wi);
      put(diagonal, i, -wi - 0.5 * alpha * (ci - qA * ai) - L * i1 * ai);
      const V bend = 0.5 * T * i2 + K * i3;
      const V W_iT = i1 * (S * k - A * i1 * wi - qA * S * t);
      put(by_T, i,
          -wi * S * i1 - 0.5 * alpha * W_iT - 0.5 * i1 * t + bend * D_T * t +
              L * i1 * (omega * wi - i1 * S * t));
      if constexpr (F::kDispersion) {
        const V w_moved = at(w_p, i) + ai * b_p;
        const V W_ip = at(a_p, i) + ci * b_p - (q_x * A + qq * A_x) * wi - qA * w_moved;
        put(by_p, i,
            at(s_p, i) - wi * b_p - 0.5 * alpha * W_ip + bend * D_x * t + L * i1 * (D_x * i1 * wi - w_moved));
      }
      put(r1, i, -i1 * wi), put(r2, i, -i2 * t), put(r3, i, bent(k, T * t, V{}));
    });
    if (!tile.joined) fill_pairs(v0);
  }

  // Phi_ij of the rows of a group: the upper triangle, row by row.
  void fill_pairs(int64_t v0) const {
    double* pair = pairs + v0;
    for (int64_t i = v0; i < tile.size * width; i += width) {
      const V wi = at(w, i), ai = at(a, i), ci = at(c, i);
      const V to_w = form[0] * wi + form[1] * ai + form[2] * ci, to_a = form[1] * wi + form[3] * ai,
              to_c = form[2] * wi;
      for (int64_t j = i; j < tile.size * width; j += width, pair += width) {
        V entry = to_w * at(w, j) + to_a * at(a, j) + to_c * at(c, j);
        if (i == j) entry += at(diagonal, i);
        store(pair, entry);
      }
    }
  }

  // Lanes j0 .. j0 + slice of X; lanes beyond the tile are zero.
  void load_columns(int64_t j0) const {
    double* out = x;
    for (int64_t k = 0; k < tile.size; ++k)
      for (int64_t j = 0; j < slice; ++j, out += padded) {
        const bool inside = j0 + j < tile.lanes;
        if (inside) q.X.read((tile.slot(j0 + j) + k * tile.stride) * q.columns, q.columns, out);
        for (int64_t i = inside ? q.columns : 0; i < padded; ++i) out[i] = 0;
      }
  }

  // The rows' derivatives times X.
  void add_columns() {
    if (tile.joined) std::memset(vectors, 0, 6 * padded * sizeof(double));
    for (int64_t j0 = 0; j0 < width; j0 += slice) {
      load_columns(j0);
      add_rows(slope, j0, sums.gradient()), add_rows(by_T, j0, sums.mixed(0));
      if (F::kDispersion) add_rows(by_p, j0, sums.mixed(1));
      if (tile.joined) {
        for (int v = 0; v < 3; ++v) add_rows(w + v, j0, vectors + v * padded);
        for (int64_t k = 0; k < tile.size; ++k)
          for (int64_t g = 0; g < slice; ++g)
            for (int64_t i = 0; i < padded; ++i) {
              const int64_t to = (k * slice + g) * padded + i;
              scaled[to] = row_of(diagonal)[k * width + j0 + g] * x[to];
            }
      } else {
        multiply_groups(pairs, {x, width, padded}, tile.size, width, scaled);
      }
      add_outer(scaled, {x, slice, padded}, tile.size, slice, sums.hessian());
      add_parents(j0);
    }
    if (!tile.joined) return;
    double *to = vectors + 3 * padded, *v = vectors;
    for (int64_t i = 0; i < padded; ++i) {
      const double wi = v[i], ai = v[padded + i], ci = v[2 * padded + i];
      to[i] = form[0][0] * wi + form[1][0] * ai + form[2][0] * ci;
      to[padded + i] = form[1][0] * wi + form[3][0] * ai, to[2 * padded + i] = form[2][0] * wi;
    }
    add_outer(to, {v, 1, padded}, 3, 1, sums.hessian());
  }

  void add_rows(int which, int64_t j0, double* out) const {
    for (int64_t k = 0; k < tile.size; ++k)
      add_weighted(row_of(which) + k * width + j0, x + k * slice * padded, slice, padded, out);
  }

  // Into the parents' vectors in beta, lane by lane.
  void add_parents(int64_t j0) {
    for (int64_t j = 0; j < slice && j0 + j < tile.lanes; ++j) {
      const int32_t group = group_of(j0 + j);
      if (group < 0) continue;
      double* to = runs.of(q.parent[group]) + kParentSums;
      for (int64_t i = 0; i < padded; i += kLanes) {
        V held[3];
        for (int v = 0; v < 3; ++v) held[v] = load(to + v * padded + i);
        for (int64_t k = 0; k < tile.size; ++k) {
          const V xi = load(x + (k * slice + j) * padded + i);
          const int64_t from = k * width + j0 + j;
          for (int v = 0; v < 3; ++v) held[v] += row_of(r1 + v)[from] * xi;
        }
        for (int v = 0; v < 3; ++v) store(to + v * padded + i, held[v]);
      }
    }
  }
};

template <class F>
void add(const NestedProblem& q, const Tile& tile, double* workspace, const Sums& sums, ParentRuns& runs) {
  NestedPass<F>(q, tile, workspace, sums, runs).run();
}

}  // namespace

int64_t nested_workspace(const NestedProblem& q, const Tile& tile) {
  return NestedPass<Logit>::workspace(q, tile);
}

void add_nested(const NestedProblem& q, const Tile& tile, double* workspace, const Sums& sums,
                ParentRuns& runs) {
  static constexpr decltype(&add<Logit>) kAdd[kFamilies] = {
      add<Gaussian>, add<Logit>, add<Probit>, add<Cloglog>, add<Poisson>, add<NegativeBinomial>, add<Gamma>};
  kAdd[static_cast<int>(q.family)](q, tile, workspace, sums, runs);
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
