// Newton's method in very many fits at once, as Python calls it, on one thread and on four; fits of NaN among
// them. (Their evaluation is in sweep_driver.cc.)
//
//   kernels/tests/sanitize.sh [address|thread]
#include <algorithm>

#include "agree.h"
#include "gaussian_lanes.h"
#include "lane_climb.h"

using namespace jaxglmm;

extern "C" {
int jaxglmm_lane_climb(const LaneClimb*, int64_t);
void jaxglmm_gaussian_profile(const GaussianLanes*, int64_t);
void jaxglmm_gaussian_climb(const GaussianLanes*, int64_t);
}

namespace {

void check_climb() {
  constexpr int64_t B = 45, G = 6, kRows = 40, p = 3;
  Doubles X = any(B * kRows * p), y = binary(B * kRows), z = any(2 * B * kRows);
  Longs place(B), which;
  Ints begin;
  for (int64_t b = 0; b < B; ++b) {
    place[b] = b * kRows;
    if (b % 4) which.push_back(b);
    for (int64_t g = 0; g <= G; ++g)
      begin.push_back(static_cast<int32_t>(std::min(g * (5 + b % 4), kRows - b % 7)));
  }
  const int64_t k = which.size();
  for (int64_t S : {int64_t{0}, int64_t{1}, int64_t{2}})
    for (bool bad : {false, true}) {
      const int64_t effects = std::max<int64_t>(S, 1), triangle = S * (S + 1) / 2, m = p + triangle;
      if (bad) X[5 * kRows * p + 4] = kNaN, y[9 * kRows] = kNaN;
      Doubles block(k * triangle * triangle), points(effects, 0.0), log_weights = {0.0},
                                                                    modes(B * G * effects);
      for (int64_t f = 0; f < k; ++f)
        for (int64_t t = 0; t < triangle; ++t) block[(f * triangle + t) * triangle + t] = 1;
      std::vector<uint8_t> even(m);
      for (int64_t i = p; i < m; ++i) even[i] = triangle == 1 || i != p + 1;
      agree("lane_climb, " + std::to_string(S) + " effects" + (bad ? ", NaN" : ""), [&](int64_t threads) {
        Doubles x(k * m, 0.2), value(k), gradient(k * m), hessian(k * m * m), decrement(k), move(k * m);
        Doubles spread(k * (3 * effects + 1));
        Longs reason(k), evaluations(k);
        std::fill(modes.begin(), modes.end(), 0.0);
        LaneClimb q = {};
        q.lanes = {X.data(),
                   y.data(),
                   nullptr,
                   nullptr,
                   z.data(),
                   place.data(),
                   place.data(),
                   begin.data(),
                   G + 1,
                   B * kRows,
                   p,
                   effects,
                   G,
                   0,
                   static_cast<int64_t>(Family::logit),
                   nullptr,
                   0,
                   nullptr,
                   S ? points.data() : nullptr,
                   S ? log_weights.data() : nullptr,
                   1,
                   1,
                   S ? modes.data() : nullptr,
                   nullptr,
                   nullptr,
                   nullptr,
                   nullptr};
        q.which = which.data(), q.fits = k, q.entries = q.triangle = triangle,
        q.block = S ? block.data() : nullptr;
        q.rules = {m, even.data(), 1e-10, 30, -1, 0.0};
        q.x = x.data(), q.value = value.data(), q.gradient = gradient.data(), q.hessian = hessian.data();
        q.decrement = decrement.data(), q.move = move.data(), q.reason = reason.data(),
        q.evaluations = evaluations.data();
        q.spread = S ? nullptr : spread.data();
        if (jaxglmm_lane_climb(&q, threads)) return Bytes();
        return Bytes() << x << value << gradient << hessian << decrement << move << reason << evaluations;
      });
    }
}

void check_gaussian() {
  constexpr int64_t B = 70, G = 5, p = 3;
  for (int64_t S : {1, 2, 3})
    for (bool bad : {false, true})
      for (int64_t reml : {0, 1}) {
        // Cross products of rows (z, x, r), all columns of X that z has first; other responses for each lane.
        const int64_t n = 9, Q = S * (S + 1) / 2;
        Doubles ztz(S * S * G * B), ztx(p * S * G * B), ztr(S * G * B), xx(p * p * B), xr(p * B), rr(B);
        const Doubles rows(B, static_cast<double>(G * n)), log_weights(B);
        for (int64_t b = 0; b < B; ++b)
          for (int64_t g = 0; g < G; ++g)
            for (int64_t i = 0; i < n; ++i) {
              const double x[p] = {1, draw(), draw()}, r = draw();
              for (int64_t a = 0; a < S; ++a) {
                for (int64_t c = 0; c < S; ++c) ztz[((a * S + c) * G + g) * B + b] += x[a] * x[c];
                for (int64_t c = 0; c < p; ++c) ztx[((c * S + a) * G + g) * B + b] += x[c] * x[a];
                ztr[(a * G + g) * B + b] += x[a] * r;
              }
              for (int64_t a = 0; a < p; ++a) {
                for (int64_t c = 0; c < p; ++c) xx[(a * p + c) * B + b] += x[a] * x[c];
                xr[a * B + b] += x[a] * r;
              }
              rr[b] += r * r;
            }
        if (bad) ztz[3] = kNaN, rr[5] = kNaN, xx[7] = kNaN, xr[9] = kNaN;
        Longs row, column, which(B);
        for (int64_t c = 0; c < S; ++c)
          for (int64_t r = c; r < S; ++r) row.push_back(r), column.push_back(c);
        for (int64_t b = 0; b < B; ++b) which[b] = b;
        const Doubles scale(B * Q, 0.8);
        std::vector<uint8_t> even(Q);
        for (int64_t e = 0; e < Q; ++e) even[e] = row[e] == column[e];
        for (bool climbs : {false, true})
          agree("gaussian_" + std::string(climbs ? "climb" : "profile") + ", " + std::to_string(S) +
                    " effects" + (reml ? ", REML" : "") + (bad ? ", NaN" : ""),
                [&](int64_t threads) {
                  Doubles x(B * Q, 0.5), value(B), gradient(B * Q), hessian(B * Q * Q), decrement(B),
                      move(B * Q), rss(B), c(B * p);
                  Doubles inverse(B * p * p), load(B * p * Q), bend(B * Q * Q), rss1(B * Q), rss2(B * Q * Q),
                      log_det2(B * Q * Q);
                  Doubles q_xx(B * p * p);
                  Longs reason(B), evaluations(B);
                  const GaussianLanes q = {p,
                                           S,
                                           G,
                                           Q,
                                           reml,
                                           row.data(),
                                           column.data(),
                                           {ztz.data(), B, 1},
                                           {ztx.data(), B, 1},
                                           {ztr.data(), B, 1},
                                           {xx.data(), B, 1},
                                           {xr.data(), B, 1},
                                           {rr.data(), B, 1},
                                           {rows.data(), B, 1},
                                           {log_weights.data(), B, 1},
                                           which.data(),
                                           B,
                                           scale.data(),
                                           {Q, even.data(), 1e-10, 40, -1, 0.0},
                                           x.data(),
                                           value.data(),
                                           gradient.data(),
                                           hessian.data(),
                                           decrement.data(),
                                           move.data(),
                                           reason.data(),
                                           evaluations.data(),
                                           rss.data(),
                                           c.data(),
                                           inverse.data(),
                                           load.data(),
                                           bend.data(),
                                           rss1.data(),
                                           rss2.data(),
                                           log_det2.data(),
                                           q_xx.data()};
                  (climbs ? jaxglmm_gaussian_climb : jaxglmm_gaussian_profile)(&q, threads);
                  return Bytes() << x << value << gradient << hessian << move << rss << c << inverse << load
                                 << bend << rss2 << log_det2 << q_xx << reason;
                });
      }
}

}  // namespace

int main() {
  check_climb(), check_gaussian();
  return good ? 0 : 1;
}
