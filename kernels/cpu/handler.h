// What every handler needs: the export macro and the rule for leading axes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "xla/ffi/api/ffi.h"

// Defines the exported handler `name`; list it in library.cc too. Everything else in the library stays
// hidden.
#define JAXGLMM_HANDLER(name, ...)                                                                 \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* name(XLA_FFI_CallFrame* frame); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, __VA_ARGS__)

namespace jaxglmm {

namespace ffi = xla::ffi;
using Dimensions = ffi::Span<const int64_t>;

inline std::string shape_text(Dimensions dims) {
  std::string text = "(";
  for (size_t i = 0; i < dims.size(); ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + ")";
}

// Leading axes as jax.vmap(..., vmap_method="expand_dims") makes them: each operand has any number of them,
// of size 1 or of the result's size, aligned at the right as in NumPy. `at(b)` is the operand's batch item
// for item b of the result.
class Leading {
 public:
  Leading(Dimensions operand, size_t operand_core, Dimensions result, size_t result_core) {
    if (operand.size() < operand_core || result.size() < result_core) return;
    const size_t have = operand.size() - operand_core, want = result.size() - result_core;
    if (have > want) return;
    int64_t step = 1;
    for (size_t i = 1; i <= want; ++i) {  // from the last axis to the first
      const int64_t extent = result[want - i], own = i <= have ? operand[have - i] : 1;
      if (own != 1 && own != extent) return;
      extents_.push_back(extent);
      steps_.push_back(own == 1 ? 0 : step);
      step *= own;
      count_ *= extent;
    }
    fits_ = true;
  }

  bool fits() const { return fits_; }
  int64_t count() const { return count_; }  // batch items of the result

  int64_t at(int64_t b) const {
    int64_t item = 0;
    for (size_t i = 0; i < extents_.size(); ++i) {
      item += b % extents_[i] * steps_[i];
      b /= extents_[i];
    }
    return item;
  }

 private:
  std::vector<int64_t> extents_, steps_;
  int64_t count_ = 1;
  bool fits_ = false;
};

}  // namespace jaxglmm
