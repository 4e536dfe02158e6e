// What is measured of the caller's columns. See jaxglmm/ops/columns.py.
#include <cmath>
#include <limits>

#include "host.h"

namespace jaxglmm {
namespace {

constexpr int64_t kPiece = 1 << 16;  // rows of a column that a thread takes at once
constexpr int64_t kBlock = 2048;     // of which so many are in the first-level cache
constexpr int64_t kLanes = 8;

// Least and largest value, mass, mean, and sum of squares about the mean.
struct Moments {
  double low = std::numeric_limits<double>::infinity(), high = -low, mass = 0, mean = 0, square = 0;

  // Chan, Golub & LeVeque (1983), Am. Stat. 37, 242.
  void add(const Moments& m) {
    if (!(m.mass > 0)) return;
    low = std::min(low, m.low), high = std::max(high, m.high);
    const double gap = m.mean - mean, total = mass + m.mass;
    square += m.square + gap * gap * mass * m.mass / total;
    mean += gap * m.mass / total;
    mass = total;
  }
};

double total(const double* lane) {
  double sum = 0;
  for (int64_t k = 0; k < kLanes; ++k) sum += lane[k];
  return sum;
}

Moments of_values(const double* v, int64_t m) {
  Moments found;
  double low[kLanes], high[kLanes], sum[kLanes] = {}, square[kLanes] = {};
  for (int64_t k = 0; k < kLanes; ++k) low[k] = found.low, high[k] = found.high;
  const int64_t whole = m / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) {
      const double x = v[i + k];
      low[k] = x < low[k] ? x : low[k];
      high[k] = x > high[k] ? x : high[k];
      sum[k] += x;
    }
  double rest = 0;
  for (int64_t i = whole; i < m; ++i) low[0] = std::min(v[i], low[0]), high[0] = std::max(v[i], high[0]), rest += v[i];
  found.low = *std::min_element(low, low + kLanes), found.high = *std::max_element(high, high + kLanes);
  found.mass = m, found.mean = (total(sum) + rest) / m;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) {
      const double away = v[i + k] - found.mean;
      square[k] += away * away;
    }
  for (int64_t i = whole; i < m; ++i) square[0] += (v[i] - found.mean) * (v[i] - found.mean);
  found.square = total(square);
  return found;
}

// The same, of the values of positive weight.
Moments of_values(const double* v, const double* w, int64_t m) {
  Moments found;
  double sum = 0;
  for (int64_t i = 0; i < m; ++i)
    if (w[i] > 0) {
      found.low = std::min(found.low, v[i]), found.high = std::max(found.high, v[i]);
      found.mass += w[i], sum += w[i] * v[i];
    }
  if (found.mass > 0) found.mean = sum / found.mass;
  for (int64_t i = 0; i < m; ++i)
    if (w[i] > 0) found.square += w[i] * (v[i] - found.mean) * (v[i] - found.mean);
  return found;
}

void read(const Column& c, int64_t begin, int64_t m, double* out) {
  with_type(c.type, [&](auto zero) {
    using V = decltype(zero);
    const char* at = c.at + begin * c.stride;
    if (c.stride == sizeof(V))
      for (int64_t i = 0; i < m; ++i) out[i] = static_cast<double>(value<V>(at + i * sizeof(V)));
    else
      for (int64_t i = 0; i < m; ++i) out[i] = static_cast<double>(value<V>(at + i * c.stride));
  });
}

Moments of_piece(const Column& c, const Column* weight, int64_t begin, int64_t end) {
  Moments found;
  double v[kBlock], w[kBlock];
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t m = std::min(kBlock, end - i);
    read(c, i, m, v);
    if (weight) read(*weight, i, m, w);
    found.add(weight ? of_values(v, w, m) : of_values(v, m));
  }
  return found;
}

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
    return static_cast<uint64_t>(static_cast<int64_t>(value<T>(at + i * stride))) - static_cast<uint64_t>(low);
  }
};

}  // namespace
}  // namespace jaxglmm

// out (columns, 5): least and largest value over the rows of positive weight, their mass, weighted mean, and sum of squares
// about it. `weight_at` may be null: ones. What is not a number makes the mean none.
JAXGLMM_EXPORT void jaxglmm_column_moments(int64_t rows, int64_t columns, const void* const* at, const int64_t* stride,
                                           const int32_t* type, const void* weight_at, int64_t weight_stride,
                                           double* out, int64_t threads) {
  using namespace jaxglmm;
  const auto column = columns_of(columns, at, stride, type);
  const Column weight{static_cast<const char*>(weight_at), weight_stride, kF64};
  const int64_t pieces = (rows + kPiece - 1) / kPiece;
  std::vector<Moments> part(columns * pieces);
  for_each(columns * pieces, threads, [&](int64_t k) {
    const int64_t begin = k % pieces * kPiece;
    part[k] = of_piece(column[k / pieces], weight_at ? &weight : nullptr, begin, std::min(begin + kPiece, rows));
  });
  for (int64_t j = 0; j < columns; ++j) {  // in order, whoever did the work
    Moments found;
    for (int64_t k = 0; k < pieces; ++k) found.add(part[j * pieces + k]);
    const double values[] = {found.low, found.high, found.mass, found.mean, found.square};
    std::copy(values, values + 5, out + 5 * j);
  }
}

// Which whole numbers from `low` on occur, as bits (words,), zero at the start; and how many.
JAXGLMM_EXPORT int64_t jaxglmm_whole_present(int64_t rows, const void* at, int64_t stride, int32_t type,
                                             const uint8_t* missing, int64_t low, int64_t words, uint64_t* bits,
                                             int64_t threads) {
  using namespace jaxglmm;
  with_type(type, [&](auto zero) {
    const Whole<decltype(zero)> number{static_cast<const char*>(at), stride, low};
    for_pieces(rows, kPiece, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (missing && missing[i]) continue;
        const uint64_t v = number(i), bit = uint64_t{1} << v % 64;
        if (!(__atomic_load_n(bits + v / 64, __ATOMIC_RELAXED) & bit))
          __atomic_fetch_or(bits + v / 64, bit, __ATOMIC_RELAXED);
      }
    });
  });
  int64_t count = 0;
  for (int64_t k = 0; k < words; ++k) count += ones(bits[k]);
  return count;
}

// The rank of each row's number among those that occur, -1 where missing[i] (null: nowhere), and those numbers in order.
JAXGLMM_EXPORT void jaxglmm_whole_codes(int64_t rows, const void* at, int64_t stride, int32_t type,
                                        const uint8_t* missing, int64_t low, int64_t words, const uint64_t* bits,
                                        int32_t* codes, int64_t* labels, int64_t threads) {
  using namespace jaxglmm;
  std::vector<int32_t> before(words);
  int32_t count = 0;
  for (int64_t k = 0; k < words; ++k) {
    before[k] = count;
    for (uint64_t rest = bits[k]; rest; rest &= rest - 1) labels[count++] = low + 64 * k + ones((rest & -rest) - 1);
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
