// The fused pass of one target for JAXGLMM_EFFECTS effects a group, all families.
#include "fused_target.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {
namespace {

template <class F>
void add(const Problem& q, const Tile& tile, double* workspace, const Sums& sums) {
  TilePass<F, JAXGLMM_EFFECTS>(q, tile, workspace, sums).run();
}

}  // namespace

template <>
void add_tile<JAXGLMM_EFFECTS>(const Problem& q, const Tile& tile, double* workspace, const Sums& sums) {
  static constexpr decltype(&add<Logit>) kAdd[kFamilies] = {
      add<Gaussian>, add<Logit>, add<Probit>, add<Cloglog>, add<Poisson>, add<NegativeBinomial>, add<Gamma>};
  kAdd[static_cast<int>(q.family)](q, tile, workspace, sums);
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
