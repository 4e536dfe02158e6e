// Tile storage: how a block of rows sorted by group lies in memory. For host and device.
//
// Rows come in uniform blocks of R slots. A block holds groups of one size class c, which divides R, as a
// row-major (c, R / c) array: all first rows of its groups, then all second rows, and so on. Neighbours in
// memory belong to different groups, so an operation on groups is an operation on contiguous vectors.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define JAXGLMM_HD __host__ __device__
#else
#define JAXGLMM_HD
#endif

// Waits for the other threads of the block.
#if defined(__CUDA_ARCH__)
#define JAXGLMM_SYNC() __syncthreads()
#elif defined(JAXGLMM_HOST_GRID)
#define JAXGLMM_SYNC() ::jaxglmm::host_grid::sync()
#else
#define JAXGLMM_SYNC()
#endif

namespace jaxglmm {

JAXGLMM_HD constexpr bool is_class_size(int64_t size, int64_t slots) {
  return size >= 1 && size <= slots && slots % size == 0;
}

}  // namespace jaxglmm
