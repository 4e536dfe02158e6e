// Handlers for sparse matrices over the levels of two factors (pairs.h), and for the sums over rows that make
// them.
//
//   pair_product     values (P, a, b), start (G + 1,), other (m,), place (m,) or (0,), x (G', ., k)  ->  (G,
//   ., k) pair_outer       start (G + 1,), other (P,), a (G, S, k), b (G', R, k)  ->  (P, S, R) row_sums left
//   (S, n), right (R, n) or (0, n), start (G + 1,), place (m,) or (0,)  ->  (G, S, R) sampled_product  values
//   (m,), start (G + 1,), other (m,), R (r, r)  ->  (m,)
//
// All float64 with int32 indices, and with leading axes. Levels are cut into chunks of about as many entries
// each.
#include "pairs.h"

#include <cstring>
#include <string>

#include "chunks.h"
#include "handler.h"
#include "host.h"

namespace jaxglmm {
namespace {

constexpr int64_t kWorthThreads = 1 << 15;  // multiplications

// Calls body(first, last) for ranges of levels that have about as many entries each.
template <typename Body>
void for_each_range(ffi::ThreadPool& pool, const int32_t* start, int64_t levels, int64_t work,
                    const Body& body) {
  const int64_t all = start[levels] + levels;
  const auto bound = [&](int64_t chunk) {  // the first level at or behind a share of entries and levels
    int64_t low = 0, high = levels;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (start[middle] + middle < chunk * all / kChunks)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  };
  for_each_chunk(pool, kChunks, work >= kWorthThreads, [&](int64_t, int64_t chunk, int64_t end) {
    for (; chunk < end; ++chunk) body(bound(chunk), chunk + 1 == kChunks ? levels : bound(chunk + 1));
  });
}

template <typename Problem>
auto best() -> void (*)(const Problem&, int64_t, int64_t) {
#if defined(JAXGLMM_X86)
  const std::string name = best_target().name;
  if (name == "avx512") return avx512::run;
  if (name == "avx2") return avx2::run;
#endif
  return baseline::run;
}

// Row pointers; without levels there is not even the first.
bool points(const int32_t* start, int64_t levels, int64_t entries) {
  return levels >= 0 && rises(start, levels, entries) && start[0] == 0;
}

ffi::Error invalid(const char* name, const std::string& what) {
  return ffi::Error::InvalidArgument(std::string(name) + ": " + what);
}

int64_t extent(Dimensions dims, size_t from_last) {
  return dims.size() >= from_last ? dims[dims.size() - from_last] : 0;
}

Dimensions leading(Dimensions dims, size_t core) {
  return {dims.begin(), dims.size() >= core ? dims.size() - core : 0};
}

const double* at(const Numbers& v, int64_t b) { return static_cast<const double*>(v.at(b).at); }
double* at(const Result& v, int64_t b) { return static_cast<double*>(v.at(b).at); }

using S32 = ffi::Buffer<ffi::S32>;

// Row pointers, and the indices behind them: checked once a call, since a wrong one would read anywhere.
std::string index_fault(const Integers& start, int64_t levels, const Integers& other, int64_t count,
                        int64_t limit, int64_t items) {
  for (int64_t b = 0; b < items; ++b) {
    if (!points(start.at(b), levels, count)) return "start must rise from 0 to the number of entries";
    if (!within(other.at(b), start.at(b)[levels], limit))
      return "an index is not in 0 ... " + std::to_string(limit - 1);
  }
  return "";
}

ffi::Error pair_product(ffi::ThreadPool pool, ffi::AnyBuffer values, S32 start, S32 other, S32 place,
                        ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> out, bool transposed) {
  const Dimensions v = values.dimensions(), in = x.dimensions(), to = out->dimensions();
  const int64_t P = extent(v, 3), rows = extent(v, transposed ? 1 : 2), inner = extent(v, transposed ? 2 : 1);
  const int64_t levels = extent(to, 3), k = extent(in, 1), m = extent(other.dimensions(), 1);
  const int64_t n_place = extent(place.dimensions(), 1);
  Operands operands(leading(to, 3));
  const Numbers value = operands.numbers("values", values, {P, extent(v, 2), extent(v, 1)});
  const Numbers vector = operands.numbers("x", x, {-1, inner, k});
  const Integers starts = operands.integers("start", start, {levels + 1});
  const Integers others = operands.integers("other", other, {m});
  const Integers places = operands.integers("place", place, {n_place});
  const Result result = operands.result("the result", out, {levels, rows, k});
  operands.require(n_place ? n_place == m : m <= P, "place must be empty or as long as other");
  operands.require(values.element_type() == ffi::F64 && x.element_type() == ffi::F64, "float64 is expected");
  if (!operands.wrong().empty()) return invalid("pair_product", operands.wrong());
  const std::string fault = index_fault(starts, levels, others, m, extent(in, 3), operands.items());
  if (!fault.empty()) return invalid("pair_product", fault);
  for (int64_t b = 0; b < operands.items(); ++b) {
    if (n_place && !within(places.at(b), starts.at(b)[levels], P))
      return invalid("pair_product", "place is out of range");
    const PairProduct q = {at(value, b),  starts.at(b),
                           others.at(b),  n_place ? places.at(b) : nullptr,
                           at(vector, b), at(result, b),
                           levels,        rows,
                           inner,         k,
                           transposed};
    const auto run = best<PairProduct>();
    for_each_range(pool, q.start, levels, q.start[levels] * rows * inner * k,
                   [&](int64_t first, int64_t last) { run(q, first, last); });
  }
  return ffi::Error::Success();
}

ffi::Error pair_outer(ffi::ThreadPool pool, S32 start, S32 other, ffi::AnyBuffer a, ffi::AnyBuffer b,
                      ffi::Result<ffi::AnyBuffer> out) {
  const Dimensions left = a.dimensions(), right = b.dimensions(), to = out->dimensions();
  const int64_t levels = extent(left, 3), rows = extent(left, 2), inner = extent(right, 2),
                k = extent(left, 1);
  const int64_t m = extent(to, 3);
  Operands operands(leading(to, 3));
  const Integers starts = operands.integers("start", start, {levels + 1});
  const Integers others = operands.integers("other", other, {m});
  const Numbers one = operands.numbers("a", a, {levels, rows, k});
  const Numbers two = operands.numbers("b", b, {-1, inner, k});
  const Result result = operands.result("the result", out, {m, rows, inner});
  operands.require(a.element_type() == ffi::F64 && b.element_type() == ffi::F64, "float64 is expected");
  if (!operands.wrong().empty()) return invalid("pair_outer", operands.wrong());
  const std::string fault = index_fault(starts, levels, others, m, extent(right, 3), operands.items());
  if (!fault.empty()) return invalid("pair_outer", fault);
  for (int64_t item = 0; item < operands.items(); ++item) {
    const PairOuter q = {starts.at(item),
                         others.at(item),
                         at(one, item),
                         at(two, item),
                         at(result, item),
                         levels,
                         rows,
                         inner,
                         k};
    const int64_t used = q.start[levels];
    std::memset(q.out + used * rows * inner, 0, (m - used) * rows * inner * sizeof(double));
    const auto run = best<PairOuter>();
    for_each_range(pool, q.start, levels, used * rows * inner * k,
                   [&](int64_t first, int64_t last) { run(q, first, last); });
  }
  return ffi::Error::Success();
}

void run(const RowSums& q, int64_t first, int64_t last) {
  for (int64_t g = first; g < last; ++g)
    for (int64_t s = 0; s < q.rows; ++s)
      for (int64_t r = 0; r < q.inner; ++r) {
        const double *left = q.left + s * q.length, *right = q.right ? q.right + r * q.length : nullptr;
        double total = 0;
        for (int64_t j = q.start[g]; j < q.start[g + 1]; ++j) {
          const int64_t i = q.place ? q.place[j] : j;
          total += right ? left[i] * right[i] : left[i];
        }
        q.out[(g * q.rows + s) * q.inner + r] = total;
      }
}

ffi::Error row_sums(ffi::ThreadPool pool, ffi::AnyBuffer left, ffi::AnyBuffer right, S32 start, S32 place,
                    ffi::Result<ffi::AnyBuffer> out) {
  const Dimensions one = left.dimensions(), two = right.dimensions(), to = out->dimensions();
  const int64_t n = extent(one, 1), S = extent(one, 2), R = extent(two, 2), levels = extent(to, 3);
  const int64_t n_place = extent(place.dimensions(), 1), m = n_place ? n_place : n, inner = R ? R : 1;
  Operands operands(leading(to, 3));
  const Numbers lefts = operands.numbers("left", left, {S, n});
  const Numbers rights = operands.numbers("right", right, {R, n});
  const Integers starts = operands.integers("start", start, {levels + 1});
  const Integers places = operands.integers("place", place, {n_place});
  const Result result = operands.result("the result", out, {levels, S, inner});
  operands.require(left.element_type() == ffi::F64 && right.element_type() == ffi::F64,
                   "float64 is expected");
  if (!operands.wrong().empty()) return invalid("row_sums", operands.wrong());
  const std::string fault =
      index_fault(starts, n_place ? levels : 0, places, m, n, n_place ? operands.items() : 0);
  if (!fault.empty()) return invalid("row_sums", fault);
  for (int64_t b = 0; b < operands.items(); ++b) {
    if (!points(starts.at(b), levels, m))
      return invalid("row_sums", "start must rise from 0 to the number of rows");
    const RowSums q = {starts.at(b),  n_place ? places.at(b) : nullptr,
                       at(lefts, b),  R ? at(rights, b) : nullptr,
                       at(result, b), S,
                       inner,         n};
    for_each_range(pool, q.start, levels, q.start[levels] * S * inner,
                   [&](int64_t first, int64_t last) { run(q, first, last); });
  }
  return ffi::Error::Success();
}

void run(const SampledProduct& q, int64_t first, int64_t last) {
  for (int64_t g = first; g < last; ++g)
    for (int64_t j = q.start[g]; j < q.start[g + 1]; ++j) {
      const int64_t column = q.other[j];
      double total = 0;
      for (int64_t i = q.start[g]; i < q.start[g + 1]; ++i) {
        const int64_t row = q.other[i], low = row < column ? row : column, high = row < column ? column : row;
        total += q.values[i] * q.R[low * q.order + high];
      }
      q.out[j] = total;
    }
}

ffi::Error sampled_product(ffi::ThreadPool pool, ffi::AnyBuffer values, S32 start, S32 other,
                           ffi::AnyBuffer R, ffi::Result<ffi::AnyBuffer> out) {
  const int64_t m = extent(values.dimensions(), 1), levels = extent(start.dimensions(), 1) - 1;
  const int64_t order = extent(R.dimensions(), 1);
  Operands operands(leading(out->dimensions(), 1));
  const Numbers value = operands.numbers("values", values, {m});
  const Integers starts = operands.integers("start", start, {levels + 1});
  const Integers others = operands.integers("other", other, {m});
  const Numbers inverse = operands.numbers("R", R, {order, order});
  const Result result = operands.result("the result", out, {m});
  operands.require(values.element_type() == ffi::F64 && R.element_type() == ffi::F64, "float64 is expected");
  if (!operands.wrong().empty()) return invalid("sampled_product", operands.wrong());
  const std::string fault = index_fault(starts, levels, others, m, order, operands.items());
  if (!fault.empty()) return invalid("sampled_product", fault);
  for (int64_t b = 0; b < operands.items(); ++b) {
    const SampledProduct q = {at(value, b), starts.at(b), others.at(b), at(inverse, b), at(result, b), order};
    const int64_t used = q.start[levels];
    std::memset(q.out + used, 0, (m - used) * sizeof(double));
    for_each_range(pool, q.start, levels, used * 16,
                   [&](int64_t first, int64_t last) { run(q, first, last); });
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxglmm

JAXGLMM_HANDLER(jaxglmm_pair_product, jaxglmm::pair_product,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()  // values
                    .Arg<jaxglmm::S32>()         // start
                    .Arg<jaxglmm::S32>()         // other
                    .Arg<jaxglmm::S32>()         // place
                    .Arg<xla::ffi::AnyBuffer>()  // x
                    .Ret<xla::ffi::AnyBuffer>()
                    .Attr<bool>("transposed"));

JAXGLMM_HANDLER(jaxglmm_pair_outer, jaxglmm::pair_outer,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<jaxglmm::S32>()         // start
                    .Arg<jaxglmm::S32>()         // other
                    .Arg<xla::ffi::AnyBuffer>()  // a
                    .Arg<xla::ffi::AnyBuffer>()  // b
                    .Ret<xla::ffi::AnyBuffer>());

JAXGLMM_HANDLER(jaxglmm_row_sums, jaxglmm::row_sums,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()  // left
                    .Arg<xla::ffi::AnyBuffer>()  // right
                    .Arg<jaxglmm::S32>()         // start
                    .Arg<jaxglmm::S32>()         // place
                    .Ret<xla::ffi::AnyBuffer>());

JAXGLMM_HANDLER(jaxglmm_sampled_product, jaxglmm::sampled_product,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()  // values
                    .Arg<jaxglmm::S32>()         // start
                    .Arg<jaxglmm::S32>()         // other
                    .Arg<xla::ffi::AnyBuffer>()  // R
                    .Ret<xla::ffi::AnyBuffer>());
