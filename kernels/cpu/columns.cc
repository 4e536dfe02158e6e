// What is measured of the caller's columns. See jaxglmm/ops/columns.py.
#include "rows.h"

namespace jaxglmm {
namespace {

constexpr int64_t kPiece = 1 << 16;  // rows of a column that a thread takes at once
// How many bits are set, without the instruction that the oldest processors lack.
inline int32_t ones(uint64_t v) {
  v -= v >> 1 & 0x5555555555555555;
  v = (v & 0x3333333333333333) + (v >> 2 & 0x3333333333333333);
  v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0f;
  return static_cast<int32_t>(v * 0x0101010101010101 >> 56);
}

// A row's whole number, counted from the least of its column.
template <typename T>
struct Whole {
  const char* at;
  int64_t stride, low;
  uint64_t operator()(int64_t i) const {
    return static_cast<uint64_t>(static_cast<int64_t>(value<T>(at + i * stride))) -
           static_cast<uint64_t>(low);
  }
};

}  // namespace
}  // namespace jaxglmm

// out (columns, 5): least and largest value over the rows of positive weight, their mass, weighted mean, and
// sum of squares about it. `weight_at` may be null: ones. What is not a number makes the mean none.
JAXGLMM_EXPORT void jaxglmm_column_moments(int64_t rows, int64_t columns, const void* const* at,
                                           const int64_t* stride, const int32_t* type, const void* weight_at,
                                           int64_t weight_stride, double* out, int64_t threads) {
  using namespace jaxglmm;
  const auto column = columns_of(columns, at, stride, type);
  const HostColumn weight{static_cast<const char*>(weight_at), weight_stride, kF64};
  const int64_t pieces = (rows + kPiece - 1) / kPiece;
  std::vector<Moments> part(columns * pieces);
  const RowsTarget& target = best_rows_target();
  for_each(columns * pieces, threads, [&](int64_t k) {
    const int64_t begin = k % pieces * kPiece;
    const int64_t end = std::min(begin + kPiece, rows);
    part[k] = target.moments(column[k / pieces], weight_at ? &weight : nullptr, begin, end);
  });
  for (int64_t j = 0; j < columns; ++j) {  // in order, whoever did the work
    Moments found;
    for (int64_t k = 0; k < pieces; ++k) found.add(part[j * pieces + k]);
    const double values[] = {found.low, found.high, found.mass, found.mean, found.square};
    std::copy(values, values + 5, out + 5 * j);
  }
}

// Which whole numbers from `low` on occur, as bits (words,), zero at the start; and how many, -1 where one
// lies outside.
JAXGLMM_EXPORT int64_t jaxglmm_whole_present(int64_t rows, const void* at, int64_t stride, int32_t type,
                                             const uint8_t* missing, int64_t low, int64_t words,
                                             uint64_t* bits, int64_t threads) {
  using namespace jaxglmm;
  std::atomic<bool> outside{false};
  with_type(type, [&](auto zero) {
    const Whole<decltype(zero)> number{static_cast<const char*>(at), stride, low};
    for_pieces(rows, kPiece, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (missing && missing[i]) continue;
        const uint64_t v = number(i), bit = uint64_t{1} << v % 64;
        if (v / 64 >= static_cast<uint64_t>(words)) {
          outside = true;
          return;
        }
        if (!(__atomic_load_n(bits + v / 64, __ATOMIC_RELAXED) & bit))
          __atomic_fetch_or(bits + v / 64, bit, __ATOMIC_RELAXED);
      }
    });
  });
  if (outside) return -1;
  int64_t count = 0;
  for (int64_t k = 0; k < words; ++k) count += ones(bits[k]);
  return count;
}

// The rank of each row's number among those that occur, -1 where missing[i] (null: nowhere), and those
// numbers in order; after jaxglmm_whole_present, of the same rows.
JAXGLMM_EXPORT void jaxglmm_whole_codes(int64_t rows, const void* at, int64_t stride, int32_t type,
                                        const uint8_t* missing, int64_t low, int64_t words,
                                        const uint64_t* bits, int32_t* codes, int64_t* labels,
                                        int64_t threads) {
  using namespace jaxglmm;
  std::vector<int32_t> before(words);
  int32_t count = 0;
  for (int64_t k = 0; k < words; ++k) {
    before[k] = count;
    for (uint64_t rest = bits[k]; rest; rest &= rest - 1)
      labels[count++] = low + 64 * k + ones((rest & -rest) - 1);
  }
  with_type(type, [&](auto zero) {
    const Whole<decltype(zero)> number{static_cast<const char*>(at), stride, low};
    for_pieces(rows, kPiece, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (missing && missing[i]) {
          codes[i] = -1;
          continue;
        }
        const uint64_t v = number(i);
        codes[i] = before[v / 64] + ones(bits[v / 64] & ((uint64_t{1} << v % 64) - 1));
      }
    });
  });
}
