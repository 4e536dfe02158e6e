// One evaluation over all groups: cut into tiles and chunks, shared by threads, added up in order.
#pragma once

#include <algorithm>
#include <atomic>
#include <new>
#include <string>
#include <vector>

#include "chunks.h"
#include "fused_pass.h"
#include "handler.h"

namespace jaxglmm {

constexpr int64_t kLongest = 32;            // rows of a piece, design.groups.LONGEST
constexpr int64_t kWorthThreads = 1 << 12;  // slots
constexpr int64_t kTileSlots = 64;          // slots whose rows of X, twice, stay in the nearest cache

// Groups of `size` rows in a tile: whole vectors of them.
inline int64_t groups_of_tile(int64_t size) {
  const int64_t lanes = best_target().lanes;
  return std::max<int64_t>(kTileSlots / size / lanes, 1) * lanes;
}

// What is left to say about the storage once the shapes fit; empty where all is well.
std::string storage_fault(const Integers& sizes, int64_t batches_of_sizes, int64_t n_sizes, int64_t n_pieces,
                          int64_t block, int64_t slots);

// Calls fit(b, threaded) for every item of a batch. Threads share the fits where there are enough of them,
// otherwise the groups of one fit after the other (`threaded`). False when memory ran out.
template <class Fit>
bool for_each_fit(ffi::ThreadPool& pool, int64_t fits, int64_t slots, const Fit& fit) {
  const bool many = fits >= 2 * pool.num_threads(), inside = !many && slots >= kWorthThreads;
  std::atomic<bool> failed{false};
  for_each_chunk(pool, fits, many && fits * slots >= kWorthThreads,
                 [&](int64_t, int64_t first, int64_t last) {
                   try {
                     for (int64_t b = first; b < last; ++b) fit(b, inside);
                   } catch (const std::bad_alloc&) {
                     failed = true;
                   }
                 });
  return !failed;
}

// Fills `total` (Sums of the problem) and what the problem says is to be written slot by slot. The terms of
// the log-density that do not depend on eta are left out, but for the negative binomial's. Throws
// std::bad_alloc.
void sweep(ffi::ThreadPool& pool, bool threaded, Problem q, const int32_t* sizes, int64_t n_sizes,
           const int32_t* pieces, int64_t n_pieces, std::vector<double>& total);

// Adds to Sums the negative binomial's terms without eta, and their derivatives in log_phi.
void add_count_terms(ffi::ThreadPool& pool, bool threaded, const Problem& q, std::vector<double>& total);

// Of a problem's Sums: value, gradient (columns + unknowns) and Hessian, where `hessian` is not null.
void write_sums(const Problem& q, std::vector<double>& total, const MutableColumn& value,
                const MutableColumn& gradient, const MutableColumn& hessian);

}  // namespace jaxglmm
