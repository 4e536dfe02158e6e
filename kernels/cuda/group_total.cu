#include "grid.h"
#include "launch.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

template <typename T>
cudaError_t run_group_total(cudaStream_t stream, int64_t blocks, const GroupTotal<T>& body) {
  Grid grid{stream};
  grid.launch(blocks, body);
  return grid.error;
}

template cudaError_t run_group_total(cudaStream_t, int64_t, const GroupTotal<float>&);
template cudaError_t run_group_total(cudaStream_t, int64_t, const GroupTotal<double>&);

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
