// The mode of a strictly concave function of one number, in every lane.
#pragma once

#include "jaxglmm/vec.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

constexpr double kClose = 1e-12;  // Newton decrement at which one more step ends the search for a mode
constexpr int kMostSteps = 100;

// `slopes(u, first, second)` gives f'(u) and -f''(u) of f(u) = sum l(u) - u^2/2, with l concave.
//
// f' is decreasing with slope at most -1, so that the mode lies between u and u + f'(u): that is the bracket.
// A Newton step no shorter than half the last one is doubled if it has the same sign (in an exponential tail
// all steps are alike) and replaced by bisection if it has the other (between two flat tails it would go back
// and forth). A lane that has arrived stays, so that it does not depend on its neighbours in the vector.
template <class Slopes>
JAXGLMM_INLINE V scalar_mode(V u, double close, const Slopes& slopes) {
  V low = splat(-kInfinity), high = splat(kInfinity), last = high, stretch = splat(1.0);
  M open = low < high;
  for (int step = 0; step < kMostSteps; ++step) {
    V slope, curvature;
    slopes(u, slope, curvature);
    const V newton = slope / curvature;
    const M up = slope > 0.0, far = slope * newton > close;
    low = select(up, u, maximum(low, u + slope));
    high = select(up, minimum(high, u + slope), u);
    const M stuck = magnitude(newton) > 0.5 * magnitude(last), turned = newton * last < 0.0;
    stretch = select(stuck & !turned, 2.0 * stretch, splat(1.0));
    last = newton;
    V next = u + stretch * newton;
    next = select((stuck & turned) | (next < low) | (next > high), 0.5 * (low + high), next);
    u = select(open, select(far, next, u + newton), u);
    open = open & far;
    if (!any(open)) break;
  }
  return u;
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
