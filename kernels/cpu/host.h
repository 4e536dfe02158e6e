// Work on the caller's own arrays, before there is anything for XLA to run: columns of any type, and threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#define JAXGLMM_EXPORT extern "C" __attribute__((visibility("default")))

namespace jaxglmm {

// The order of _TYPES in jaxglmm/ops/layout.py.
enum Type : int32_t { kF64, kF32, kI64, kI32, kI16, kI8, kU8, kU16, kU32 };

struct Column {
  const char* at;
  int64_t stride;  // bytes; 0 for a constant
  int32_t type;
};

inline std::vector<Column> columns_of(int64_t count, const void* const* at, const int64_t* stride, const int32_t* type) {
  std::vector<Column> found;
  for (int64_t j = 0; j < count; ++j) found.push_back({static_cast<const char*>(at[j]), stride[j], type[j]});
  return found;
}

// Calls body(T{}) for the type T of a column's values.
template <typename Body>
void with_type(int32_t type, const Body& body) {
  switch (type) {
    case kF64: return body(double{});
    case kF32: return body(float{});
    case kI64: return body(int64_t{});
    case kI32: return body(int32_t{});
    case kI16: return body(int16_t{});
    case kI8: return body(int8_t{});
    case kU16: return body(uint16_t{});
    case kU32: return body(uint32_t{});
    default: return body(uint8_t{});
  }
}

// A value that need not lie at a multiple of its size.
template <typename T>
inline T value(const char* at) {
  T v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

// Calls body(k) for k = 0 ... count - 1, on as many threads as asked for.
template <typename Body>
void for_each(int64_t count, int64_t threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t k; (k = next.fetch_add(1)) < count;) body(k);
  };
  std::vector<std::thread> others;
  try {
    for (int64_t k = 1; k < std::min(threads, count); ++k) others.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads to be had: those that there are do the work
  }
  work();
  for (std::thread& other : others) other.join();
}

// Calls body(begin, end) for pieces of `rows` of so many.
template <typename Body>
void for_pieces(int64_t rows, int64_t piece, int64_t threads, const Body& body) {
  for_each((rows + piece - 1) / piece, threads,
           [&](int64_t k) { body(k * piece, std::min((k + 1) * piece, rows)); });
}

}  // namespace jaxglmm
