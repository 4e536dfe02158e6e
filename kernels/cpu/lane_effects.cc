// Very many fits by one target, with JAXGLMM_EFFECTS effects a group.
#include <algorithm>
#include <cmath>

#include "lane_marginal.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

template <int S>
void lane_marginal(const LaneProblem& q, int64_t first, double* memory);

template <>
void lane_marginal<JAXGLMM_EFFECTS>(const LaneProblem& q, int64_t first, double* memory) {
  constexpr int S = JAXGLMM_EFFECTS;
  switch (static_cast<Family>(q.family)) {
    case Family::logit:
      return LaneMarginal<Logit, S>(q, first, memory).run();
    case Family::probit:
      return LaneMarginal<Probit, S>(q, first, memory).run();
    case Family::cloglog:
      return LaneMarginal<Cloglog, S>(q, first, memory).run();
    default:
      return LaneMarginal<Poisson, S>(q, first, memory).run();
  }
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
