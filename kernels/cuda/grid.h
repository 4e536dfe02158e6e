// A GPU's grid.
#pragma once

#include <cuda_runtime.h>

#include "pass.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

template <class Body>
__global__ void __launch_bounds__(kThreads) each_block(const Body body) {
  __shared__ double shared[kThreads];
  body(Team{threadIdx.x, kThreads, shared}, blockIdx.x);
}

// Launches one after the other on a stream; the first error stays.
struct Grid {
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;

  template <class Body>
  void launch(int64_t blocks, const Body& body) {
    if (error != cudaSuccess || blocks == 0) return;
    each_block<<<static_cast<unsigned>(blocks), static_cast<unsigned>(kThreads), 0, stream>>>(body);
    error = cudaGetLastError();
  }
};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
