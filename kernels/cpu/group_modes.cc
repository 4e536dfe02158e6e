// group_modes: as fused_pass where eta comes from anywhere, a neural network say; group_push: the Hessian's
// product with a direction in (eta, unknowns).
//
//   eta, y, weight         (..., N)       tile storage (jaxglmm/tile.h): short blocks, then pieces of long
//   groups z, start               (..., S, N) sizes, pieces          (..., NB), (..., NP)   int32, as in
//   fused_pass unknowns               (..., U)       the lower triangle of Lambda by columns, log_phi; U = S
//   (S + 1) / 2 + 1 points, log_weights    (..., S, K), (..., K)  of which the first `count` (...,) int32 are
//   used t_eta, t_unknowns      (..., N), (..., U)     of group_push
//
//   group_modes: value (...), d_eta (..., N), d_unknowns (..., U), modes (..., S, N), curvature (..., U - 1,
//   N): the upper triangle of H = I + Lambda' Z'WZ Lambda, row by row, in every slot of the group group_push:
//   pushed_eta (..., N), pushed_unknowns (..., U)
//
// Types, and terms without eta, as in fused_pass.
#include "group_operands.h"

namespace jaxglmm {
namespace {

ffi::Error group_modes(ffi::ThreadPool pool, Any eta, Any y, Any weight, Any z, Any start, S32 sizes,
                       S32 pieces, Any unknowns, Any points, Any log_weights, S32 count, Out value, Out d_eta,
                       Out d_unknowns, Out modes, Out curvature, int64_t block, int64_t family,
                       int64_t determinant) {
  GroupHandler handler("group_modes", pool, block, family, determinant != 0, false);
  const auto further = [&](Operands& in, const Problem& q) {
    const int64_t N = q.slots, S = q.effects, U = q.unknowns();
    const Result value_ = in.result("value", value, {}), d_eta_ = in.result("d_eta", d_eta, {N}),
                 d_unknowns_ = in.result("d_unknowns", d_unknowns, {U}),
                 modes_ = in.result("modes", modes, {S, N}),
                 curvature_ = in.result("curvature", curvature, {U - 1, N});
    return [=, &handler](Problem& at, int64_t b, bool threaded, const Storage& storage) {
      at.d_eta = d_eta_.at(b), at.modes = modes_.at(b), at.curvature = curvature_.at(b);
      std::vector<double> total;
      handler.sweep(at, threaded, storage, total);
      const Sums sums = {total.data(), best_target().padded(0), U};
      value_.at(b).set(0, sums.value());
      for (int64_t x = 0; x < U; ++x) d_unknowns_.at(b).set(x, sums.first()[x]);
    };
  };
  return handler.run(value->dimensions(),
                     {nullptr, y, weight, eta, z, start, sizes, pieces, unknowns, points, log_weights, count},
                     further);
}

ffi::Error group_push(ffi::ThreadPool pool, Any eta, Any y, Any weight, Any z, Any start, S32 sizes,
                      S32 pieces, Any unknowns, Any points, Any log_weights, S32 count, Any t_eta,
                      Any t_unknowns, Out pushed_eta, Out pushed_unknowns, int64_t block, int64_t family,
                      int64_t determinant) {
  GroupHandler handler("group_push", pool, block, family, determinant != 0, true);
  const Dimensions dims = pushed_eta->dimensions();
  if (dims.size() < 1) return handler.invalid("expected pushed_eta (..., slots), found " + shape_text(dims));
  const auto further = [&](Operands& in, const Problem& q) {
    const int64_t U = q.unknowns();
    const Numbers t_eta_ = in.numbers("t_eta", t_eta, {q.slots}),
                  t_unknowns_ = in.numbers("t_unknowns", t_unknowns, {U});
    const Result eta_ = in.result("pushed_eta", pushed_eta, {q.slots}),
                 unknowns_ = in.result("pushed_unknowns", pushed_unknowns, {U});
    return [=, &handler](Problem& at, int64_t b, bool threaded, const Storage& storage) {
      std::vector<double> direction(U), total;
      t_unknowns_.at(b).read(0, U, direction.data());
      at.t_eta = t_eta_.at(b), at.t_unknowns = direction.data(), at.pushed = eta_.at(b);
      handler.sweep(at, threaded, storage, total);
      const Sums sums = {total.data(), best_target().padded(0), U};
      const double* second = sums.second();
      for (int64_t x = 0; x < U; ++x)
        for (int64_t y = x; y < U; ++y, ++second) {
          sums.pushed()[x] += *second * direction[y];
          if (y != x) sums.pushed()[y] += *second * direction[x];
        }
      for (int64_t x = 0; x < U; ++x) unknowns_.at(b).set(x, sums.pushed()[x]);
    };
  };
  return handler.run({dims.begin(), dims.size() - 1},
                     {nullptr, y, weight, eta, z, start, sizes, pieces, unknowns, points, log_weights, count},
                     further);
}

}  // namespace
}  // namespace jaxglmm

#define JAXGLMM_GROUPS             \
  xla::ffi::Ffi::Bind()            \
      .Ctx<xla::ffi::ThreadPool>() \
      .Arg<jaxglmm::Any>()         \
      .Arg<jaxglmm::Any>()         \
      .Arg<jaxglmm::Any>()         \
      .Arg<jaxglmm::Any>()         \
      .Arg<jaxglmm::Any>()         \
      .Arg<jaxglmm::S32>()         \
      .Arg<jaxglmm::S32>()         \
      .Arg<jaxglmm::Any>()         \
      .Arg<jaxglmm::Any>()         \
      .Arg<jaxglmm::Any>()         \
      .Arg<jaxglmm::S32>()

JAXGLMM_HANDLER(jaxglmm_group_modes, jaxglmm::group_modes,
                JAXGLMM_GROUPS
                    .Ret<jaxglmm::Any>()  // value
                    .Ret<jaxglmm::Any>()  // d_eta
                    .Ret<jaxglmm::Any>()  // d_unknowns
                    .Ret<jaxglmm::Any>()  // modes
                    .Ret<jaxglmm::Any>()  // curvature
                    .Attr<int64_t>("block")
                    .Attr<int64_t>("family")
                    .Attr<int64_t>("determinant"));

JAXGLMM_HANDLER(jaxglmm_group_push, jaxglmm::group_push,
                JAXGLMM_GROUPS
                    .Arg<jaxglmm::Any>()  // t_eta
                    .Arg<jaxglmm::Any>()  // t_unknowns
                    .Ret<jaxglmm::Any>()  // pushed_eta
                    .Ret<jaxglmm::Any>()  // pushed_unknowns
                    .Attr<int64_t>("block")
                    .Attr<int64_t>("family")
                    .Attr<int64_t>("determinant"));
