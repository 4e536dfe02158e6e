// shifted_pass: fused_pass for groups nested in parents that shift their rows' eta, at several shifts of each
// parent: weighted sums over all of them, and each parent's own, from which differences in the shift are
// made.
//
//   X, y, weight, offset, z, start, sizes, pieces, psi, points, log_weights, count   as in fused_pass
//   group, parent   (..., N), (..., G)        as in nested_pass
//   shift           (..., H)                  of each parent
//   steps           (..., J)                  shift j of parent h is shift[h] + steps[j]
//   multiplier      (..., J, H)
//   value           (...)                     at the first shift
//   gradient (..., p + U), hessian (..., p + U, p + U)   sums over shifts and groups, each times its
//   multiplier modes           (..., S, N)               at the first shift of_parents      (..., H, J, p + U
//   + 2)    sums over a parent's groups at each shift, without a multiplier: value,
//                                             gradient, and the second derivative in beta_0, where there is
//                                             one
//
// Groups must come sorted by parent within each size class. Types, and terms without eta, as in fused_pass;
// such terms are in the sums as if the multipliers of a parent had the sum 1, and not in of_parents.
#include <algorithm>
#include <atomic>
#include <memory>

#include "parents.h"
#include "sweep.h"

namespace jaxglmm {
namespace {

struct Shifts {
  const int32_t *group, *parent;
  std::vector<double> shift, steps, multiplier;
  int64_t parents;
  int64_t count() const { return static_cast<int64_t>(steps.size()); }
};

// A tile of one parent, its slots counted from `base`, and how many slots it lies among.
struct OfParent {
  Tile tile;
  int32_t parent;
  int64_t base, slots;
};

// Tiles of one parent each.
std::vector<OfParent> tiles_of(const Shifts& shifts, const int32_t* sizes, int64_t blocks,
                               const int32_t* pieces, int64_t n_pieces, int64_t block) {
  std::vector<OfParent> tiles;
  const auto parent_at = [&](int64_t slot) {
    const int32_t group = shifts.group[slot];
    return group < 0 ? -1 : shifts.parent[group];
  };
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t across = block / sizes[b], most = groups_of_tile(sizes[b]);
    for (int64_t j = 0, end; j < across; j = end) {
      const int32_t parent = parent_at(b * block + j);
      for (end = j + 1; end < across && end - j < most && parent_at(b * block + end) == parent;) ++end;
      if (parent >= 0) tiles.push_back({{false, sizes[b], end - j, j, across, 0}, parent, b * block, block});
    }
  }
  for (int64_t begin = 0, end; begin < n_pieces; begin = end) {
    for (end = begin + 1; end < n_pieces && pieces[end] == pieces[begin];) ++end;
    const int64_t across = block / kLongest, first = begin / across, last = (end - 1) / across + 1;
    const Tile tile = {true, kLongest, end - begin, begin - first * across, across, 0};
    const int64_t base = (blocks + first) * block;
    if (const int32_t parent = parent_at(base + tile.slot(0)); parent >= 0)
      tiles.push_back({tile, parent, base, (last - first) * block});
  }
  return tiles;
}

// One chunk's sums over groups, and by parent.
struct Part {
  Part(const Sums& shape, int64_t width) : total(shape.size(), 0.0), runs(width) {}
  std::vector<double> total;
  ParentRuns runs;
};

class ChunkPass {
 public:
  ChunkPass(const Problem& q, const Shifts& shifts, const Sums& shape)
      : q_(q),
        shifts_(shifts),
        shape_(shape),
        code_(best_target()),
        m_(q.columns + q.unknowns()),
        part(std::make_unique<Part>(shape, shifts.count() * (m_ + 2))) {}

  void add(const OfParent& of) {
    double* to = part->runs.of(of.parent);
    const Tile& tile = of.tile;
    Problem at = q_;
    at.X = at.X.from(of.base * q_.columns), at.modes = at.modes.from(of.base);
    for (Column* v : {&at.y, &at.weight, &at.z, &at.start}) *v = v->from(of.base);
    offset_.resize(of.slots);
    at.offset = {offset_.data(), false};
    for (int64_t j = 0; j < shifts_.count(); ++j, to += m_ + 2) {
      const double shift = shifts_.shift[of.parent] + shifts_.steps[j];
      for (int64_t lane = 0; lane < tile.lanes; ++lane)
        for (int64_t k = 0, slot = tile.slot(lane); k < tile.size; ++k, slot += tile.stride)
          offset_[slot] = q_.offset[of.base + slot] + shift;
      if (j == 1) at.start = {at.modes.at, at.modes.narrow}, at.modes = {};
      const Sums sums = {aligned(scratch_, shape_.size()), shape_.padded, shape_.unknowns};
      std::fill_n(sums.at, shape_.size(), 0.0);
      const int which = static_cast<int>(q_.effects) - 1;
      code_.add[which](at, tile, aligned(workspace_, code_.workspace[which](at, tile)), sums);
      const double multiplier = shifts_.multiplier[j * shifts_.parents + of.parent];
      if (j == 0) part->total[0] += sums.value();
      for (int64_t i = 1; i < shape_.size(); ++i) part->total[i] += multiplier * sums.at[i];
      to[0] += sums.value();
      for (int64_t i = 0; i < q_.columns; ++i) to[1 + i] += sums.gradient()[i];
      for (int64_t x = 0; x < shape_.unknowns; ++x) to[1 + q_.columns + x] += sums.first()[x];
      if (q_.columns) to[m_ + 1] += sums.hessian()[0];
    }
  }

 private:
  const Problem& q_;
  const Shifts& shifts_;
  const Sums shape_;
  const Target& code_;
  const int64_t m_;
  std::vector<double> scratch_, workspace_, offset_;

 public:
  std::unique_ptr<Part> part;
};

// Throws std::bad_alloc.
void sweep_shifts(ffi::ThreadPool& pool, bool threaded, Problem q, const Shifts& shifts,
                  const std::vector<OfParent>& tiles, std::vector<double>& total, double* of_parents) {
  const Sums shape = {nullptr, best_target().padded(q.columns), q.unknowns()};
  std::vector<double> memory;
  double* beta = aligned(memory, shape.padded + 1);
  std::fill_n(std::copy_n(q.beta, q.columns, beta), shape.padded - q.columns, 0.0);
  q.beta = beta;
  const int64_t n_tiles = static_cast<int64_t>(tiles.size());
  std::vector<std::unique_ptr<Part>> parts(std::min(n_tiles, kChunks));
  std::atomic<bool> failed{false};
  for_each_chunk(pool, n_tiles, threaded, [&](int64_t chunk, int64_t first, int64_t last) {
    try {
      ChunkPass pass(q, shifts, shape);
      for (int64_t i = first; i < last; ++i) pass.add(tiles[i]);
      parts[chunk] = std::move(pass.part);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  });
  if (failed) throw std::bad_alloc();
  total.assign(shape.size(), 0.0);
  for (const auto& part : parts) {  // chunk after chunk: always the same bits
    for (int64_t i = 0; i < shape.size(); ++i) total[i] += part->total[i];
    const double* run = part->runs.sums.data();
    for (const int32_t parent : part->runs.parents) {
      double* to = of_parents + parent * part->runs.width;
      for (int64_t i = 0; i < part->runs.width; ++i) to[i] += run[i];
      run += part->runs.width;
    }
  }
  add_count_terms(pool, threaded, q, total);
}

ffi::Error invalid(const std::string& what) { return ffi::Error::InvalidArgument("shifted_pass: " + what); }

using Any = ffi::AnyBuffer;
using S32 = ffi::Buffer<ffi::S32>;
using Out = ffi::Result<ffi::AnyBuffer>;

ffi::Error shifted_pass(ffi::ThreadPool pool, Any X, Any y, Any weight, Any offset, Any z, Any start,
                        S32 sizes, S32 pieces, S32 group, S32 parent, Any shift, Any steps, Any multiplier,
                        Any psi, Any points, Any log_weights, S32 count, Out value, Out gradient, Out hessian,
                        Out modes, Out of_parents, int64_t block, int64_t family) {
  for (const Any* v : {&X, &z, &points})
    if (v->dimensions().size() < 2) return invalid("expected a matrix, found " + shape_text(v->dimensions()));
  for (const Dimensions dims :
       {sizes.dimensions(), pieces.dimensions(), parent.dimensions(), shift.dimensions(), steps.dimensions()})
    if (dims.size() < 1) return invalid("sizes, pieces, parent, shift and steps need an axis");
  const auto extent = [](Dimensions dims, int from_last) { return dims[dims.size() - from_last]; };
  Problem q;
  q.columns = extent(X.dimensions(), 1), q.slots = extent(X.dimensions(), 2),
  q.effects = extent(z.dimensions(), 2);
  q.stride = extent(points.dimensions(), 1), q.block = block, q.determinant = q.second = true;
  if (q.effects < 1 || q.effects > kMostEffects)
    return invalid(std::to_string(q.effects) + " effects a group; expected 1, 2 or 3");
  if (family < 0 || family >= kFamilies) return invalid("family " + std::to_string(family) + " is not known");
  q.family = static_cast<Family>(family);
  const int64_t N = q.slots, p = q.columns, S = q.effects, m = p + q.unknowns(),
                G = extent(parent.dimensions(), 1), H = extent(shift.dimensions(), 1),
                J = extent(steps.dimensions(), 1);
  const int64_t n_sizes = extent(sizes.dimensions(), 1), n_pieces = extent(pieces.dimensions(), 1);
  Operands in(value->dimensions());
  const Numbers X_ = in.numbers("X", X, {N, p}), y_ = in.numbers("y", y, {N}),
                weight_ = in.numbers("weight", weight, {N}), offset_ = in.numbers("offset", offset, {N}),
                z_ = in.numbers("z", z, {S, N}), start_ = in.numbers("start", start, {S, N}),
                shift_ = in.numbers("shift", shift, {H}), steps_ = in.numbers("steps", steps, {J}),
                multiplier_ = in.numbers("multiplier", multiplier, {J, H}),
                psi_ = in.numbers("psi", psi, {m}), points_ = in.numbers("points", points, {S, q.stride}),
                log_weights_ = in.numbers("log_weights", log_weights, {q.stride});
  const Integers sizes_ = in.integers("sizes", sizes, {n_sizes}),
                 pieces_ = in.integers("pieces", pieces, {n_pieces}),
                 group_ = in.integers("group", group, {N}), parent_ = in.integers("parent", parent, {G}),
                 count_ = in.integers("count", count, {});
  const Result value_ = in.result("value", value, {}), gradient_ = in.result("gradient", gradient, {m}),
               hessian_ = in.result("hessian", hessian, {m, m}), modes_ = in.result("modes", modes, {S, N}),
               of_parents_ = in.result("of_parents", of_parents, {H, J, m + 2});
  in.require(of_parents->element_type() == ffi::F64, "of_parents must be float64");
  if (!in.wrong().empty()) return invalid(in.wrong() + " beside X " + shape_text(X.dimensions()));
  const int64_t of_sizes = n_sizes ? static_cast<int64_t>(sizes.element_count()) / n_sizes : 0;
  std::string fault = storage_fault(sizes_, of_sizes, n_sizes, n_pieces, block, N);
  if (fault.empty()) fault = nesting_fault(group, parent, H);
  if (!fault.empty()) return invalid(fault);
  for (size_t i = 0; i < count.element_count(); ++i)
    if (count.typed_data()[i] < 1 || count.typed_data()[i] > q.stride)
      return invalid("count = " + std::to_string(count.typed_data()[i]) + " of " + std::to_string(q.stride) +
                     " nodes");

  const auto evaluate = [&](int64_t b, bool threaded) {
    Problem at = q;
    const auto read = [&](const Numbers& v, int64_t n) {
      std::vector<double> out(n);
      v.at(b).read(0, n, out.data());
      return out;
    };
    const std::vector<double> parameters = read(psi_, m), nodes = read(points_, S * q.stride),
                              log_omega = read(log_weights_, q.stride);
    const Shifts shifts = {
        group_.at(b), parent_.at(b), read(shift_, H), read(steps_, J), read(multiplier_, J * H), H};
    at.X = X_.at(b), at.y = y_.at(b), at.weight = weight_.at(b), at.offset = offset_.at(b), at.z = z_.at(b);
    at.start = start_.at(b), at.modes = modes_.at(b);
    at.beta = parameters.data(), at.factor = at.beta + p, at.log_phi = parameters[m - 1];
    at.points = nodes.data(), at.log_weights = log_omega.data(), at.nodes = *count_.at(b);
    for (int64_t i = 0; i < S * N; ++i) at.modes.set(i, 0.0);
    double* out = static_cast<double*>(of_parents_.at(b).at);
    std::fill_n(out, H * J * (m + 2), 0.0);
    std::vector<double> total;
    sweep_shifts(pool, threaded, at, shifts,
                 tiles_of(shifts, sizes_.at(b), n_sizes, pieces_.at(b), n_pieces, block), total, out);
    write_sums(at, total, value_.at(b), gradient_.at(b), hessian_.at(b));
  };
  if (!for_each_fit(pool, in.items(), N, evaluate))
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "shifted_pass: out of memory");
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxglmm

JAXGLMM_HANDLER(jaxglmm_shifted_pass, jaxglmm::shifted_pass,
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
                    .Arg<jaxglmm::S32>()  // group
                    .Arg<jaxglmm::S32>()  // parent
                    .Arg<jaxglmm::Any>()  // shift
                    .Arg<jaxglmm::Any>()  // steps
                    .Arg<jaxglmm::Any>()  // multiplier
                    .Arg<jaxglmm::Any>()  // psi
                    .Arg<jaxglmm::Any>()  // points
                    .Arg<jaxglmm::Any>()  // log_weights
                    .Arg<jaxglmm::S32>()  // count
                    .Ret<jaxglmm::Any>()  // value
                    .Ret<jaxglmm::Any>()  // gradient
                    .Ret<jaxglmm::Any>()  // hessian
                    .Ret<jaxglmm::Any>()  // modes
                    .Ret<jaxglmm::Any>()  // of_parents
                    .Attr<int64_t>("block")
                    .Attr<int64_t>("family"));
