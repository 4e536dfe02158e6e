#include "sweep.h"

#include <algorithm>
#include <memory>

#include "count_table.h"
#include "jaxglmm/tile.h"

namespace jaxglmm {
namespace {

constexpr int64_t kAlign = 64;

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
  const auto workspace_of = target.workspace[q.effects - 1];
  const auto add = target.add[q.effects - 1];
  if (item.joined) {
    tile.stride = q.block / kLongest;
    add(q, tile, workspace.get(workspace_of(q, tile)), sums);
    return;
  }
  const int64_t step = groups_of_tile(item.size);
  for (int64_t lane = 0; lane < item.lanes; lane += step) {
    tile.first = item.first + lane;
    tile.lanes = std::min(step, item.lanes - lane);
    add(q, tile, workspace.get(workspace_of(q, tile)), sums);
  }
}

// The negative binomial's terms without eta, and their derivatives in log_phi, of all rows.
CountTable::Entry count_terms(ffi::ThreadPool& pool, bool threaded, const Problem& q) {
  const CountTable table(q.y, q.weight, q.slots, q.log_phi);
  std::vector<CountTable::Entry> chunks(kChunks, CountTable::Entry{});
  for_each_chunk(pool, q.slots, threaded, [&](int64_t chunk, int64_t first, int64_t last) {
    CountTable::Entry sum{};
    for (int64_t i = first; i < last; ++i) {
      const double weight = q.weight[i];
      if (!(weight > 0)) continue;
      const CountTable::Entry entry = table[q.y[i]];
      for (size_t k = 0; k < sum.size(); ++k) sum[k] += weight * entry[k];
    }
    chunks[chunk] = sum;
  });
  CountTable::Entry total{};
  for (const CountTable::Entry& chunk : chunks)
    for (size_t k = 0; k < total.size(); ++k) total[k] += chunk[k];
  return total;
}

}  // namespace

std::string storage_fault(const Integers& sizes, int64_t batches_of_sizes, int64_t n_sizes, int64_t n_pieces,
                          int64_t block, int64_t slots) {
  const auto text = [](int64_t v) { return std::to_string(v); };
  const std::string fault = shape_fault(n_sizes, n_pieces, block, slots);
  if (!fault.empty()) return fault;
  for (int64_t i = 0; i < batches_of_sizes * n_sizes; ++i)
    if (!is_class_size(sizes.data[i], block) || sizes.data[i] > kLongest)
      return "sizes[" + text(i) + "] = " + text(sizes.data[i]) + " is no size of a group in a block of " +
             text(block);
  return "";
}

void sweep(ffi::ThreadPool& pool, bool threaded, Problem q, const int32_t* sizes, int64_t n_sizes,
           const int32_t* pieces, int64_t n_pieces, std::vector<double>& total) {
  const Target& target = best_target();
  const Sums shape = {nullptr, target.padded(q.columns), q.unknowns()};
  const int64_t size = shape.size();
  Aligned beta;
  std::fill_n(std::copy_n(q.beta, q.columns, beta.get(shape.padded + 1)), shape.padded - q.columns, 0.0);
  q.beta = beta.get(0);
  const std::vector<Item> items = items_of(sizes, n_sizes, pieces, n_pieces, q.block);
  const int64_t n_items = static_cast<int64_t>(items.size());
  std::vector<double> chunks(std::min(n_items, kChunks) * size, 0.0);
  std::atomic<bool> failed{false};
  for_each_chunk(pool, n_items, threaded, [&](int64_t chunk, int64_t first, int64_t last) {
    try {
      Aligned workspace, accumulator;
      const Sums sums = {accumulator.get(size), shape.padded, shape.unknowns};
      std::fill_n(sums.at, size, 0.0);
      for (int64_t i = first; i < last; ++i)
        add_item(target, q, items[i], n_sizes * q.block, workspace, sums);
      std::copy_n(sums.at, size, chunks.data() + chunk * size);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  });
  if (failed) throw std::bad_alloc();
  total.assign(size, 0.0);
  for (size_t i = 0; i < chunks.size(); ++i)
    total[i % size] += chunks[i];  // chunk after chunk: always the same bits
  add_count_terms(pool, threaded, q, total);
}

void add_count_terms(ffi::ThreadPool& pool, bool threaded, const Problem& q, std::vector<double>& total) {
  if (q.family != Family::negativebinomial) return;
  const CountTable::Entry terms = count_terms(pool, threaded, q);
  const Sums sums = {total.data(), best_target().padded(q.columns), q.unknowns()};
  const int64_t u = sums.unknowns;
  sums.value() += terms[0], sums.first()[u - 1] += terms[1];
  if (q.second) sums.second()[u * (u + 1) / 2 - 1] += terms[2];
}

void write_sums(const Problem& q, std::vector<double>& total, const MutableColumn& value,
                const MutableColumn& gradient, const MutableColumn& hessian) {
  const Sums sums = {total.data(), best_target().padded(q.columns), q.unknowns()};
  const int64_t p = q.columns, u = sums.unknowns, m = p + u;
  value.set(0, sums.value());
  for (int64_t i = 0; i < p; ++i) gradient.set(i, sums.gradient()[i]);
  for (int64_t x = 0; x < u; ++x) gradient.set(p + x, sums.first()[x]);
  const auto set = [&](int64_t i, int64_t j, double v) {
    hessian.set(i * m + j, v), hessian.set(j * m + i, v);
  };
  const double* second = sums.second();
  for (int64_t x = 0; x < u; ++x)
    for (int64_t y = x; y < u; ++y, ++second) set(p + x, p + y, *second);
  for (int64_t i = 0; i < p; ++i) {
    for (int64_t j = i; j < p; ++j) set(i, j, q.second ? sums.hessian()[i * sums.padded + j] : 0.0);
    for (int64_t x = 0; x < u; ++x) set(i, p + x, sums.mixed(x)[i]);
  }
}

}  // namespace jaxglmm
