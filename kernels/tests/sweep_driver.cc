// The passes over groups without XLA, for the sanitizers (jaxlib is not instrumented) and for arm64: tiles of
// every class and long groups, several effects, both widths of storage, on plain threads that share the data
// as XLA's do.
//
//   kernels/tests/sanitize.sh [address|thread]
//   kernels/tests/arm64.sh
//
// Prints the value and gradient norm of each problem; the sums of two runs on threads and of one without must
// agree to the last bit.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <thread>
#include <vector>

#include "fused_pass.h"
#include "lane_pass.h"

extern "C" int jaxglmm_lanes(const jaxglmm::LaneProblem* problem, int64_t threads);

using namespace jaxglmm;

namespace {

constexpr int64_t kBlock = 480, kColumns = 5, kLong = 15;
constexpr int32_t kSizes[] = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32};

// Numbers between -1 and 1 that are the same everywhere.
struct Random {
  uint64_t state = 88172645463325252ull;
  double operator()() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<double>(state >> 11) * 0x1p-52 - 1.0;
  }
};

template <typename T>
struct Data {
  int64_t slots = (std::size(kSizes) + 1) * kBlock;
  std::vector<T> X, y, weight, offset, z, start, modes, d_eta, curvature, pushed;

  explicit Data(int64_t effects) {
    Random random;
    const auto fill = [&](std::vector<T>& v, int64_t n, auto f) {
      v.resize(n);
      for (T& x : v) x = static_cast<T>(f());
    };
    fill(X, slots * kColumns, [&] { return random(); });
    fill(y, slots, [&] { return random() > 0 ? 1.0 : 0.0; });
    fill(weight, slots, [&] { return std::floor(2 + 2 * random()); });
    fill(offset, slots, [&] { return 0.3 * random(); });
    fill(z, effects * slots, [&] { return 1 + 0.5 * random(); });
    fill(start, effects * slots, [] { return 0.0; });
    modes = start, d_eta = offset, pushed = offset;
    curvature.resize(effects * (effects + 1) / 2 * slots);
  }
};

// What sweep.cc does with XLA's threads.
std::vector<double> evaluate(const Problem& q, int threads) {
  const Target& target = best_target();
  const Sums shape = {nullptr, target.padded(q.columns), q.unknowns()};
  std::vector<Tile> tiles;
  for (size_t b = 0; b < std::size(kSizes); ++b) {
    const int64_t size = kSizes[b], lanes = kBlock / size, step = (lanes + 1) / 2;
    for (int64_t lane = 0; lane < lanes; lane += step)
      tiles.push_back(
          {false, size, std::min(step, lanes - lane), static_cast<int64_t>(b) * kBlock + lane, lanes, 0});
  }
  const int64_t base = std::size(kSizes) * kBlock;
  tiles.push_back({true, 32, 4, 0, kLong, base});
  tiles.push_back({true, 32, kLong - 4, 4, kLong, base});
  std::vector<std::vector<double>> sums(tiles.size(), std::vector<double>(shape.size() + 8));
  const auto work = [&](size_t from) {
    for (size_t i = from; i < tiles.size(); i += threads) {
      std::vector<double> memory(target.workspace[q.effects - 1](q, tiles[i]) + 8);
      const auto aligned = [](std::vector<double>& v) {
        return v.data() + (64 - reinterpret_cast<uintptr_t>(v.data()) % 64) % 64 / 8;
      };
      target.add[q.effects - 1](q, tiles[i], aligned(memory),
                                {aligned(sums[i]), shape.padded, shape.unknowns});
      sums[i] = std::vector<double>(aligned(sums[i]), aligned(sums[i]) + shape.size());
    }
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(work, t);
  work(0);
  for (std::thread& t : pool) t.join();
  std::vector<double> total(shape.size());
  for (const auto& s : sums)
    for (size_t k = 0; k < total.size(); ++k) total[k] += s[k];
  return total;
}

template <typename T>
bool check(Family family, int64_t effects, int64_t per_effect, bool group_modes) {
  Data<T> data(effects);
  if (family == Family::gamma)
    for (T& y : data.y) y += 1;
  const bool narrow = sizeof(T) == 4;
  const auto column = [&](const std::vector<T>& v) { return Column{v.data(), narrow}; };
  const auto to = [&](std::vector<T>& v) { return MutableColumn{v.data(), narrow}; };
  std::vector<double> beta(64, 0.1), factor = {0.7, 0.2, -0.1, 0.5, 0.3, 0.4}, points, log_weights,
                                     direction(7, 0.5);
  int64_t nodes = 1;
  for (int64_t a = 0; a < effects; ++a) nodes *= per_effect;
  for (int64_t a = 0, stride = 1; a < effects; ++a, stride *= per_effect)
    for (int64_t k = 0; k < nodes; ++k)
      points.push_back(per_effect == 1 ? 0.0 : k / stride % per_effect - 1.0);
  log_weights.assign(nodes, -0.5);
  Problem q;
  q.X = column(data.X), q.y = column(data.y), q.weight = column(data.weight), q.offset = column(data.offset);
  q.z = column(data.z), q.start = column(data.start), q.modes = to(data.modes);
  for (size_t c = kColumns; c < beta.size(); ++c) beta[c] = 0.0;
  q.beta = beta.data(), q.factor = factor.data(), q.log_phi = 0.2;
  q.points = points.data(), q.log_weights = log_weights.data();
  q.slots = data.slots, q.columns = group_modes ? 0 : kColumns, q.effects = effects, q.stride = nodes,
  q.nodes = nodes;
  q.block = kBlock, q.family = family, q.determinant = true, q.second = true;
  if (group_modes) {
    q.X = {}, q.d_eta = to(data.d_eta), q.curvature = to(data.curvature), q.pushed = to(data.pushed);
    q.t_eta = column(data.offset), q.t_unknowns = direction.data();
  }
  const std::vector<double> one = evaluate(q, 1), two = evaluate(q, 3), three = evaluate(q, 3);
  double norm = 0;
  for (double v : one) norm += v * v;
  const bool good = one == two && two == three && std::isfinite(norm);
  std::printf("family %d, %d effects, %3d nodes, float%d%s: %.10g, sums %.10g%s\n", static_cast<int>(family),
              static_cast<int>(effects), static_cast<int>(nodes), narrow ? 32 : 64,
              group_modes ? ", eta given" : "", one[0], std::sqrt(norm), good ? "" : "  DIFFER");
  return good;
}

// Largest error of exp, log and log1p in units of the last place, against long double where that is longer.
bool check_elementary() {
  Random random;
  std::vector<double> x[3];
  for (int i = 0; i < 20000; ++i) {
    const double u = random();
    x[0].push_back(i % 2 ? 708 * u : 2 * u);
    for (int k : {1, 2}) x[k].push_back(std::exp(700 * u));
    x[1].push_back(i % 2 ? 1.25 + 0.75 * random() : 1 + 1e-6 * random());
    x[2].push_back(i % 2 ? 0.5 + 1.499 * random() : std::exp(30 * random() - 30));
  }
  long double (*const exact[])(long double) = {std::exp, std::log, std::log1p};
  bool good = true;
  const char* const names[] = {"exp", "log", "log1p"};
  for (int which : {0, 1, 2}) {
    std::vector<double> out(x[which].size());
    best_target().elementary(which, out.size(), x[which].data(), out.data());
    long double worst = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      const long double want = exact[which](x[which][i]);
      const double size = std::fabs(static_cast<double>(want));
      worst = std::max(worst, std::fabs(out[i] - want) / (std::nextafter(size, INFINITY) - size));
    }
    std::printf("%s: %.2f ulp\n", names[which], static_cast<double>(worst));
    good &= worst <= 2;
  }
  return good;
}

// Fits of several sizes, with groups that some of them lack; the last vector of fits is not full.
bool check_lanes(int64_t effects, int64_t nodes, bool shared, bool fixed) {
  constexpr int64_t kFits = 21, kGroups = 5, kRows = 40;
  Random random;
  std::vector<double> X(kFits * kRows * kColumns), y(kFits * kRows), z(effects * kFits * kRows),
      modes(kFits * kGroups * 2);
  for (double& v : X) v = random();
  for (double& v : y) v = random() > 0 ? 1.0 : 0.0;
  for (double& v : z) v = random();
  std::vector<int64_t> design(kFits), response(kFits), which;
  std::vector<int32_t> begin;
  for (int64_t b = 0; b < kFits; ++b) {
    design[b] = shared ? 0 : b * kRows, response[b] = b * kRows;
    if (b % 4) which.push_back(b);
    for (int64_t g = 0; g <= kGroups && (b == 0 || !shared); ++g)
      begin.push_back(static_cast<int32_t>(std::min(g * (5 + b % 4), shared ? kRows : kRows - b)));
  }
  const int64_t k = static_cast<int64_t>(which.size()), unknowns = fixed ? 0 : effects * (effects + 1) / 2;
  const int64_t m = kColumns + unknowns + 1;
  std::vector<double> psi(k * m, 0.3), points(effects * nodes, 0.4), log_weights(nodes, -0.5);
  const auto evaluate_lanes = [&](int64_t threads) {
    std::vector<double> value(k), gradient(k * m), hessian(k * m * m), spread(k * (3 * effects + 1));
    std::fill(modes.begin(), modes.end(), 0.0);
    const LaneProblem q = {X.data(),
                           y.data(),
                           nullptr,
                           nullptr,
                           z.data(),
                           design.data(),
                           response.data(),
                           begin.data(),
                           shared ? 0 : kGroups + 1,
                           kFits * kRows,
                           kColumns,
                           effects,
                           kGroups,
                           shared,
                           static_cast<int64_t>(Family::logit),
                           which.data(),
                           k,
                           psi.data(),
                           points.data(),
                           log_weights.data(),
                           nodes,
                           nodes,
                           modes.data(),
                           value.data(),
                           gradient.data(),
                           hessian.data(),
                           fixed ? spread.data() : nullptr};
    jaxglmm_lanes(&q, threads);
    value.insert(value.end(), hessian.begin(), hessian.end());
    return value;
  };
  const std::vector<double> one = evaluate_lanes(1), three = evaluate_lanes(3);
  const bool good = one == three && std::isfinite(one[0]);
  std::printf("lanes, %d effects, %d nodes%s%s: %.10g%s\n", static_cast<int>(effects),
              static_cast<int>(nodes), shared ? ", one design" : "", fixed ? ", fixed" : "", one[0],
              good ? "" : "  DIFFER");
  return good;
}

}  // namespace

int main() {
  bool good = check_elementary();
  for (int family = 0; family < kFamilies; ++family)
    good &= check<double>(static_cast<Family>(family), 1, 3, false);
  for (int64_t effects : {1, 2, 3})
    for (int64_t nodes : {1, 3}) {
      good &= check<double>(Family::logit, effects, nodes, false);
      good &= check<float>(Family::negativebinomial, effects, nodes, effects < 3);
    }
  for (int64_t effects : {1, 2})
    for (bool shared : {false, true})
      for (int64_t nodes : {1, 3}) good &= check_lanes(effects, nodes, shared, nodes == 3 && effects == 1);
  return good ? 0 : 1;
}
