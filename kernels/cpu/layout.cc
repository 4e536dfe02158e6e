// Where rows go in tile storage, and their way there: plain functions on the caller's arrays, called before
// there is anything for XLA to run. See jaxglmm/ops/layout.py.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#define JAXGLMM_EXPORT extern "C" __attribute__((visibility("default")))

namespace jaxglmm {
namespace {

constexpr int64_t kPiece = 4096;  // rows that a thread takes at once
constexpr int64_t kRows = 64;     // of which so many are turned at a time: their part of each column is in cache
constexpr int64_t kColumns = 32;

enum Type : int32_t { kF64, kF32, kI64, kU8 };

struct Column {
  const char* at;
  int64_t stride;  // bytes; 0 for a constant
  int32_t type;
};

double read(const Column& column, int64_t row) {
  const char* at = column.at + row * column.stride;
  switch (column.type) {
    case kF64: {
      double v;
      std::memcpy(&v, at, sizeof v);
      return v;
    }
    case kF32: {
      float v;
      std::memcpy(&v, at, sizeof v);
      return v;
    }
    case kI64: {
      int64_t v;
      std::memcpy(&v, at, sizeof v);
      return static_cast<double>(v);
    }
    default:
      return *reinterpret_cast<const uint8_t*>(at);
  }
}

// Calls body(begin, end) for pieces of `rows`, on as many threads as asked for.
template <typename Body>
void for_pieces(int64_t rows, int64_t threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t begin; (begin = next.fetch_add(kPiece)) < rows;) body(begin, std::min(begin + kPiece, rows));
  };
  std::vector<std::thread> others;
  try {
    for (int64_t k = 1; k < std::min(threads, (rows + kPiece - 1) / kPiece); ++k) others.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads to be had: those that there are do the work
  }
  work();
  for (std::thread& other : others) other.join();
}

template <typename T>
void scatter(int64_t rows, int64_t columns, const Column* column, const double* center, const double* scale,
             const int64_t* slot, T* out, int64_t threads) {
  for_pieces(rows, threads, [&](int64_t begin, int64_t end) {
    double turned[kRows * kColumns];
    for (int64_t i0 = begin; i0 < end; i0 += kRows)
      for (int64_t j0 = 0; j0 < columns; j0 += kColumns) {
        const int64_t m = std::min(kRows, end - i0), p = std::min(kColumns, columns - j0);
        for (int64_t j = 0; j < p; ++j) {
          const Column& c = column[j0 + j];
          const double mean = center[j0 + j], size = scale[j0 + j];
          for (int64_t i = 0; i < m; ++i) turned[i * p + j] = (read(c, i0 + i) - mean) / size;
        }
        for (int64_t i = 0; i < m; ++i) {
          T* to = out + slot[i0 + i] * columns + j0;
          for (int64_t j = 0; j < p; ++j) to[j] = static_cast<T>(turned[i * p + j]);
        }
      }
  });
}

}  // namespace
}  // namespace jaxglmm

// slot[i] of each row: first[g] + k stride[g] for the k-th row of its group g; where stride[g] is 0, the group
// lies in pieces of 32 rows, of which first[g] is the number of the first, `across` to a block of `block`
// slots, from slot `base` on. `seen` (groups,) is zero at the start. Codes are in range.
JAXGLMM_EXPORT void jaxglmm_slots(int64_t rows, const int32_t* codes, const int64_t* first,
                                  const int64_t* stride, int64_t across, int64_t block, int64_t base,
                                  int32_t* seen, int64_t* slot) {
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t g = codes[i];
    const int64_t k = seen[g]++;
    if (stride[g]) {
      slot[i] = first[g] + k * stride[g];
      continue;
    }
    const int64_t piece = first[g] + k / 32;
    slot[i] = base + piece / across * block + k % 32 * across + piece % across;
  }
}

// out[slot[i], j] = (column j, row i - center[j]) / scale[j], rows of `out` having `columns` entries of float64,
// or float32 where `single` is not 0. Types of columns: 0 float64, 1 float32, 2 int64, 3 bytes.
JAXGLMM_EXPORT void jaxglmm_scatter(int64_t rows, int64_t columns, const void* const* at, const int64_t* stride,
                                    const int32_t* type, const double* center, const double* scale,
                                    const int64_t* slot, int32_t single, void* out, int64_t threads) {
  using namespace jaxglmm;
  std::vector<Column> column;
  for (int64_t j = 0; j < columns; ++j) column.push_back({static_cast<const char*>(at[j]), stride[j], type[j]});
  if (single)
    scatter(rows, columns, column.data(), center, scale, slot, static_cast<float*>(out), threads);
  else
    scatter(rows, columns, column.data(), center, scale, slot, static_cast<double*>(out), threads);
}
