// Very many fits by one target: without random effects, and what the target offers.
#include <algorithm>
#include <cmath>

#include "jaxglmm/group_pass.h"
#include "lane_rows.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

template <int S>
void lane_marginal(const LaneProblem& q, int64_t first, double* memory);
template <>
void lane_marginal<1>(const LaneProblem& q, int64_t first, double* memory);
template <>
void lane_marginal<2>(const LaneProblem& q, int64_t first, double* memory);

namespace {

// Doubles for the larger of the two evaluations.
int64_t workspace(const LaneProblem& q, int64_t largest) {
  const int64_t p = q.columns, S = kMostLaneEffects, form = S + pairs_of(S), unknowns = pairs_of(S);
  const int64_t pairs = q.nodes == 1 ? 0 : largest * (largest + 1) / 2;
  const int64_t sums = 1 + unknowns + pairs_of(unknowns) + p * (1 + unknowns) + p * (p + 1) / 2;
  return kLanes * (Rows<kMostLaneEffects>::arrays * largest + S + pairs + 2 * largest * p + p + unknowns +
                   4 * form * p + sums + 3 * S + 1);
}

// value, gradient and Hessian in (beta, log dispersion), and in each effect (1/2) sum_g [(sum z s)^2 - sum
// z^2 w], sum_g (sum z^2 w)^2 and sum z^2 w; the largest |eta|.
template <class F>
class LaneFixed {
 public:
  LaneFixed(const LaneProblem& problem, int64_t first, double* memory)
      : q(problem), fits(problem, first), p(q.columns), m(p + 1), memory(memory) {}

  void run() {
    int64_t largest = 1;
    for (int64_t g = 0; g < q.groups; ++g) largest = std::max(largest, fits.size(g));
    double* at = memory;
    const auto take = [&](int64_t vectors) {
      double* begin = at;
      at += vectors * kLanes;
      return begin;
    };
    group = {take(largest), take(largest), take(largest), nullptr, nullptr, largest * kLanes};
    group.z = take(q.effects * largest), group.x = take(largest * p);
    s = take(largest), scaled = take(largest * p), beta = take(p);
    gradient = take(p), hessian = take(p * (p + 1) / 2), spread = take(3 * q.effects + 1);
    for (int64_t c = 0; c < p; ++c) store(beta + c * kLanes, fits.parameter(c, m));
    std::fill_n(gradient, (p + p * (p + 1) / 2 + 3 * q.effects + 1) * kLanes, 0.0);
    for (int64_t g = 0; g < q.groups; ++g)
      if (const int64_t size = fits.size(g)) {
        group.load(fits, g, size);
        if (q.shared)
          add_group(SharedColumns{q.X + (fits.design[0] + fits.begin[0][g]) * p, p}, size);
        else
          add_group(OwnColumns{group.x, p}, size);
      }
    write();
  }

 private:
  const LaneProblem& q;
  const LaneFits fits;
  const int64_t p, m;
  double* memory;
  LaneGroup group;
  double *s, *scaled, *beta, *gradient, *hessian, *spread;
  V value{};

  template <class Columns>
  void add_group(const Columns& x, int64_t size) {
    group.add_linear(x, beta, p, size);
    V score[kMostLaneEffects] = {}, square[kMostLaneEffects] = {},
      largest = load(spread + 3 * q.effects * kLanes);
    const Dispersion none = dispersion_of(0.0);
    for (int64_t i = 0; i < size; ++i) {
      const V weight = load(group.weight + i * kLanes), eta = load(group.eta + i * kLanes);
      const M live = weight > 0.0;
      const Row f = F::row(eta, load(group.y + i * kLanes), none);
      const V slope = select(live, weight * f.s, V{}), w = select(live, weight * f.w, V{});
      value += select(live, weight * f.l, V{});
      largest = select(live & ~(magnitude(eta) <= largest), magnitude(eta), largest);
      store(s + i * kLanes, slope);
      for (int64_t c = 0; c < p; ++c) store(scaled + (i * p + c) * kLanes, -w * x(i, c));
      for (int64_t a = 0; a < q.effects; ++a) {
        const V z = load(group.z + a * group.z_stride + i * kLanes);
        score[a] += z * slope, square[a] += z * z * w;
      }
    }
    add_weighted(s, x, size, p, gradient);
    add_outer(OwnColumns{scaled, p}, x, size, p, hessian);
    const auto add = [&](int64_t which, V v) {
      double* to = spread + which * kLanes;
      store(to, load(to) + v);
    };
    for (int64_t a = 0; a < q.effects; ++a) {
      add(a, 0.5 * (score[a] * score[a] - square[a]));
      add(q.effects + a, square[a] * square[a]), add(2 * q.effects + a, square[a]);
    }
    store(spread + 3 * q.effects * kLanes, largest);
  }

  void write() const {
    for (int64_t j = 0; j < fits.lanes; ++j) {
      const int64_t b = fits.first + j;
      double *slope = q.gradient + b * m, *H = q.hessian + b * m * m;
      std::fill_n(H, m * m, 0.0);
      q.value[b] = value[j], slope[m - 1] = 0.0;
      const double* at = hessian + j;
      for (int64_t c = 0; c < p; ++c) {
        slope[c] = gradient[c * kLanes + j];
        for (int64_t d = c; d < p; ++d, at += kLanes) H[c * m + d] = H[d * m + c] = *at;
      }
      for (int64_t k = 0; k < 3 * q.effects + 1; ++k)
        q.spread[b * (3 * q.effects + 1) + k] = spread[k * kLanes + j];
    }
  }
};

void fixed(const LaneProblem& q, int64_t first, double* memory) {
  switch (static_cast<Family>(q.family)) {
    case Family::logit:
      return LaneFixed<Logit>(q, first, memory).run();
    case Family::probit:
      return LaneFixed<Probit>(q, first, memory).run();
    case Family::cloglog:
      return LaneFixed<Cloglog>(q, first, memory).run();
    default:
      return LaneFixed<Poisson>(q, first, memory).run();
  }
}

}  // namespace

extern const LaneTarget lane_target;
const LaneTarget lane_target = {kLanes, workspace, {lane_marginal<1>, lane_marginal<2>}, fixed};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
