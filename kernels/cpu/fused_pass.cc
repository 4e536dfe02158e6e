// fused_pass: the marginal likelihood of groups with S = 1, 2 or 3 effects each, with exact derivatives in
// psi = (beta, the lower triangle of Lambda by columns, log_phi), reading each row of X once. The formulas
// are in jaxglmm/group_pass.h.
//
//   X                    (..., N, p)  tile storage (jaxglmm/tile.h): short blocks, then pieces of long groups
//   y, weight, offset    (..., N)
//   z, start             (..., S, N)
//   sizes                (..., NB)    int32, the size class of each short block
//   pieces               (..., NP)    int32, sorted: the group of each 32-row piece
//   psi                  (..., p + U), U = S (S + 1) / 2 + 1
//   points, log_weights  (..., S, K), (..., K)   quadrature nodes, of which the first `count` (...,) int32
//   are used value (...), gradient (..., p + U), hessian (..., p + U, p + U), modes (..., S, N)
//
// A fit whose psi begins with a NaN is left out: its results are NaN, its modes `start`.
// Floating-point operands and results are float64 or float32, each as it likes; what is computed is float64.
// Terms of the log-density that do not depend on eta are left to the caller, but for the negative binomial's.
#include <cmath>
#include <limits>

#include "group_operands.h"

namespace jaxglmm {
namespace {

// What a fit whose psi is not a number gets, without its rows being read: NaN, and the modes where they were.
void leave_out(int64_t m, int64_t numbers, const Column& start, const MutableColumn& value,
               const MutableColumn& gradient, const MutableColumn& hessian, const MutableColumn& modes) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  value.set(0, nan);
  for (int64_t i = 0; i < m; ++i) gradient.set(i, nan);
  for (int64_t i = 0; i < m * m; ++i) hessian.set(i, nan);
  for (int64_t i = 0; i < numbers; ++i) modes.set(i, start[i]);
}

ffi::Error fused_pass(ffi::ThreadPool pool, Any X, Any y, Any weight, Any offset, Any z, Any start, S32 sizes,
                      S32 pieces, Any psi, Any points, Any log_weights, S32 count, Out value, Out gradient,
                      Out hessian, Out modes, int64_t block, int64_t family, int64_t determinant,
                      int64_t second) {
  GroupHandler handler("fused_pass", pool, block, family, determinant != 0, second != 0);
  const auto further = [&](Operands& in, const Problem& q) {
    const int64_t m = q.columns + q.unknowns();
    const Result value_ = in.result("value", value, {}), gradient_ = in.result("gradient", gradient, {m}),
                 hessian_ = in.result("hessian", hessian, {m, m}),
                 modes_ = in.result("modes", modes, {q.effects, q.slots});
    return [=, &handler](Problem& at, int64_t b, bool threaded, const Storage& storage) {
      at.modes = modes_.at(b);
      if (std::isnan(at.beta[0])) {  // a fit of a batch that is not asked for
        leave_out(m, at.effects * at.slots, at.start, value_.at(b), gradient_.at(b), hessian_.at(b), at.modes);
        return;
      }
      std::vector<double> total;
      handler.sweep(at, threaded, storage, total);
      write_sums(at, total, value_.at(b), gradient_.at(b), hessian_.at(b));
    };
  };
  return handler.run(value->dimensions(),
                     {&X, y, weight, offset, z, start, sizes, pieces, psi, points, log_weights, count}, further);
}

}  // namespace
}  // namespace jaxglmm

JAXGLMM_HANDLER(jaxglmm_fused_pass, jaxglmm::fused_pass,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<jaxglmm::Any>()  // X
                    .Arg<jaxglmm::Any>()  // y
                    .Arg<jaxglmm::Any>()  // weight
                    .Arg<jaxglmm::Any>()  // offset
                    .Arg<jaxglmm::Any>()  // z
                    .Arg<jaxglmm::Any>()  // start
                    .Arg<jaxglmm::S32>()  // sizes
                    .Arg<jaxglmm::S32>()  // pieces
                    .Arg<jaxglmm::Any>()  // psi
                    .Arg<jaxglmm::Any>()  // points
                    .Arg<jaxglmm::Any>()  // log_weights
                    .Arg<jaxglmm::S32>()  // count
                    .Ret<jaxglmm::Any>()  // value
                    .Ret<jaxglmm::Any>()  // gradient
                    .Ret<jaxglmm::Any>()  // hessian
                    .Ret<jaxglmm::Any>()  // modes
                    .Attr<int64_t>("block")
                    .Attr<int64_t>("family")
                    .Attr<int64_t>("determinant")
                    .Attr<int64_t>("second"));
