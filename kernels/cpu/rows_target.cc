// Reading the caller's columns, for one target: compiled once for each, as fused_target.cc is.
#include "rows.h"

#include "jaxglmm/vec.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {
namespace {

constexpr int64_t kBlock = 2048;  // rows of a column that are in the first-level cache
constexpr int64_t kSums = 4;      // vectors side by side
constexpr int64_t kAbreast = 4;   // columns that are turned together

template <typename Read>
inline void each_value(const HostColumn& c, int64_t begin, int64_t m, const Read& read) {
  with_type(c.type, [&](auto zero) {
    using V = decltype(zero);
    const char* at = c.at + begin * c.stride;
    if (c.stride == sizeof(V))
      for (int64_t i = 0; i < m; ++i) read(i, static_cast<double>(value<V>(at + i * sizeof(V))));
    else
      for (int64_t i = 0; i < m; ++i) read(i, static_cast<double>(value<V>(at + i * c.stride)));
  });
}

Moments of_values(const double* v, int64_t m) {
  Moments found;
  V low[kSums], high[kSums], sum[kSums] = {}, square[kSums] = {};
  for (int64_t k = 0; k < kSums; ++k) low[k] = splat(found.low), high[k] = splat(found.high);
  constexpr int64_t step = kSums * kLanes;
  const int64_t whole = m / step * step;
  for (int64_t i = 0; i < whole; i += step)
    for (int64_t k = 0; k < kSums; ++k) {
      const V x = load(v + i + k * kLanes);
      low[k] = x < low[k] ? x : low[k];
      high[k] = x > high[k] ? x : high[k];
      sum[k] += x;
    }
  double rest = 0;
  for (int64_t k = 0; k < kSums; ++k) {
    for (int64_t l = 0; l < kLanes; ++l)
      found.low = std::min(found.low, lane(low[k], l)), found.high = std::max(found.high, lane(high[k], l));
    rest += jaxglmm::JAXGLMM_TARGET::sum(sum[k]);
  }
  for (int64_t i = whole; i < m; ++i)
    found.low = std::min(found.low, v[i]), found.high = std::max(found.high, v[i]), rest += v[i];
  found.mass = m, found.mean = rest / m;
  const V mean = splat(found.mean);
  for (int64_t i = 0; i < whole; i += step)
    for (int64_t k = 0; k < kSums; ++k) {
      const V away = load(v + i + k * kLanes) - mean;
      square[k] += away * away;
    }
  for (int64_t k = 0; k < kSums; ++k) found.square += jaxglmm::JAXGLMM_TARGET::sum(square[k]);
  for (int64_t i = whole; i < m; ++i) found.square += (v[i] - found.mean) * (v[i] - found.mean);
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

Moments moments(const HostColumn& c, const HostColumn* weight, int64_t begin, int64_t end) {
  Moments found;
  double v[kBlock], w[kBlock];
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t m = std::min(kBlock, end - i);
    if (!weight && c.type == kF64 && c.stride == sizeof(double)) {
      found.add(of_values(reinterpret_cast<const double*>(c.at) + i, m));
      continue;
    }
    each_value(c, i, m, [&](int64_t k, double x) { v[k] = x; });
    if (weight) each_value(*weight, i, m, [&](int64_t k, double x) { w[k] = x; });
    found.add(weight ? of_values(v, w, m) : of_values(v, m));
  }
  return found;
}

// (value - center) / scale of m rows, `m` rounded up to whole vectors being there to write.
void scaled(const HostColumn& c, int64_t begin, int64_t m, double center, double scale, double* out) {
  const double* in = out;
  if (c.type == kF64 && c.stride == sizeof(double) && m % kLanes == 0)
    in = reinterpret_cast<const double*>(c.at) + begin;
  else
    each_value(c, begin, m, [=](int64_t i, double x) { out[i] = x; });
  // The next rows of so many columns, more than a processor foresees by itself.
  if (c.stride <= static_cast<int64_t>(sizeof(double)))
    for (int64_t at = 0; at < m * c.stride; at += 64)
      __builtin_prefetch(c.at + (begin + kTurned) * c.stride + at);
  for (int64_t i = 0; i < m; i += kLanes) store(out + i, (load(in + i) - center) / scale);
}

template <typename T>
void turn(const HostColumn* column, int64_t columns, int64_t begin, int64_t m, const double* center,
          const double* scale, T* out) {
  alignas(64) double v[kAbreast][kTurned] = {};
  for (int64_t j = 0; j < columns; j += kAbreast) {
    const int64_t some = std::min(kAbreast, columns - j);
    for (int64_t k = 0; k < some; ++k) scaled(column[j + k], begin, m, center[j + k], scale[j + k], v[k]);
    T* to = out + j;
    if (some == kAbreast) {
      for (int64_t i = 0; i < m; ++i, to += columns) {
        typedef T Row __attribute__((vector_size(kAbreast * sizeof(T))));
        const Row row = {static_cast<T>(v[0][i]), static_cast<T>(v[1][i]), static_cast<T>(v[2][i]),
                         static_cast<T>(v[3][i])};
        std::memcpy(to, &row, sizeof row);
      }
      continue;
    }
    for (int64_t i = 0; i < m; ++i, to += columns)
      for (int64_t k = 0; k < some; ++k) to[k] = static_cast<T>(v[k][i]);
  }
}

}  // namespace

extern const RowsTarget rows_target;
const RowsTarget rows_target = {moments, turn<double>, turn<float>};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
