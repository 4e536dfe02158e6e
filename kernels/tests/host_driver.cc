// The functions that bring the caller's arrays to storage, and those of lattices, called from Python by their
// addresses: on one thread and on four, and with arguments that do not fit, which must be refused.
//
//   kernels/tests/sanitize.sh [address|thread]
#include <algorithm>
#include <thread>

#include "agree.h"
#include "fused_pass.h"
#include "strata.h"

using namespace jaxglmm;

extern "C" {
void jaxglmm_column_moments(int64_t, int64_t, const void* const*, const int64_t*, const int32_t*, const void*,
                            int64_t, double*, int64_t);
int64_t jaxglmm_whole_present(int64_t, const void*, int64_t, int32_t, const uint8_t*, int64_t, int64_t,
                              uint64_t*, int64_t);
void jaxglmm_whole_codes(int64_t, const void*, int64_t, int32_t, const uint8_t*, int64_t, int64_t,
                         const uint64_t*, int32_t*, int64_t*, int64_t);
int64_t jaxglmm_text_codes(int64_t, const int64_t*, const char*, int64_t, const uint8_t*, int64_t, int32_t*,
                           int32_t*, int64_t);
int32_t jaxglmm_counts(int64_t, const int32_t*, int64_t, int32_t*);
int32_t jaxglmm_slots(int64_t, const int32_t*, int64_t, const int64_t*, const int64_t*, int64_t, int64_t,
                      int64_t, int64_t*);
int32_t jaxglmm_scatter(int64_t, int64_t, const void* const*, const int64_t*, const int32_t*, const double*,
                        const double*, const int64_t*, int64_t, int32_t, void*, int64_t);
int32_t jaxglmm_segments(int64_t, const int64_t*, const int32_t*, int64_t, const int64_t*, int64_t*, int32_t*,
                         int64_t*, int64_t);
int32_t jaxglmm_stratum_rows(const StratumRows*, double, int64_t);
int64_t jaxglmm_lattices(const double*, const double*, const double*, const double*, const int64_t*, int64_t,
                         int64_t, const int64_t*, int64_t, const double*, const double*, int32_t,
                         const double*, int32_t, double, double, double, double, int64_t, double*, double*,
                         double*, double*, int64_t*, double*, double*);
int32_t jaxglmm_lattice_expect(int64_t, int64_t, const double*, const int64_t*, const int32_t*, int64_t,
                               int64_t, const int64_t*, const int64_t*, const int64_t*, const double*,
                               int64_t, double*);
int32_t jaxglmm_lattice_add(int64_t, int64_t, const double*, const int64_t*, const int32_t*, int64_t,
                            const int64_t*, const int64_t*, double*, int64_t);
void jaxglmm_lattice_quantiles(int64_t, int64_t, const double*, const int64_t*, const double*, int64_t,
                               const double*, int64_t, const double*, double*);
}

namespace {

// Columns of a table by address, of several types, and one number for all rows.
struct Table {
  int64_t rows;
  Doubles wide, constant = {2.5};
  std::vector<float> narrow;
  std::vector<int16_t> whole;
  std::vector<uint8_t> small;
  std::vector<const void*> at;
  Longs stride = {8, 4, 2, 1, 0};
  Ints type = {0, 1, 4, 6, 0};
  explicit Table(int64_t n)
      : rows(n),
        wide(any(n)),
        narrow(numbers<float>(n, [] { return draw(); })),
        whole(numbers<int16_t>(n, [] { return draw.below(900) - 450; })),
        small(numbers<uint8_t>(n, [] { return draw.below(200); })),
        at{wide.data(), narrow.data(), whole.data(), small.data(), constant.data()} {}
  int64_t columns() const { return static_cast<int64_t>(at.size()); }
};

void check_columns() {
  constexpr int64_t n = 150000, low = -700;
  const Table table(n);
  const Doubles weight = numbers(n, [] { return draw.below(3); });
  for (bool weighted : {false, true})
    agree(weighted ? "column_moments, weighted" : "column_moments", [&](int64_t threads) {
      Doubles out(5 * table.columns());
      jaxglmm_column_moments(n, table.columns(), table.at.data(), table.stride.data(), table.type.data(),
                             weighted ? weight.data() : nullptr, 8, out.data(), threads);
      return Bytes() << out;
    });
  const auto missing = numbers<uint8_t>(n, [] { return draw() > 0.8; });
  const auto whole = [&](int64_t from, int64_t words, int64_t threads, Bytes* out) {
    std::vector<uint64_t> bits(words);
    const int64_t count =
        jaxglmm_whole_present(n, table.whole.data(), 2, 4, missing.data(), from, words, bits.data(), threads);
    if (count < 0) return false;
    Ints codes(n);
    Longs labels(count);
    jaxglmm_whole_codes(n, table.whole.data(), 2, 4, missing.data(), from, words, bits.data(), codes.data(),
                        labels.data(), threads);
    if (out) *out << codes << labels;
    return true;
  };
  agree("whole_present, whole_codes", [&](int64_t threads) {
    Bytes out;
    whole(low, 20, threads, &out);
    return out;
  });
  refuse("whole numbers above", !whole(low, 8, 4, nullptr)),
      refuse("whole numbers below", !whole(0, 20, 4, nullptr));

  std::string bytes;
  Longs offset = {0};
  for (int64_t i = 0; i < n; ++i)
    bytes += "group " + std::to_string(draw.below(20000)), offset.push_back(bytes.size());
  const auto valid = numbers<uint8_t>(n / 8 + 2, [] { return draw.below(256) | 1; });
  const std::vector<char> text(bytes.begin(), bytes.end());
  const auto codes_of = [&](const Longs& begins, int64_t size, const uint8_t* bits, int64_t threads,
                            Bytes* out) {
    Ints codes(n), first(n);
    const int64_t count =
        jaxglmm_text_codes(n, begins.data(), text.data(), size, bits, 5, codes.data(), first.data(), threads);
    first.resize(std::max<int64_t>(count, 0));
    if (out) *out << codes << first;
    return count >= 0;
  };
  for (const uint8_t* bits : {static_cast<const uint8_t*>(nullptr), valid.data()})
    agree(bits ? "text_codes, some missing" : "text_codes", [&](int64_t threads) {
      Bytes out;
      codes_of(offset, text.size(), bits, threads, &out);
      return out;
    });
  Longs falling = offset;
  falling[n / 2] = falling[n / 2 + 1] + 1;
  refuse("falling offsets", !codes_of(falling, text.size(), nullptr, 4, nullptr));
  refuse("texts behind the last byte", !codes_of(offset, text.size() - 1, nullptr, 4, nullptr));
}

void check_layout() {
  constexpr int64_t n = 50000, groups = 4000, across = 15, block = 480;
  const Table table(n);
  Ints codes = numbers<int32_t>(n, [] { return draw.below(groups - 1); });
  for (int64_t i = 0; i < 800; ++i) codes[i * 50] = groups - 1;  // a long group
  Ints counts(groups);
  refuse("no code", !jaxglmm_counts(n, codes.data(), groups, counts.data()));
  Longs first(groups), stride(groups, 1), slot(n);
  int64_t base = 0;
  for (int64_t g = 0; g + 1 < groups; ++g) first[g] = base, base += counts[g];
  first[groups - 1] = 0, stride[groups - 1] = 0;
  const int64_t slots = base + 2 * block;
  jaxglmm_slots(n, codes.data(), groups, first.data(), stride.data(), across, block, base, slot.data());
  const Doubles center = any(table.columns()), scale(table.columns(), 1.7);
  for (int64_t columns : {int64_t{1}, table.columns()})
    for (bool single : {false, true})
      agree("scatter of " + std::to_string(columns), [&](int64_t threads) {
        Doubles out(slots * columns);
        const int fault =
            jaxglmm_scatter(n, columns, table.at.data(), table.stride.data(), table.type.data(),
                            center.data(), scale.data(), slot.data(), slots, single, out.data(), threads);
        return fault ? Bytes() : Bytes() << out;
      });
  // Enough columns for whole lines of memory; all of one type.
  const std::vector<const void*> many(40, table.wide.data());
  const Longs strides(40, 8);
  const Ints types(40, 0);
  const Doubles zeros(40), ones(40, 1.0);
  agree("scatter of 40", [&](int64_t threads) {
    Doubles out(slots * 40);
    jaxglmm_scatter(n, 40, many.data(), strides.data(), types.data(), zeros.data(), ones.data(), slot.data(),
                    slots, 0, out.data(), threads);
    return Bytes() << out;
  });
  for (int64_t bad : {int64_t{-1}, slots, std::numeric_limits<int64_t>::max()}) {
    Longs other = slot;
    other[n / 2] = bad;
    Doubles out(slots);
    refuse("slot " + std::to_string(bad),
           jaxglmm_scatter(n, 1, table.at.data(), table.stride.data(), table.type.data(), center.data(),
                           scale.data(), other.data(), slots, 0, out.data(), 4));
  }
  for (int32_t bad : {-1, static_cast<int32_t>(groups), std::numeric_limits<int32_t>::min()}) {
    codes[n / 3] = bad;
    refuse("code " + std::to_string(bad), jaxglmm_counts(n, codes.data(), groups, counts.data()) &&
                                              jaxglmm_slots(n, codes.data(), groups, first.data(),
                                                            stride.data(), across, block, base, slot.data()));
  }
}

void check_strata() {
  constexpr int64_t n = 6000, strata = 150, S = 2;
  const Table table(n);
  Longs stratum = numbers<int64_t>(n, [] { return draw.below(strata - 1); }),
        begin(strata + 1);  // the last one is empty
  const Ints code = numbers<int32_t>(n, [] { return draw.below(40); });
  for (int64_t b : stratum) ++begin[b + 1];
  for (int64_t b = 0; b < strata; ++b) begin[b + 1] += begin[b];
  Longs order(n), groups(strata);
  Ints size(n);
  const auto segments = [&](int64_t threads) {
    return jaxglmm_segments(n, stratum.data(), code.data(), strata, begin.data(), order.data(), size.data(),
                            groups.data(), threads);
  };
  agree("segments", [&](int64_t threads) {
    segments(threads);
    return Bytes() << order << size << groups;
  });
  const Doubles y = binary(n), weight = numbers(n, [] { return 1 + draw.below(3); }), offset = any(n),
                z = any(S * n);
  const int64_t p = table.columns();
  const auto gather = [&](const Longs& rows, const Longs& begins, bool given, int64_t intercept,
                          int64_t threads, Bytes* out) {
    Doubles y_out(n), x_out(n * p), w_out(n), o_out(n), z_out(S * n), center(strata * p), scale(strata * p),
        z_scale(strata * S);
    std::vector<uint8_t> suspect(strata);
    const StratumRows q = {strata,
                           n,
                           p,
                           S,
                           n,
                           intercept,
                           begins.data(),
                           rows.data(),
                           table.at.data(),
                           table.stride.data(),
                           table.type.data(),
                           y.data(),
                           given ? weight.data() : nullptr,
                           given ? offset.data() : nullptr,
                           given ? z.data() : nullptr,
                           y_out.data(),
                           x_out.data(),
                           w_out.data(),
                           o_out.data(),
                           z_out.data(),
                           center.data(),
                           scale.data(),
                           z_scale.data(),
                           suspect.data()};
    const int fault = jaxglmm_stratum_rows(&q, 1e-9, threads);
    if (out) *out << y_out << x_out << w_out << o_out << z_out << center << scale << z_scale << suspect;
    return fault == 0;
  };
  for (bool given : {false, true})
    agree(given ? "stratum_rows, weighted" : "stratum_rows", [&](int64_t threads) {
      Bytes out;
      gather(order, begin, given, given ? 4 : -1, threads, &out);
      return out;
    });
  Longs other = order, falling = begin;
  other[7] = n, falling[5] = falling[6] + 1;
  refuse("a row that is not there", !gather(other, begin, true, 4, 4, nullptr));
  refuse("falling strata", !gather(order, falling, true, 4, 4, nullptr));
  for (int64_t bad : {int64_t{-1}, strata, int64_t{3}}) {  // the third has no room for one more
    const int64_t kept = stratum[11];
    stratum[11] = bad == kept ? 4 : bad;
    refuse("stratum " + std::to_string(bad), segments(4));
    stratum[11] = kept;
  }
}

// As the caller does: pieces of the groups, cut by the data alone, on threads of his own.
void check_lattices() {
  constexpr int64_t G = 700, most = 60, T = 2;
  Longs begin = {0}, all(G);
  for (int64_t g = 0; g < G; ++g) begin.push_back(begin.back() + (g % 100 == 99 ? 130 : g % 9)), all[g] = g;
  const int64_t n = begin.back();
  Doubles y = numbers(n, [] { return 1 + draw.below(2); }), weight = numbers(n, [] { return draw.below(3); });
  Doubles eta = any(n), z = any(n);
  const Doubles mean = any(G), sd = numbers(G, [] { return 1.2 + draw(); }), start(G);
  Longs first(G);
  Doubles mode(G), curvature(G), average(G), variance(G), step(G), weights(G * most);
  const auto posteriors = [&](int32_t family, int64_t groups, const int64_t* which, int64_t at) {
    return jaxglmm_lattices(y.data(), weight.data(), eta.data(), z.data(), begin.data(), n, G, which, groups,
                            mean.data(), sd.data(), 1, start.data(), family, 0.2, 1e-9, 0.5, 0.25, most,
                            mode.data() + at, curvature.data() + at, average.data() + at,
                            variance.data() + at, first.data() + at, step.data() + at,
                            weights.data() + at * most);
  };
  const auto on_threads = [&](int64_t threads, const auto& work) {
    constexpr int64_t kPieces = 8;
    std::vector<std::thread> pool;
    for (int64_t t = 0; t < threads; ++t)
      pool.emplace_back([&, t] {
        for (int64_t k = t; k < kPieces; k += threads) work(k * G / kPieces, (k + 1) * G / kPieces);
      });
    for (std::thread& thread : pool) thread.join();
  };
  for (int32_t family = kFamilies; family-- > 0;) {  // ends with a Gaussian one, whose results serve below
    if (family == static_cast<int32_t>(Family::logit))
      for (double& v : y) v -= 1;
    agree("lattices, family " + std::to_string(family), [&](int64_t threads) {
      on_threads(threads,
                 [&](int64_t from, int64_t to) { posteriors(family, to - from, all.data() + from, from); });
      return Bytes() << mode << curvature << average << variance << first << step;
    });
  }
  for (int64_t bad : {int64_t{-1}, G})
    refuse("group " + std::to_string(bad), posteriors(1, 1, &bad, 0) == -2);
  begin[3] = n + 1;
  refuse("rows that are not there", posteriors(1, G, all.data(), 0) == -2);
  begin[3] = begin[2];
  const double kept = eta[0];
  eta[begin[5]] = kNaN, y[begin[6]] = kNaN;
  tell("lattices of NaN", posteriors(1, G, all.data(), 0) >= 0, mode[0]);
  eta[begin[5]] = kept;

  for (int64_t& f : first) f = draw.below(50) - 25;
  for (double& w : weights) w = 1.0 / most;
  Ints level(G);
  for (int64_t g = 0; g < G; ++g) level[g] = g % 3;
  const Longs origin(3 * T, -30), length(3 * T, 90);
  Longs place;
  for (int64_t v = 0; v < 3 * T; ++v) place.push_back(90 * v);
  const Doubles flat = any(3 * T * 90);
  const auto expect = [&](int64_t from, int64_t to, int64_t size, double* out) {
    return jaxglmm_lattice_expect(to - from, most, weights.data() + from * most, first.data() + from,
                                  level.data() + from, 3, T, origin.data(), place.data(), length.data(),
                                  flat.data(), size, out);
  };
  agree("lattice_expect", [&](int64_t threads) {
    Doubles out(T * G);
    on_threads(threads,
               [&](int64_t from, int64_t to) { expect(from, to, flat.size(), out.data() + T * from); });
    return Bytes() << out;
  });
  Doubles mass(400);
  const Longs to_origin(3, -30), to_place = {0, 130, 260};
  const auto add = [&](int64_t size) {
    return jaxglmm_lattice_add(G, most, weights.data(), first.data(), level.data(), 3, to_origin.data(),
                               to_place.data(), mass.data(), size);
  };
  agree("lattice_add", [&](int64_t) {
    std::fill(mass.begin(), mass.end(), 0.0), add(mass.size());
    return Bytes() << mass;
  });
  Doubles scratch(T * G);
  refuse("masses behind the last", add(300));
  refuse("values behind the last", expect(0, G, flat.size() - 1, scratch.data()));
  for (int32_t bad : {-1, 3}) {
    level[8] = bad;
    refuse("level " + std::to_string(bad), expect(0, G, flat.size(), scratch.data()) && add(mass.size()));
  }
  const Doubles p = {1e-9, 0.5, 1 - 1e-9};
  Doubles kernel;
  for (int64_t s = 0; s < 16; ++s)
    for (int64_t j = 0; j < 2 * most - 1; ++j)
      kernel.push_back(std::min(1.0, std::max(0.0, 0.5 + (s / 16.0 + most - 1.0 - j) / 2)));
  for (bool bad : {false, true}) {
    if (bad) weights[most + 5] = kNaN, step[7] = kNaN;
    agree(bad ? "lattice_quantiles of NaN" : "lattice_quantiles", [&](int64_t threads) {
      Doubles out(G * 3);
      on_threads(threads, [&](int64_t from, int64_t to) {
        jaxglmm_lattice_quantiles(to - from, most, weights.data() + from * most, first.data() + from,
                                  step.data() + from, 16, kernel.data(), 3, p.data(), out.data() + 3 * from);
      });
      return Bytes() << out;
    });
  }
}

}  // namespace

int main() {
  check_columns(), check_layout(), check_strata(), check_lattices();
  return good ? 0 : 1;
}
