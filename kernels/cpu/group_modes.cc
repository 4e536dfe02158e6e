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
#include "sweep.h"

namespace jaxglmm {
namespace {

using Any = ffi::AnyBuffer;
using S32 = ffi::Buffer<ffi::S32>;
using Out = ffi::Result<ffi::AnyBuffer>;

int64_t extent(Dimensions dims, int from_last) { return dims[dims.size() - from_last]; }

// The operands that both have, and the evaluation of each item of the batch.
struct Groups {
  const char* name;
  ffi::ThreadPool& pool;
  Problem q;
  int64_t n_sizes, n_pieces;
  std::string wrong;

  ffi::Error invalid(const std::string& what) const {
    return ffi::Error::InvalidArgument(std::string(name) + ": " + what);
  }

  // `results(in)` takes further operands and returns fill(problem, b), which places them, and done(problem,
  // sums, b).
  template <class Results>
  ffi::Error run(Dimensions batch, Any& eta, Any& y, Any& weight, Any& z, Any& start, S32& sizes, S32& pieces,
                 Any& unknowns, Any& points, Any& log_weights, S32& count, int64_t block, int64_t family,
                 int64_t determinant, bool second, const Results& results) {
    if (eta.dimensions().size() < 1 || z.dimensions().size() < 2 || points.dimensions().size() < 2 ||
        sizes.dimensions().size() < 1 || pieces.dimensions().size() < 1)
      return invalid(
          "expected eta (..., slots), z (..., effects, slots) and points (..., effects, nodes), found " +
          shape_text(eta.dimensions()) + ", " + shape_text(z.dimensions()) + " and " +
          shape_text(points.dimensions()));
    q.columns = 0, q.slots = extent(eta.dimensions(), 1), q.effects = extent(z.dimensions(), 2);
    q.stride = extent(points.dimensions(), 1);
    q.block = block, q.determinant = determinant != 0, q.second = second;
    if (q.effects < 1 || q.effects > kMostEffects)
      return invalid(std::to_string(q.effects) + " effects a group; expected 1, 2 or 3");
    if (family < 0 || family >= kFamilies)
      return invalid("family " + std::to_string(family) + " is not known");
    q.family = static_cast<Family>(family);
    const int64_t N = q.slots, S = q.effects, U = q.unknowns();
    n_sizes = extent(sizes.dimensions(), 1), n_pieces = extent(pieces.dimensions(), 1);
    Operands in(batch);
    const Numbers eta_ = in.numbers("eta", eta, {N}), y_ = in.numbers("y", y, {N}),
                  weight_ = in.numbers("weight", weight, {N}), z_ = in.numbers("z", z, {S, N}),
                  start_ = in.numbers("start", start, {S, N}),
                  unknowns_ = in.numbers("unknowns", unknowns, {U}),
                  points_ = in.numbers("points", points, {S, q.stride}),
                  log_weights_ = in.numbers("log_weights", log_weights, {q.stride});
    const Integers sizes_ = in.integers("sizes", sizes, {n_sizes}),
                   pieces_ = in.integers("pieces", pieces, {n_pieces}),
                   count_ = in.integers("count", count, {});
    const auto evaluate_one = results(in, N, S, U);
    if (!in.wrong().empty()) return invalid(in.wrong() + " beside eta " + shape_text(eta.dimensions()));
    const int64_t of_sizes = n_sizes ? static_cast<int64_t>(sizes.element_count()) / n_sizes : 0;
    const std::string fault = storage_fault(sizes_, of_sizes, n_sizes, n_pieces, block, N);
    if (!fault.empty()) return invalid(fault);
    for (size_t i = 0; i < count.element_count(); ++i)
      if (count.typed_data()[i] < 1 || count.typed_data()[i] > q.stride)
        return invalid("count = " + std::to_string(count.typed_data()[i]) + " of " +
                       std::to_string(q.stride) + " nodes");
    const bool fits = for_each_fit(pool, in.items(), N, [&](int64_t b, bool threaded) {
      Problem at = q;
      std::vector<double> parameters(U), nodes(S * q.stride), log_omega(q.stride);
      unknowns_.at(b).read(0, U, parameters.data());
      points_.at(b).read(0, S * q.stride, nodes.data());
      log_weights_.at(b).read(0, q.stride, log_omega.data());
      at.offset = eta_.at(b), at.y = y_.at(b), at.weight = weight_.at(b), at.z = z_.at(b),
      at.start = start_.at(b);
      at.beta = parameters.data(), at.factor = parameters.data(), at.log_phi = parameters[U - 1];
      at.points = nodes.data(), at.log_weights = log_omega.data(), at.nodes = *count_.at(b);
      evaluate_one(at, b, [&](std::vector<double>& total) {
        sweep(pool, threaded, at, sizes_.at(b), n_sizes, pieces_.at(b), n_pieces, total);
        return Sums{total.data(), best_target().padded(0), U};
      });
    });
    if (!fits) return ffi::Error(ffi::ErrorCode::kResourceExhausted, std::string(name) + ": out of memory");
    return ffi::Error::Success();
  }
};

ffi::Error group_modes(ffi::ThreadPool pool, Any eta, Any y, Any weight, Any z, Any start, S32 sizes,
                       S32 pieces, Any unknowns, Any points, Any log_weights, S32 count, Out value, Out d_eta,
                       Out d_unknowns, Out modes, Out curvature, int64_t block, int64_t family,
                       int64_t determinant) {
  Groups groups{"group_modes", pool, {}, 0, 0, ""};
  const auto results = [&](Operands& in, int64_t N, int64_t S, int64_t U) {
    const Result value_ = in.result("value", value, {}), d_eta_ = in.result("d_eta", d_eta, {N}),
                 d_unknowns_ = in.result("d_unknowns", d_unknowns, {U}),
                 modes_ = in.result("modes", modes, {S, N}),
                 curvature_ = in.result("curvature", curvature, {U - 1, N});
    return [=](Problem& q, int64_t b, const auto& evaluate) {
      q.d_eta = d_eta_.at(b), q.modes = modes_.at(b), q.curvature = curvature_.at(b);
      std::vector<double> total;
      const Sums sums = evaluate(total);
      value_.at(b).set(0, sums.value());
      for (int64_t x = 0; x < U; ++x) d_unknowns_.at(b).set(x, sums.first()[x]);
    };
  };
  return groups.run(value->dimensions(), eta, y, weight, z, start, sizes, pieces, unknowns, points,
                    log_weights, count, block, family, determinant, false, results);
}

ffi::Error group_push(ffi::ThreadPool pool, Any eta, Any y, Any weight, Any z, Any start, S32 sizes,
                      S32 pieces, Any unknowns, Any points, Any log_weights, S32 count, Any t_eta,
                      Any t_unknowns, Out pushed_eta, Out pushed_unknowns, int64_t block, int64_t family,
                      int64_t determinant) {
  Groups groups{"group_push", pool, {}, 0, 0, ""};
  const Dimensions dims = pushed_eta->dimensions();
  if (dims.size() < 1) return groups.invalid("expected pushed_eta (..., slots), found " + shape_text(dims));
  const auto results = [&](Operands& in, int64_t N, int64_t, int64_t U) {
    const Numbers t_eta_ = in.numbers("t_eta", t_eta, {N}),
                  t_unknowns_ = in.numbers("t_unknowns", t_unknowns, {U});
    const Result eta_ = in.result("pushed_eta", pushed_eta, {N}),
                 unknowns_ = in.result("pushed_unknowns", pushed_unknowns, {U});
    return [=](Problem& q, int64_t b, const auto& evaluate) {
      std::vector<double> direction(U), total;
      t_unknowns_.at(b).read(0, U, direction.data());
      q.t_eta = t_eta_.at(b), q.t_unknowns = direction.data(), q.pushed = eta_.at(b);
      const Sums sums = evaluate(total);
      const double* second = sums.second();
      for (int64_t x = 0; x < U; ++x)
        for (int64_t y = x; y < U; ++y, ++second) {
          sums.pushed()[x] += *second * direction[y];
          if (y != x) sums.pushed()[y] += *second * direction[x];
        }
      for (int64_t x = 0; x < U; ++x) unknowns_.at(b).set(x, sums.pushed()[x]);
    };
  };
  return groups.run({dims.begin(), dims.size() - 1}, eta, y, weight, z, start, sizes, pieces, unknowns,
                    points, log_weights, count, block, family, determinant, true, results);
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
