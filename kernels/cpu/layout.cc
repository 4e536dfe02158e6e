// Where rows go in tile storage, and their way there. See jaxglmm/ops/layout.py.
#include "rows.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace jaxglmm {
namespace {

constexpr int64_t kPiece = 4096;  // rows that a thread takes at once
constexpr int64_t kColumns = 32;  // and turns together
constexpr int64_t kLine = 64;     // bytes that memory is read and written by
constexpr int64_t kLongest = 32;  // rows of a piece of a long group
constexpr int64_t kAhead = 24;    // rows whose group is asked for before it is needed

// Whole lines of memory are written without being read first, which random places would otherwise cost; short
// rows have too few of them.
#if defined(__SSE2__)
constexpr bool kStream = true;
inline void put_line(const char* from, char* to) {
  for (int64_t k = 0; k < kLine; k += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + k),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k)));
}
inline void finish() { _mm_sfence(); }
// A few numbers: a call, or an instruction for any length, takes longer than the copying.
inline void put_some(const char* from, char* to, int64_t bytes) {
  int64_t b = 0;
  for (; b + 16 <= bytes; b += 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + b),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + b)));
  if (bytes & 8) std::memcpy(to + b, from + b, 8), b += 8;
  if (bytes & 4) std::memcpy(to + b, from + b, 4);
}
#else
constexpr bool kStream = false;
inline void put_line(const char* from, char* to) { std::memcpy(to, from, kLine); }
inline void finish() {}
inline void put_some(const char* from, char* to, int64_t bytes) { std::memcpy(to, from, bytes); }
#endif

inline int64_t to_line(const void* at, int64_t bytes) {
  return std::min<int64_t>((kLine - reinterpret_cast<uintptr_t>(at) % kLine) % kLine, bytes);
}

inline void expect(const void* to, int64_t bytes) {
  const char* at = static_cast<const char*>(to);
  if (kStream && bytes >= 2 * kLine) {
    if (to_line(at, kLine)) __builtin_prefetch(at, 1);
    if (to_line(at + bytes, kLine)) __builtin_prefetch(at + bytes, 1);
    return;
  }
  for (int64_t b = 0; b < bytes; b += kLine) __builtin_prefetch(at + b, 1);
}

inline void put(const void* from, void* to, int64_t bytes) {
  const char* source = static_cast<const char*>(from);
  char* at = static_cast<char*>(to);
  if (!kStream || bytes < 2 * kLine) {
    put_some(source, at, bytes);
    return;
  }
  int64_t b = to_line(at, bytes);
  put_some(source, at, b);
  for (; b + kLine <= bytes; b += kLine) put_line(source + b, at + b);
  put_some(source + b, at + b, bytes - b);
}

inline void turn(const HostColumn* column, int64_t columns, int64_t begin, int64_t m, const double* center,
                 const double* scale, double* out) {
  best_rows_target().turn(column, columns, begin, m, center, scale, out);
}

inline void turn(const HostColumn* column, int64_t columns, int64_t begin, int64_t m, const double* center,
                 const double* scale, float* out) {
  best_rows_target().turn_single(column, columns, begin, m, center, scale, out);
}

// Calls body(begin, end) for pieces of rows; false where a slot of one, which is then left out, is none.
template <typename Body>
bool for_slots(int64_t rows, const int64_t* slot, int64_t slots, int64_t threads, const Body& body) {
  std::atomic<bool> fits{true};
  for_pieces(rows, kPiece, threads, [&](int64_t begin, int64_t end) {
    if (within(slot + begin, end - begin, slots))
      body(begin, end);
    else
      fits = false;
  });
  return fits;
}

template <typename T>
bool scatter_one(int64_t rows, const HostColumn& c, double center, double scale, const int64_t* slot,
                 int64_t slots, T* out, int64_t threads) {
  return for_slots(rows, slot, slots, threads, [&](int64_t begin, int64_t end) {
    T turned[kTurned];
    for (int64_t i0 = begin; i0 < end; i0 += kTurned) {
      const int64_t m = std::min(kTurned, end - i0);
      turn(&c, 1, i0, m, &center, &scale, turned);
      for (int64_t i = 0; i < m; ++i) out[slot[i0 + i]] = turned[i];
    }
  });
}

template <typename T>
bool scatter(int64_t rows, int64_t columns, const HostColumn* column, const double* center,
             const double* scale, const int64_t* slot, int64_t slots, T* out, int64_t threads) {
  if (columns == 1) return scatter_one(rows, *column, *center, *scale, slot, slots, out, threads);
  return for_slots(rows, slot, slots, threads, [&](int64_t begin, int64_t end) {
    T turned[kTurned * kColumns];
    for (int64_t i0 = begin; i0 < end; i0 += kTurned)
      for (int64_t j0 = 0; j0 < columns; j0 += kColumns) {
        const int64_t m = std::min(kTurned, end - i0), p = std::min(kColumns, columns - j0);
        // What of the rows' places shares a line with others comes into cache while the values are worked
        // out.
        for (int64_t i = 0; i < m; ++i) expect(out + slot[i0 + i] * columns + j0, p * sizeof(T));
        turn(column + j0, p, i0, m, center + j0, scale + j0, turned);
        for (int64_t i = 0; i < m; ++i) put(turned + i * p, out + slot[i0 + i] * columns + j0, p * sizeof(T));
      }
    finish();
  });
}

}  // namespace
}  // namespace jaxglmm

// Rows of each group, counts (groups,), zero at the start; returns 1 where a code is out of range, else 0.
JAXGLMM_EXPORT int32_t jaxglmm_counts(int64_t rows, const int32_t* codes, int64_t groups, int32_t* counts) {
  for (int64_t i = 0; i < rows; ++i) {
    if (codes[i] < 0 || codes[i] >= groups) return 1;
    ++counts[codes[i]];
  }
  return 0;
}

// slot[i] of each row: first[g] + k stride[g] for the k-th row of its group g; where stride[g] is 0, the
// group lies in pieces of 32 rows, of which first[g] is the number of the first, `across` to a block of
// `block` slots, from slot `base` on. Returns 1 where a code is out of range, else 0.
JAXGLMM_EXPORT int32_t jaxglmm_slots(int64_t rows, const int32_t* codes, int64_t groups, const int64_t* first,
                                     const int64_t* stride, int64_t across, int64_t block, int64_t base,
                                     int64_t* slot) {
  using namespace jaxglmm;
  if (!within(codes, rows, groups)) return 1;
  struct Group {  // what a row asks of its group, in one place
    int64_t next;
    int32_t stride, seen;
  };
  std::vector<Group> group(groups);
  for (int64_t g = 0; g < groups; ++g) group[g] = {first[g], static_cast<int32_t>(stride[g]), 0};
  for (int64_t i = 0; i < rows; ++i) {
    if (i + kAhead < rows) __builtin_prefetch(&group[codes[i + kAhead]], 1);
    Group& g = group[codes[i]];
    if (g.stride) {
      slot[i] = g.next;
      g.next += g.stride;
      continue;
    }
    const int64_t k = g.seen++, piece = g.next + k / kLongest;
    slot[i] = base + piece / across * block + k % kLongest * across + piece % across;
  }
  return 0;
}

// out[slot[i], j] = (column j, row i - center[j]) / scale[j], rows of `out` having `columns` entries of
// float64, or float32 where `single` is not 0. Returns 1 where a slot is none of `slots`, else 0.
JAXGLMM_EXPORT int32_t jaxglmm_scatter(int64_t rows, int64_t columns, const void* const* at,
                                       const int64_t* stride, const int32_t* type, const double* center,
                                       const double* scale, const int64_t* slot, int64_t slots,
                                       int32_t single, void* out, int64_t threads) {
  using namespace jaxglmm;
  const auto column = columns_of(columns, at, stride, type);
  const auto into = [&](auto* numbers) {
    return scatter(rows, columns, column.data(), center, scale, slot, slots, numbers, threads) ? 0 : 1;
  };
  return single ? into(static_cast<float*>(out)) : into(static_cast<double*>(out));
}
