// Very many fits, evaluated at a point each: a plain function on the caller's arrays, on threads of its own.
// See jaxglmm/ops/lane_pass.py.
#include "lane_pass.h"

#include "threads.h"

namespace jaxglmm {
namespace {

// False when memory ran out.
bool evaluate(const LaneProblem& q, int64_t threads) {
  const LaneTarget& target = best_lane_target();
  const auto add = q.spread ? target.fixed : target.marginal[q.effects - 1];
  const int64_t largest = largest_group(q, q.which, q.fits);
  const int64_t vectors = (q.fits + target.lanes - 1) / target.lanes;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  for_each(std::min(threads, vectors), threads, [&](int64_t) {
    const Workspace memory = workspace(target.workspace(q, largest));
    if (!memory) {
      failed = true;
      return;
    }
    for (int64_t v; (v = next.fetch_add(1)) < vectors;) add(q, v * target.lanes, memory.get());
  });
  return !failed;
}

}  // namespace
}  // namespace jaxglmm

JAXGLMM_EXPORT int jaxglmm_lanes(const jaxglmm::LaneProblem* problem, int64_t threads) {
  return jaxglmm::evaluate(*problem, threads) ? 0 : 1;
}
