// The fused pass for one target: compiled once for each, with JAXGLMM_TARGET its name and JAXGLMM_LANES its
// width.
#include "fused_group.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {
namespace {

template <class F>
void add(const Problem& q, const Tile& tile, double* workspace, const Sums& sums) {
  TilePass<F>(q, tile, workspace, sums).run();
}

void add_tile(const Problem& q, const Tile& tile, double* workspace, const Sums& sums) {
  static constexpr decltype(&add<Logit>) kAdd[kFamilies] = {
      add<Gaussian>, add<Logit>, add<Probit>, add<Cloglog>, add<Poisson>, add<NegativeBinomial>, add<Gamma>};
  kAdd[static_cast<int>(q.family)](q, tile, workspace, sums);
}

void elementary(int which, int64_t n, const double* x, double* out) {
  for (int64_t i = 0; i < n; ++i) {
    const V v = splat(x[i]);
    out[i] = (which == 0 ? exp(v) : which == 1 ? log(v) : log1p(v))[0];
  }
}

}  // namespace

#define JAXGLMM_TEXT_OF(x) #x
#define JAXGLMM_TEXT(x) JAXGLMM_TEXT_OF(x)
extern const Target target;
const Target target = {JAXGLMM_TEXT(JAXGLMM_TARGET), kLanes,   padded_columns,
                       TilePass<Logit>::workspace,   add_tile, elementary};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
