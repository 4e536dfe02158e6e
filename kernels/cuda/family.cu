// The passes of family JAXGLMM_FAMILY for JAXGLMM_EFFECTS effects a group: a source for each, since ptxas
// takes its time.
#include "grid.h"
#include "launch.h"
#include "run.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

template <>
cudaError_t run_pass<JAXGLMM_FAMILY, JAXGLMM_EFFECTS>(cudaStream_t stream, const Pass& p) {
  Grid grid{stream};
  run_family<Grid, JAXGLMM_FAMILY, JAXGLMM_EFFECTS>(grid, p);
  return grid.error;
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
