// The steps of one evaluation, in order, on a grid: a GPU's (family.cu), or the host's that plays one
// (../tests/host_grid.cc). `grid.launch(blocks, body)` has kThreads threads a block.
#pragma once

#include "group_tile.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

template <class Grid, class F, int S>
void run_family(Grid& grid, const Pass& p) {
  const auto blocks_for = [](int64_t threads) { return (threads + kThreads - 1) / kThreads; };
  grid.launch(1, Prepare{p});
  grid.launch(p.parts(), AddGroups<F, S>{p});
  if (p.q.family == Family::negativebinomial) grid.launch(kLongParts, CountRows{p});
  grid.launch(blocks_for(p.sums_of(0).size()), AddSums{p});
  grid.launch(blocks_for(p.parameters() * p.parameters()), Write{p});
}

// Gives a pass its places in scratch memory, and returns how many doubles they take.
template <int S>
int64_t place(Pass& p, double* scratch) {
  int64_t used = 0;
  const auto take = [&](int64_t doubles) {
    double* at = scratch + used;
    used += doubles;
    return at;
  };
  using Groups = AddGroups<Logit, S>;  // as for every family
  const int64_t m = p.parameters(), K = p.q.stride, size = p.sums_of(0).size();
  p.numbers = take(m + (S + 1) * K + p.q.unknowns());
  p.q.beta = p.numbers, p.q.factor = p.numbers + p.q.columns;
  p.q.points = p.numbers + m, p.q.log_weights = p.q.points + S * K;
  p.q.t_unknowns = p.q.log_weights + K;
  p.sums = take(p.parts() * size), p.total = take(size), p.constants = take(3 * kLongParts);
  p.short_work = take(p.short_parts() * Groups::short_work(p.q));
  p.long_work = take(Groups{p}.long_work());
  return used;
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
