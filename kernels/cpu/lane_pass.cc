// Very many fits, evaluated at a point each: a plain function on the caller's arrays, on threads of its own.
// See jaxglmm/ops/lane_pass.py.
#include "lane_pass.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace jaxglmm {
namespace {

constexpr int64_t kAlign = 64;

struct Free {
  void operator()(double* p) const { ::operator delete[](p, std::align_val_t(kAlign)); }
};

// False when memory ran out.
bool evaluate(const LaneProblem& q, int64_t threads) {
  const LaneTarget& target = best_lane_target();
  const auto add = q.spread ? target.fixed : target.marginal[q.effects - 1];
  int64_t largest = 1;
  for (int64_t b = 0; b < q.fits; ++b) {
    const int32_t* begin = q.begin + q.which[b] * q.begin_stride;
    for (int64_t g = 0; g < q.groups; ++g) largest = std::max<int64_t>(largest, begin[g + 1] - begin[g]);
    if (q.begin_stride == 0) break;
  }
  const int64_t vectors = (q.fits + target.lanes - 1) / target.lanes;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    const std::unique_ptr<double[], Free> memory(static_cast<double*>(::operator new[](
        target.workspace(q, largest) * sizeof(double), std::align_val_t(kAlign), std::nothrow)));
    if (!memory) {
      failed = true;
      return;
    }
    for (int64_t v; (v = next.fetch_add(1)) < vectors;) add(q, v * target.lanes, memory.get());
  };
  std::vector<std::thread> others;
  try {
    for (int64_t k = 1; k < std::min(threads, vectors); ++k) others.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads to be had: those that there are do the work
  }
  work();
  for (std::thread& other : others) other.join();
  return !failed;
}

}  // namespace
}  // namespace jaxglmm

extern "C" __attribute__((visibility("default"))) int jaxglmm_lanes(const jaxglmm::LaneProblem* problem,
                                                                    int64_t threads) {
  return jaxglmm::evaluate(*problem, threads) ? 0 : 1;
}
