// Places in scratch memory, which no family changes.
#include "launch.h"
#include "run.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

template <>
int64_t place_pass<1>(Pass& p, double* scratch) {
  return place<1>(p, scratch);
}
template <>
int64_t place_pass<2>(Pass& p, double* scratch) {
  return place<2>(p, scratch);
}
template <>
int64_t place_pass<3>(Pass& p, double* scratch) {
  return place<3>(p, scratch);
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
