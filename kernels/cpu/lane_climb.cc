// Newton's method in very many fits, each at its own pace: a lane that has come to its end takes the next
// fit. See jaxglmm/ops/lane_pass.py.
#include "lane_climb.h"

#include "threads.h"

namespace jaxglmm {

namespace {

// The fits that one thread works on.
class Climbers {
 public:
  Climbers(const LaneClimb& climb, const LaneTarget& target, double* memory, std::atomic<int64_t>& next)
      : q(climb),
        evaluate(climb.entries ? target.marginal[climb.lanes.effects - 1] : target.fixed),
        memory(memory),
        next(next),
        p(climb.lanes.columns),
        width(p + climb.triangle + 1),
        spread_width(3 * climb.lanes.effects + 1) {
    for (int64_t j = 0; j < target.lanes; ++j) free.emplace_back(q.rules);
    const int64_t L = target.lanes, m = q.rules.m;
    which.resize(L), psi.resize(L * width), value.resize(L), gradient.resize(L * width),
        spread.resize(L * spread_width);
    hessian.resize(L * width * width), own_gradient.resize(m), own_hessian.resize(m * m);
    half.resize(width * m);
    local = q.lanes;
    local.which = which.data(), local.psi = psi.data(), local.value = value.data(),
    local.gradient = gradient.data();
    local.hessian = hessian.data(), local.spread = q.entries ? nullptr : spread.data();
  }

  void run() {
    for (;;) {
      while (busy.size() < which.size() && begin_next()) {
      }
      if (busy.empty()) return;
      local.fits = busy.size();
      for (size_t j = 0; j < busy.size(); ++j) {
        which[j] = q.which[busy[j].fit];
        to_psi(busy[j].newton.trial.data(), busy[j].fit, psi.data() + j * width);
      }
      evaluate(local, 0, memory);
      size_t left = 0;
      for (size_t j = 0; j < busy.size(); ++j) {
        if (take(busy[j], j)) {
          if (left != j) std::swap(busy[left], busy[j]);
          ++left;
        }
      }
      while (busy.size() > left) free.push_back(std::move(busy.back().newton)), busy.pop_back();
    }
  }

 private:
  struct Climber {
    int64_t fit;
    Newton newton;
  };

  const LaneClimb& q;
  void (*evaluate)(const LaneProblem&, int64_t, double*);
  double* memory;
  std::atomic<int64_t>& next;
  const int64_t p, width, spread_width;
  LaneProblem local;
  std::vector<Newton> free;
  std::vector<Climber> busy;
  std::vector<int64_t> which;
  std::vector<double> psi, value, gradient, hessian, spread, own_gradient, own_hessian, half;

  bool begin_next() {
    const int64_t k = next.fetch_add(1), m = q.rules.m;
    if (k >= q.fits) return false;
    busy.push_back({k, std::move(free.back())}), free.pop_back();
    busy.back().newton.begin({q.x + k * m, q.value + k, q.gradient + k * m, q.hessian + k * m * m,
                              q.decrement + k, q.move + k * m, q.reason + k, q.evaluations + k});
    return true;
  }

  void to_psi(const double* x, int64_t fit, double* to) const {
    std::copy_n(x, p, to), std::fill_n(to + p, width - p, 0.0);
    const double* block = q.block + fit * q.triangle * q.entries;
    for (int64_t t = 0; t < q.triangle; ++t)
      for (int64_t e = 0; e < q.entries; ++e) to[p + t] += block[t * q.entries + e] * x[p + e];
  }

  // Evaluation j, in the unknowns.
  bool take(Climber& c, int64_t j) {
    const int64_t m = q.rules.m;
    const double *g = gradient.data() + j * width, *H = hessian.data() + j * width * width;
    const double* block = q.block + c.fit * q.triangle * q.entries;
    // v (p + triangle,), `step` apart, times the derivative of (beta, triangle) in the unknowns.
    const auto turn = [&](const double* v, int64_t step, double* to, int64_t to_step) {
      for (int64_t a = 0; a < p; ++a) to[a * to_step] = v[a * step];
      for (int64_t e = 0; e < q.entries; ++e) {
        double sum = 0;
        for (int64_t t = 0; t < q.triangle; ++t) sum += v[(p + t) * step] * block[t * q.entries + e];
        to[(p + e) * to_step] = sum;
      }
    };
    turn(g, 1, own_gradient.data(), 1);
    for (int64_t i = 0; i < p + q.triangle; ++i) turn(H + i * width, 1, half.data() + i * m, 1);
    for (int64_t b = 0; b < m; ++b) turn(half.data() + b, m, own_hessian.data() + b, m);
    bool kept = false;
    const bool goes_on = c.newton.take(value[j], own_gradient.data(), own_hessian.data(), &kept);
    if (kept && q.spread)
      std::copy_n(spread.begin() + j * spread_width, spread_width, q.spread + c.fit * spread_width);
    return goes_on;
  }
};

bool climb(const LaneClimb& q, int64_t threads) {
  const LaneTarget& target = best_lane_target();
  const int64_t largest = largest_group(q.lanes, q.which, q.fits);
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  for_each(std::min(threads, (q.fits + target.lanes - 1) / target.lanes), threads, [&](int64_t) {
    const Workspace memory = workspace(target.workspace(q.lanes, largest));
    if (memory)
      Climbers(q, target, memory.get(), next).run();
    else
      failed = true;
  });
  return !failed;
}

}  // namespace
}  // namespace jaxglmm

JAXGLMM_EXPORT int jaxglmm_lane_climb(const jaxglmm::LaneClimb* problem, int64_t threads) {
  return jaxglmm::climb(*problem, threads) ? 0 : 1;
}
