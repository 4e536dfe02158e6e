// What the handlers that evaluate groups have in common: operands, their checks, and an evaluation of each item of the
// batch.
#pragma once

#include "sweep.h"

namespace jaxglmm {

using Any = ffi::AnyBuffer;
using S32 = ffi::Buffer<ffi::S32>;
using Out = ffi::Result<ffi::AnyBuffer>;

inline int64_t extent(Dimensions dims, int from_last) { return dims[dims.size() - from_last]; }

// As fused_pass.cc describes them. Without X, `offset` is eta and `psi` has no beta.
struct GroupOperands {
  const Any* X;
  Any &y, &weight, &offset, &z, &start;
  S32 &sizes, &pieces;
  Any &psi, &points, &log_weights;
  S32& count;
};

// Where the groups of one item lie.
struct Storage {
  const int32_t* sizes;
  int64_t n_sizes;
  const int32_t* pieces;
  int64_t n_pieces;
};

class GroupHandler {
 public:
  GroupHandler(const char* name, ffi::ThreadPool& pool, int64_t block, int64_t family, bool determinant, bool second)
      : name_(name), pool_(pool), family_(family) {
    q.block = block, q.determinant = determinant, q.second = second;
  }

  ffi::Error invalid(const std::string& what) const {
    return ffi::Error::InvalidArgument(std::string(name_) + ": " + what);
  }

  // `further(in, q)` takes further operands and results and returns evaluate(problem, b, threaded, storage).
  template <class Further>
  ffi::Error run(Dimensions batch, const GroupOperands& of, const Further& further) {
    const Any& rows = of.X ? *of.X : of.offset;
    const char* rows_name = of.X ? "X" : "eta";
    const size_t row_axes = of.X ? 2 : 1;
    if (rows.dimensions().size() < row_axes || of.z.dimensions().size() < 2 || of.points.dimensions().size() < 2)
      return invalid("expected " + std::string(of.X ? "X (..., slots, columns)" : "eta (..., slots)") +
                     ", z (..., effects, slots) and points (..., effects, nodes), found " +
                     shape_text(rows.dimensions()) + ", " + shape_text(of.z.dimensions()) + " and " +
                     shape_text(of.points.dimensions()));
    if (of.sizes.dimensions().size() < 1 || of.pieces.dimensions().size() < 1)
      return invalid("sizes and pieces need an axis");
    q.columns = of.X ? extent(rows.dimensions(), 1) : 0, q.slots = extent(rows.dimensions(), row_axes);
    q.effects = extent(of.z.dimensions(), 2), q.stride = extent(of.points.dimensions(), 1);
    if (q.effects < 1 || q.effects > kMostEffects)
      return invalid(std::to_string(q.effects) + " effects a group; expected 1, 2 or 3");
    if (family_ < 0 || family_ >= kFamilies) return invalid("family " + std::to_string(family_) + " is not known");
    q.family = static_cast<Family>(family_);
    const int64_t N = q.slots, p = q.columns, S = q.effects, m = p + q.unknowns();
    const int64_t n_sizes = extent(of.sizes.dimensions(), 1), n_pieces = extent(of.pieces.dimensions(), 1);

    Operands in(batch);
    const Numbers X = of.X ? in.numbers("X", *of.X, {N, p}) : Numbers{{}, {{}, 0, {}, 0}, 0},
                  y = in.numbers("y", of.y, {N}), weight = in.numbers("weight", of.weight, {N}),
                  offset = in.numbers(of.X ? "offset" : "eta", of.offset, {N}), z = in.numbers("z", of.z, {S, N}),
                  start = in.numbers("start", of.start, {S, N}),
                  psi = in.numbers(of.X ? "psi" : "unknowns", of.psi, {m}),
                  points = in.numbers("points", of.points, {S, q.stride}),
                  log_weights = in.numbers("log_weights", of.log_weights, {q.stride});
    const Integers sizes = in.integers("sizes", of.sizes, {n_sizes}),
                   pieces = in.integers("pieces", of.pieces, {n_pieces}), count = in.integers("count", of.count, {});
    const auto evaluate = further(in, q);
    if (!in.wrong().empty())
      return invalid(in.wrong() + " beside " + rows_name + " " + shape_text(rows.dimensions()));
    const int64_t of_sizes = n_sizes ? static_cast<int64_t>(of.sizes.element_count()) / n_sizes : 0;
    const std::string fault = storage_fault(sizes, of_sizes, n_sizes, n_pieces, q.block, N);
    if (!fault.empty()) return invalid(fault);
    for (size_t i = 0; i < of.count.element_count(); ++i)
      if (const int32_t n = of.count.typed_data()[i]; n < 1 || n > q.stride)
        return invalid("count = " + std::to_string(n) + " of " + std::to_string(q.stride) + " nodes");

    const bool fits = for_each_fit(pool_, in.items(), N, [&](int64_t b, bool threaded) {
      Problem at = q;
      std::vector<double> parameters(m), nodes(S * q.stride), log_omega(q.stride);
      psi.at(b).read(0, m, parameters.data());
      points.at(b).read(0, S * q.stride, nodes.data());
      log_weights.at(b).read(0, q.stride, log_omega.data());
      if (of.X) at.X = X.at(b);
      at.y = y.at(b), at.weight = weight.at(b), at.offset = offset.at(b), at.z = z.at(b), at.start = start.at(b);
      at.beta = parameters.data(), at.factor = at.beta + p, at.log_phi = parameters[m - 1];
      at.points = nodes.data(), at.log_weights = log_omega.data(), at.nodes = *count.at(b);
      evaluate(at, b, threaded, Storage{sizes.at(b), n_sizes, pieces.at(b), n_pieces});
    });
    if (!fits) return ffi::Error(ffi::ErrorCode::kResourceExhausted, std::string(name_) + ": out of memory");
    return ffi::Error::Success();
  }

  // Sums over the groups of one item.
  void sweep(const Problem& at, bool threaded, const Storage& of, std::vector<double>& total) const {
    jaxglmm::sweep(pool_, threaded, at, of.sizes, of.n_sizes, of.pieces, of.n_pieces, total);
  }

 private:
  const char* name_;
  ffi::ThreadPool& pool_;
  const int64_t family_;
  Problem q;
};

}  // namespace jaxglmm
