// What the handlers call of the code that nvcc compiles.
#pragma once

#include <cuda_runtime.h>

#include "jaxglmm/families.h"
#include "pass.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

// Places in scratch memory (run.h), for S = 1, 2, 3 effects.
template <int S>
int64_t place_pass(Pass& p, double* scratch);
// All steps of one evaluation.
template <class F, int S>
cudaError_t run_pass(cudaStream_t stream, const Pass& p);

template <typename T>
cudaError_t run_group_total(cudaStream_t stream, int64_t blocks, const GroupTotal<T>& body);

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
