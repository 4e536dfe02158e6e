// The passes for JAXGLMM_EFFECTS effects a group, all families.
#include "grid.h"
#include "launch.h"
#include "run.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

template <>
int64_t place_pass<JAXGLMM_EFFECTS>(Pass& p, double* scratch) {
  return place<JAXGLMM_EFFECTS>(p, scratch);
}

template <>
cudaError_t run_pass<JAXGLMM_EFFECTS>(cudaStream_t stream, const Pass& p) {
  Grid grid{stream};
  run<Grid, JAXGLMM_EFFECTS>(grid, p);
  return grid.error;
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
