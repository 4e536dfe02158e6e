// The caller's own arrays, before there is anything for XLA to run: columns of any type.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "threads.h"

namespace jaxglmm {

// The order of _TYPES in jaxglmm/ops/layout.py.
enum Type : int32_t { kF64, kF32, kI64, kI32, kI16, kI8, kU8, kU16, kU32 };

struct HostColumn {
  const char* at;
  int64_t stride;  // bytes; 0 for a constant
  int32_t type;
};

inline std::vector<HostColumn> columns_of(int64_t count, const void* const* at, const int64_t* stride,
                                          const int32_t* type) {
  std::vector<HostColumn> found;
  for (int64_t j = 0; j < count; ++j) found.push_back({static_cast<const char*>(at[j]), stride[j], type[j]});
  return found;
}

// Calls body(T{}) for the type T of a column's values.
template <typename Body>
void with_type(int32_t type, const Body& body) {
  switch (type) {
    case kF64:
      return body(double{});
    case kF32:
      return body(float{});
    case kI64:
      return body(int64_t{});
    case kI32:
      return body(int32_t{});
    case kI16:
      return body(int16_t{});
    case kI8:
      return body(int8_t{});
    case kU16:
      return body(uint16_t{});
    case kU32:
      return body(uint32_t{});
    default:
      return body(uint8_t{});
  }
}

// Whether numbers lie in 0 ... limit - 1; without branches, so that it costs next to nothing.
template <typename T>
inline bool within(const T* index, int64_t count, int64_t limit) {
  std::make_unsigned_t<T> largest = 0;  // a negative number is larger than any limit
  for (int64_t i = 0; i < count; ++i)
    largest = std::max(largest, static_cast<std::make_unsigned_t<T>>(index[i]));
  return !count || static_cast<uint64_t>(largest) < static_cast<uint64_t>(limit);
}

// Whether numbers rise, or stay, from 0 at least to `limit` at most; (count + 1,).
template <typename T>
inline bool rises(const T* begin, int64_t count, int64_t limit) {
  bool falls = begin[0] < 0;
  for (int64_t i = 0; i < count; ++i) falls |= begin[i] > begin[i + 1];
  return !falls && begin[count] <= limit;
}

// A value that need not lie at a multiple of its size.
template <typename T>
inline T value(const char* at) {
  T v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

}  // namespace jaxglmm
