// What the drivers of plain functions share: numbers that are the same everywhere, and whether threads agree.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

using Doubles = std::vector<double>;
using Longs = std::vector<int64_t>;
using Ints = std::vector<int32_t>;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
inline bool good = true;

struct Random {
  uint64_t state = 88172645463325252ull;
  double operator()() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<double>(state >> 11) * 0x1p-52 - 1.0;
  }
  int64_t below(int64_t limit) { return static_cast<int64_t>((*this)() * 0x1p20 + 0x1p20) % limit; }
};
inline Random draw;

template <typename T = double, typename Next>
std::vector<T> numbers(int64_t count, const Next& next) {
  std::vector<T> out(count);
  for (T& v : out) v = static_cast<T>(next());
  return out;
}
inline Doubles any(int64_t count) {
  return numbers(count, [] { return draw(); });
}
inline Doubles binary(int64_t count) {
  return numbers(count, [] { return draw() > 0; });
}

inline void tell(const std::string& name, bool fine, double value) {
  std::printf("%s: %.10g%s\n", name.c_str(), value, fine ? "" : "  WRONG");
  good &= fine;
}

// `run(threads)` returns its results as bytes, added one after the other.
struct Bytes {
  std::string all;
  template <typename T>
  Bytes& operator<<(const std::vector<T>& v) {
    all.append(reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T));
    return *this;
  }
};
inline void agree(const std::string& name, const std::function<Bytes(int64_t)>& run) {
  const std::string one = run(1).all, four = run(4).all, again = run(4).all;
  double total = 0;
  for (size_t i = 0; i + 8 <= one.size(); i += 8) {
    double v;
    std::memcpy(&v, one.data() + i, 8);
    if (std::isfinite(v)) total += std::fabs(v);
  }
  tell(name, one == four && four == again && !one.empty(), total);
}
inline void refuse(const std::string& name, bool refused) { tell(name + " refused", refused, refused); }
