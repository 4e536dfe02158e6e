// The entry into the fused pass of one target for one number of effects; each is compiled by itself, in
// parallel.
#pragma once

#include "fused_tile.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

template <int S>
void add_tile(const Problem&, const Tile&, double* workspace, const Sums&);  // cpu/fused_effects.cc

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
