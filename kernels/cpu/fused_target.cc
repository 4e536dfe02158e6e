// The fused pass for one target: compiled once for each, with JAXGLMM_TARGET its name and JAXGLMM_LANES its
// width.
#include "fused_target.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {
namespace {

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
const Target target = {
    JAXGLMM_TEXT(JAXGLMM_TARGET),
    kLanes,
    padded_columns,
    {TilePass<Logit, 1>::workspace, TilePass<Logit, 2>::workspace, TilePass<Logit, 3>::workspace},
    {add_tile<1>, add_tile<2>, add_tile<3>},
    elementary};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
