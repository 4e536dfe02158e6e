// What the library, the CPU's or the one for CUDA, says of itself, read by jaxglmm/ops/native.py before
// anything is registered.
#include "xla/ffi/api/c_api.h"

#define JAXGLMM_EXPORT extern "C" __attribute__((visibility("default")))

// The XLA FFI version of the headers. A jaxlib that speaks an older one would refuse the handlers and fail on
// its next operation of any kind, so the loader compares first.
JAXGLMM_EXPORT int jaxglmm_ffi_api_major() { return XLA_FFI_API_MAJOR; }
JAXGLMM_EXPORT int jaxglmm_ffi_api_minor() { return XLA_FFI_API_MINOR; }

// Raised whenever an operand, an attribute or a result of a handler changes, together with KERNELS in
// jaxglmm/ops/native.py: a library left over from older sources is then named, not called.
JAXGLMM_EXPORT int jaxglmm_kernels_version() { return 16; }

// The handlers, by symbol name, separated by spaces.
JAXGLMM_EXPORT const char* jaxglmm_handlers() {
#if defined(JAXGLMM_CUDA)
  return "jaxglmm_group_total jaxglmm_fused_pass jaxglmm_group_modes jaxglmm_group_push";
#else
  return "jaxglmm_group_total jaxglmm_fused_pass jaxglmm_group_modes jaxglmm_group_push "
         "jaxglmm_group_moments jaxglmm_group_effects jaxglmm_pair_product jaxglmm_pair_outer "
         "jaxglmm_row_sums "
         "jaxglmm_sampled_product jaxglmm_nested_pass jaxglmm_shifted_pass";
#endif
}
