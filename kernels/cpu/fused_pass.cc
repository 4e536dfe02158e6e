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

#include "sweep.h"

namespace jaxglmm {
namespace {

ffi::Error invalid(const std::string& what) { return ffi::Error::InvalidArgument("fused_pass: " + what); }

using Any = ffi::AnyBuffer;
using S32 = ffi::Buffer<ffi::S32>;
using Out = ffi::Result<ffi::AnyBuffer>;

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
  if (X.dimensions().size() < 2 || z.dimensions().size() < 2 || points.dimensions().size() < 2)
    return invalid(
        "expected X (..., slots, columns), z (..., effects, slots) and points (..., effects, nodes), found " +
        shape_text(X.dimensions()) + ", " + shape_text(z.dimensions()) + " and " +
        shape_text(points.dimensions()));
  if (sizes.dimensions().size() < 1 || pieces.dimensions().size() < 1)
    return invalid("sizes and pieces need an axis");
  const auto extent = [](Dimensions dims, int from_last) { return dims[dims.size() - from_last]; };
  Problem q;
  q.columns = extent(X.dimensions(), 1), q.slots = extent(X.dimensions(), 2),
  q.effects = extent(z.dimensions(), 2);
  q.stride = extent(points.dimensions(), 1);
  q.block = block, q.determinant = determinant != 0, q.second = second != 0;
  if (q.effects < 1 || q.effects > kMostEffects)
    return invalid(std::to_string(q.effects) + " effects a group; expected 1, 2 or 3");
  if (family < 0 || family >= kFamilies) return invalid("family " + std::to_string(family) + " is not known");
  q.family = static_cast<Family>(family);
  const int64_t N = q.slots, p = q.columns, S = q.effects, m = p + q.unknowns();
  const int64_t n_sizes = extent(sizes.dimensions(), 1), n_pieces = extent(pieces.dimensions(), 1);

  Operands in(value->dimensions());
  const Numbers X_ = in.numbers("X", X, {N, p}), y_ = in.numbers("y", y, {N}),
                weight_ = in.numbers("weight", weight, {N}), offset_ = in.numbers("offset", offset, {N}),
                z_ = in.numbers("z", z, {S, N}), start_ = in.numbers("start", start, {S, N}),
                psi_ = in.numbers("psi", psi, {m}), points_ = in.numbers("points", points, {S, q.stride}),
                log_weights_ = in.numbers("log_weights", log_weights, {q.stride});
  const Integers sizes_ = in.integers("sizes", sizes, {n_sizes}),
                 pieces_ = in.integers("pieces", pieces, {n_pieces}),
                 count_ = in.integers("count", count, {});
  const Result value_ = in.result("value", value, {}), gradient_ = in.result("gradient", gradient, {m}),
               hessian_ = in.result("hessian", hessian, {m, m}), modes_ = in.result("modes", modes, {S, N});
  if (!in.wrong().empty()) return invalid(in.wrong() + " beside X " + shape_text(X.dimensions()));
  const int64_t of_sizes = n_sizes ? static_cast<int64_t>(sizes.element_count()) / n_sizes : 0;
  const std::string fault = storage_fault(sizes_, of_sizes, n_sizes, n_pieces, block, N);
  if (!fault.empty()) return invalid(fault);
  for (size_t i = 0; i < count.element_count(); ++i)
    if (count.typed_data()[i] < 1 || count.typed_data()[i] > q.stride)
      return invalid("count = " + std::to_string(count.typed_data()[i]) + " of " + std::to_string(q.stride) +
                     " nodes");

  const auto evaluate = [&](int64_t b, bool threaded) {
    Problem at = q;
    std::vector<double> parameters(m), nodes(S * q.stride), log_omega(q.stride), total;
    psi_.at(b).read(0, m, parameters.data());
    if (std::isnan(parameters[0])) {  // a fit of a batch that is not asked for
      leave_out(m, S * N, start_.at(b), value_.at(b), gradient_.at(b), hessian_.at(b), modes_.at(b));
      return;
    }
    points_.at(b).read(0, S * q.stride, nodes.data());
    log_weights_.at(b).read(0, q.stride, log_omega.data());
    at.X = X_.at(b), at.y = y_.at(b), at.weight = weight_.at(b), at.offset = offset_.at(b), at.z = z_.at(b);
    at.start = start_.at(b), at.modes = modes_.at(b);
    at.beta = parameters.data(), at.factor = at.beta + p, at.log_phi = parameters[m - 1];
    at.points = nodes.data(), at.log_weights = log_omega.data(), at.nodes = *count_.at(b);
    sweep(pool, threaded, at, sizes_.at(b), n_sizes, pieces_.at(b), n_pieces, total);
    write_sums(at, total, value_.at(b), gradient_.at(b), hessian_.at(b));
  };
  if (!for_each_fit(pool, in.items(), N, evaluate))
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "fused_pass: out of memory");
  return ffi::Error::Success();
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
