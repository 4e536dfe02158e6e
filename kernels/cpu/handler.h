// What every handler needs: the export macro and the rule for leading axes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fused_pass.h"
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

// Whether sizes of short blocks and pieces of 32 rows make up the slots; empty where they do.
inline std::string shape_fault(int64_t n_sizes, int64_t n_pieces, int64_t block, int64_t slots) {
  const auto text = [](int64_t v) { return std::to_string(v); };
  if (block <= 0) return "block = " + text(block) + " has no slots";
  if (n_sizes * block + n_pieces * 32 != slots)
    return "found " + text(n_sizes) + " blocks of " + text(block) + " slots and " + text(n_pieces) +
           " pieces of 32 in " + text(slots) + " slots";
  if (n_pieces && (block % 32 || n_pieces % (block / 32)))
    return text(n_pieces) + " pieces of 32 do not fill blocks of " + text(block);
  return "";
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

// An operand or a result: item b of the batch.
struct Numbers {
  Column column;
  Leading lead;
  int64_t length;  // of one item
  Column at(int64_t b) const { return column.from(lead.at(b) * length); }
};
struct Integers {
  const int32_t* data;
  Leading lead;
  int64_t length;
  const int32_t* at(int64_t b) const { return data + lead.at(b) * length; }
};
struct Result {
  MutableColumn column;
  int64_t length;
  MutableColumn at(int64_t b) const { return column.from(b * length); }
};

// Takes operands and results one by one and remembers the first that is not as it must be. Each is given by
// its shape behind the leading axes, where -1 fits any size.
class Operands {
 public:
  using Core = std::vector<int64_t>;

  explicit Operands(Dimensions batch) : batch_(batch) {}

  const std::string& wrong() const { return wrong_; }
  int64_t items() const {
    int64_t count = 1;
    for (size_t i = 0; i < batch_.size(); ++i) count *= batch_[i];
    return count;
  }

  Numbers numbers(const char* name, const ffi::AnyBuffer& buffer, const Core& core) {
    const Leading lead = check(name, buffer.dimensions(), core, false);
    return {{buffer.untyped_data(), narrow(name, buffer.element_type())},
            lead,
            length(buffer.dimensions(), core)};
  }
  Integers integers(const char* name, const ffi::Buffer<ffi::S32>& buffer, const Core& core) {
    const Leading lead = check(name, buffer.dimensions(), core, false);
    return {buffer.typed_data(), lead, length(buffer.dimensions(), core)};
  }
  Result result(const char* name, ffi::Result<ffi::AnyBuffer>& buffer, const Core& core) {
    check(name, buffer->dimensions(), core, true);
    return {{buffer->untyped_data(), narrow(name, buffer->element_type())},
            length(buffer->dimensions(), core)};
  }
  void require(bool fits, const std::string& what) {
    if (!fits && wrong_.empty()) wrong_ = what;
  }

 private:
  Dimensions batch_;
  std::string wrong_;

  Leading check(const char* name, Dimensions dims, const Core& core, bool result) {
    const size_t n = core.size();
    Leading lead(dims, n, batch_, 0);
    bool fits = lead.fits() && (!result || dims.size() == batch_.size() + n);
    for (size_t k = 0; fits && k < n; ++k) fits = dims[dims.size() - n + k] == core[k] || core[k] < 0;
    for (size_t k = 0; fits && result && k < batch_.size(); ++k) fits = dims[k] == batch_[k];
    require(fits, std::string("found ") + name + " " + shape_text(dims) + ", expected (..., " +
                      shape_text({core.data(), core.size()}).substr(1));
    return lead;
  }
  bool narrow(const char* name, ffi::DataType type) {
    require(type == ffi::F32 || type == ffi::F64, std::string(name) + " must be float32 or float64");
    return type == ffi::F32;
  }
  static int64_t length(Dimensions dims, const Core& core) {
    int64_t count = 1;
    for (size_t k = 0; k < core.size() && k < dims.size(); ++k) count *= dims[dims.size() - 1 - k];
    return count;
  }
};

}  // namespace jaxglmm
