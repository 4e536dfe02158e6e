// One evaluation over all groups: cut into tiles and chunks, shared by threads, added up in order.
#pragma once

#include <string>
#include <vector>

#include "fused_pass.h"
#include "handler.h"

namespace jaxglmm {

constexpr int64_t kLongest = 32;  // rows of a piece, design.groups.LONGEST

// What is left to say about the storage once the shapes fit; empty where all is well.
std::string storage_fault(const Integers& sizes, int64_t batches_of_sizes, int64_t n_sizes, int64_t n_pieces,
                          int64_t block, int64_t slots);

// Fills `total` (Sums of the problem) and what the problem says is to be written slot by slot. The terms of the
// log-density that do not depend on eta are left out, but for the negative binomial's. False when memory ran out.
bool sweep(ffi::ThreadPool& pool, Problem q, const int32_t* sizes, int64_t n_sizes, const int32_t* pieces,
           int64_t n_pieces, std::vector<double>& total);

// Of a problem's Sums: value, gradient (columns + unknowns) and Hessian, where `hessian` is not null.
void write_sums(const Problem& q, std::vector<double>& total, const MutableColumn& value,
                const MutableColumn& gradient, const MutableColumn& hessian);

}  // namespace jaxglmm
