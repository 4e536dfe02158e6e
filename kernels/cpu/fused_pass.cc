// fused_pass: the marginal likelihood of groups with one scalar effect, with exact derivatives in
// psi = (beta, tau, log_phi), reading each row of X once. The formulas are in fused_tile.h.
//
//   X            (..., N, p)      float64, tile storage (jaxglmm/tile.h): short blocks, then pieces of long
//   groups y, weight, offset, z, start   (..., N) sizes        (..., NB)        int32, the size class of each
//   short block pieces       (..., NP)        int32, sorted: the group of each 32-row piece psi (..., p + 2)
//   points, log_weights  (..., K) quadrature nodes, of which the first `count` (...,) int32 are used
//   value (...), gradient (..., p + 2), hessian (..., p + 2, p + 2), modes (..., N)
//
// Terms of the log-density that do not depend on eta are left to the caller, but for the negative binomial's.
#include "fused_pass.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "chunks.h"
#include "count_table.h"
#include "handler.h"
#include "jaxglmm/tile.h"

namespace jaxglmm {
namespace {

constexpr int64_t kLongest = 32;            // rows of a piece, design.groups.LONGEST
constexpr int64_t kTileSlots = 256;         // slots whose rows of X, twice, stay in the nearer caches
constexpr int64_t kWorthThreads = 1 << 12;  // slots
constexpr int64_t kAlign = 64;

ffi::Error invalid(const std::string& what) { return ffi::Error::InvalidArgument("fused_pass: " + what); }

// Memory at an address that any vector type likes.
class Aligned {
 public:
  double* get(int64_t doubles) {
    if (doubles > size_) {
      memory_.reset(
          static_cast<double*>(::operator new[](doubles * sizeof(double), std::align_val_t(kAlign))));
      size_ = doubles;
    }
    return memory_.get();
  }

 private:
  struct Delete {
    void operator()(double* p) const { ::operator delete[](p, std::align_val_t(kAlign)); }
  };
  std::unique_ptr<double[], Delete> memory_;
  int64_t size_ = 0;
};

// A short block, or a long group.
struct Item {
  bool joined;
  int64_t size, lanes, first;
};

std::vector<Item> items_of(const int32_t* sizes, int64_t blocks, const int32_t* pieces, int64_t n_pieces,
                           int64_t block) {
  std::vector<Item> items;
  for (int64_t b = 0; b < blocks; ++b) items.push_back({false, sizes[b], block / sizes[b], b * block});
  for (int64_t begin = 0, end; begin < n_pieces; begin = end) {
    for (end = begin + 1; end < n_pieces && pieces[end] == pieces[begin];) ++end;
    items.push_back({true, kLongest, end - begin, begin});
  }
  return items;
}

void add_item(const Target& target, const Problem& q, const Item& item, int64_t short_slots,
              Aligned& workspace, const Sums& sums) {
  Tile tile = {item.joined, item.size, item.lanes, item.first, item.lanes, short_slots};
  if (item.joined) {
    tile.stride = q.block / kLongest;
    target.add(q, tile, workspace.get(target.workspace(q, tile)), sums);
    return;
  }
  const int64_t step = std::max<int64_t>(kTileSlots / item.size / target.lanes, 1) * target.lanes;
  for (int64_t lane = 0; lane < item.lanes; lane += step) {
    tile.first = item.first + lane;
    tile.lanes = std::min(step, item.lanes - lane);
    target.add(q, tile, workspace.get(target.workspace(q, tile)), sums);
  }
}

struct Results {
  double *value, *gradient, *hessian;
};

void write(const std::vector<double>& chunks, int64_t size, int64_t padded, int64_t p, bool second,
           const Results& out) {
  std::vector<double> total(size, 0.0);
  for (size_t i = 0; i < chunks.size(); ++i)
    total[i % size] += chunks[i];  // chunk after chunk: always the same bits
  const Sums sums = {total.data(), padded};
  const int64_t m = p + 2;
  *out.value = sums[Sums::value];
  std::copy_n(sums.gradient(), p, out.gradient);
  out.gradient[p] = sums[Sums::tau], out.gradient[p + 1] = sums[Sums::phi];
  std::fill_n(out.hessian, m * m, 0.0);
  if (!second) return;
  const auto set = [&](int64_t i, int64_t j, double v) {
    out.hessian[i * m + j] = out.hessian[j * m + i] = v;
  };
  for (int64_t i = 0; i < p; ++i) {
    for (int64_t j = i; j < p; ++j) set(i, j, sums.hessian()[i * padded + j]);
    set(i, p, sums.by_tau()[i]), set(i, p + 1, sums.by_phi()[i]);
  }
  set(p, p, sums[Sums::tau_tau]), set(p, p + 1, sums[Sums::tau_phi]), set(p + 1, p + 1, sums[Sums::phi_phi]);
}

// The negative binomial's terms without eta, and their derivatives in log_phi, of all rows.
CountTable::Entry count_terms(ffi::ThreadPool& pool, const Problem& q, int64_t slots, bool threaded) {
  const CountTable table(q.y, q.weight, slots, q.log_phi);
  std::vector<CountTable::Entry> chunks(kChunks, CountTable::Entry{});
  for_each_chunk(pool, slots, threaded, [&](int64_t chunk, int64_t first, int64_t last) {
    CountTable::Entry sum{};
    for (int64_t i = first; i < last; ++i) {
      if (!(q.weight[i] > 0)) continue;
      const CountTable::Entry entry = table[q.y[i]];
      for (size_t k = 0; k < sum.size(); ++k) sum[k] += q.weight[i] * entry[k];
    }
    chunks[chunk] = sum;
  });
  CountTable::Entry total{};
  for (const CountTable::Entry& chunk : chunks)
    for (size_t k = 0; k < total.size(); ++k) total[k] += chunk[k];
  return total;
}

// False when memory ran out. `threaded`: the groups may be shared among threads.
bool compute(ffi::ThreadPool& pool, Problem q, const std::vector<Item>& items, int64_t short_slots,
             int64_t slots, bool threaded, const Results& out) try {
  const Target& target = best_target();
  const int64_t padded = target.padded(q.columns), size = Sums::size(padded);
  Aligned beta;
  std::fill_n(std::copy_n(q.beta, q.columns, beta.get(padded + 1)), padded - q.columns, 0.0);
  q.beta = beta.get(0);
  const int64_t n_items = static_cast<int64_t>(items.size());
  std::vector<double> chunks(std::min(n_items, kChunks) * size, 0.0);
  std::atomic<bool> failed{false};
  for_each_chunk(pool, n_items, threaded, [&](int64_t chunk, int64_t first, int64_t last) {
    try {
      Aligned workspace, accumulator;
      const Sums sums = {accumulator.get(size), padded};
      std::fill_n(sums.at, size, 0.0);
      for (int64_t i = first; i < last; ++i) add_item(target, q, items[i], short_slots, workspace, sums);
      std::copy_n(sums.at, size, chunks.data() + chunk * size);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  });
  if (failed) return false;
  write(chunks, size, padded, q.columns, q.second, out);
  if (q.family == Family::negativebinomial) {
    const CountTable::Entry terms = count_terms(pool, q, slots, threaded);
    const int64_t last = q.columns + 1;
    *out.value += terms[0], out.gradient[last] += terms[1];
    if (q.second) out.hessian[last * (last + 1) + last] += terms[2];
  }
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

using F64 = ffi::Buffer<ffi::F64>;
using S32 = ffi::Buffer<ffi::S32>;
using Out = ffi::ResultBuffer<ffi::F64>;

ffi::Error fused_pass(ffi::ThreadPool pool, F64 X, F64 y, F64 weight, F64 offset, F64 z, F64 start, S32 sizes,
                      S32 pieces, F64 psi, F64 points, F64 log_weights, S32 count, Out value, Out gradient,
                      Out hessian, Out modes, int64_t block, int64_t family, int64_t determinant,
                      int64_t second) {
  const Dimensions X_dims = X.dimensions(), batch = value->dimensions();
  if (X_dims.size() < 2) return invalid("expected X (..., slots, columns), found " + shape_text(X_dims));
  const int64_t p = X_dims.back(), slots = X_dims[X_dims.size() - 2];
  if (family < 0 || family >= kFamilies) return invalid("family " + std::to_string(family) + " is not known");
  if (block <= 0) return invalid("block = " + std::to_string(block) + " has no slots");

  // Leading axes of every operand, and that what follows them is as it must be.
  std::string wrong;
  const auto check = [&](const char* name, Dimensions dims, std::vector<int64_t> core, bool result) {
    const size_t n = core.size();
    Leading lead(dims, n, batch, 0);
    bool fits = lead.fits() && (!result || dims.size() == batch.size() + n);
    for (size_t k = 0; fits && k < n; ++k) fits = dims[dims.size() - n + k] == core[k] || core[k] < 0;
    for (size_t k = 0; fits && result && k < batch.size(); ++k) fits = dims[k] == batch[k];
    if (!fits && wrong.empty()) wrong = std::string(name) + " " + shape_text(dims);
    return lead;
  };
  const Leading at_X = check("X", X_dims, {slots, p}, false),
                at_y = check("y", y.dimensions(), {slots}, false),
                at_weight = check("weight", weight.dimensions(), {slots}, false),
                at_offset = check("offset", offset.dimensions(), {slots}, false),
                at_z = check("z", z.dimensions(), {slots}, false),
                at_start = check("start", start.dimensions(), {slots}, false),
                at_sizes = check("sizes", sizes.dimensions(), {-1}, false),
                at_pieces = check("pieces", pieces.dimensions(), {-1}, false),
                at_psi = check("psi", psi.dimensions(), {p + 2}, false),
                at_points = check("points", points.dimensions(), {-1}, false),
                at_count = check("count", count.dimensions(), {}, false);
  if (!wrong.empty()) return invalid("found " + wrong + " beside X " + shape_text(X_dims));
  const int64_t n_sizes = sizes.dimensions().back(), n_pieces = pieces.dimensions().back(),
                n_points = points.dimensions().back();
  const Leading at_log_weights = check("log_weights", log_weights.dimensions(), {n_points}, false);
  check("gradient", gradient->dimensions(), {p + 2}, true),
      check("hessian", hessian->dimensions(), {p + 2, p + 2}, true);
  check("modes", modes->dimensions(), {slots}, true);
  if (!wrong.empty()) return invalid("found " + wrong + " beside X " + shape_text(X_dims));
  if (n_sizes * block + n_pieces * kLongest != slots)
    return invalid("found " + std::to_string(n_sizes) + " blocks of " + std::to_string(block) +
                   " slots and " + std::to_string(n_pieces) + " pieces of 32 in " + std::to_string(slots) +
                   " slots");
  if (n_pieces && (block % kLongest || n_pieces % (block / kLongest)))
    return invalid(std::to_string(n_pieces) + " pieces of 32 do not fill blocks of " + std::to_string(block));
  for (size_t i = 0; i < sizes.element_count(); ++i)
    if (!is_class_size(sizes.typed_data()[i], block) || sizes.typed_data()[i] > kLongest)
      return invalid("sizes[" + std::to_string(i) + "] = " + std::to_string(sizes.typed_data()[i]) +
                     " is no size of a group in a block of " + std::to_string(block));
  for (size_t i = 0; i < count.element_count(); ++i)
    if (count.typed_data()[i] < 1 || count.typed_data()[i] > n_points)
      return invalid("count = " + std::to_string(count.typed_data()[i]) + " of " + std::to_string(n_points) +
                     " nodes");

  // Threads share the fits where there are enough of them, otherwise the groups of one fit after the other.
  const int64_t fits = at_X.count();
  const bool many = fits >= 2 * pool.num_threads(), inside = !many && slots >= kWorthThreads;
  std::atomic<bool> failed{false};
  const auto evaluate = [&](int64_t b) {
    const double* parameters = psi.typed_data() + at_psi.at(b) * (p + 2);
    const auto vector = [&](F64& buffer, const Leading& lead) {
      return buffer.typed_data() + lead.at(b) * slots;
    };
    Problem q;
    q.X = X.typed_data() + at_X.at(b) * slots * p;
    q.y = vector(y, at_y), q.weight = vector(weight, at_weight), q.offset = vector(offset, at_offset);
    q.z = vector(z, at_z), q.start = vector(start, at_start);
    q.beta = parameters, q.tau = parameters[p], q.log_phi = parameters[p + 1];
    q.points = points.typed_data() + at_points.at(b) * n_points;
    q.log_weights = log_weights.typed_data() + at_log_weights.at(b) * n_points;
    q.columns = p, q.nodes = count.typed_data()[at_count.at(b)], q.block = block;
    q.family = static_cast<Family>(family);
    q.determinant = determinant != 0, q.second = second != 0;
    q.modes = modes->typed_data() + b * slots;
    const std::vector<Item> items =
        items_of(sizes.typed_data() + at_sizes.at(b) * n_sizes, n_sizes,
                 pieces.typed_data() + at_pieces.at(b) * n_pieces, n_pieces, block);
    const Results out = {value->typed_data() + b, gradient->typed_data() + b * (p + 2),
                         hessian->typed_data() + b * (p + 2) * (p + 2)};
    if (!compute(pool, q, items, n_sizes * block, slots, inside, out)) failed = true;
  };
  for_each_chunk(pool, fits, many && fits * slots >= kWorthThreads, [&](int64_t, int64_t first, int64_t last) {
    try {
      for (int64_t b = first; b < last; ++b) evaluate(b);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  });
  if (failed) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "fused_pass: out of memory");
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxglmm

JAXGLMM_HANDLER(jaxglmm_fused_pass, jaxglmm::fused_pass,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<jaxglmm::F64>()  // X
                    .Arg<jaxglmm::F64>()  // y
                    .Arg<jaxglmm::F64>()  // weight
                    .Arg<jaxglmm::F64>()  // offset
                    .Arg<jaxglmm::F64>()  // z
                    .Arg<jaxglmm::F64>()  // start
                    .Arg<jaxglmm::S32>()  // sizes
                    .Arg<jaxglmm::S32>()  // pieces
                    .Arg<jaxglmm::F64>()  // psi
                    .Arg<jaxglmm::F64>()  // points
                    .Arg<jaxglmm::F64>()  // log_weights
                    .Arg<jaxglmm::S32>()  // count
                    .Ret<jaxglmm::F64>()  // value
                    .Ret<jaxglmm::F64>()  // gradient
                    .Ret<jaxglmm::F64>()  // hessian
                    .Ret<jaxglmm::F64>()  // modes
                    .Attr<int64_t>("block")
                    .Attr<int64_t>("family")
                    .Attr<int64_t>("determinant")
                    .Attr<int64_t>("second"));
