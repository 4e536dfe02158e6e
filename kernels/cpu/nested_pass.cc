// nested_pass: groups with one scalar effect each, nested in parents that shift their rows' eta: value,
// gradient and Hessian of the groups' part of the likelihood, and what each parent sums up. The formulas are
// in nested_target.cc.
//
//   X                         (..., N, p)   tile storage (jaxglmm/tile.h); p may be 0: then the sums in beta
//   are left out eta, y, weight            (..., N)      eta of the fixed effects sizes, pieces (..., NB),
//   (..., NP)   int32, as in fused_pass group                     (..., N)      int32: at the first slot of a
//   group its number, -1 elsewhere parent, start             (..., G)      int32: the parent of each group;
//   its standardised mode to begin at shift, kappa, lambda      (..., H)      of each parent unknowns (...,
//   2)      tau, log_phi value (...), gradient (..., p + 2), hessian (..., p + 2, p + 2)   in beta, T =
//   tau^2, log_phi modes, information        (..., G)      information: W, the sum of w over the group's rows
//   at its mode of_parents                (..., H, 12 + 3 p)   see nested_pass.h
//
// Groups must come sorted by parent within each size class. Types, and terms without eta, as in fused_pass.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "parents.h"
#include "sweep.h"

namespace jaxglmm {

double* ParentRuns::of(int32_t parent) {
  if (parents.empty() || parents.back() != parent) {
    parents.push_back(parent);
    sums.resize(sums.size() + width, 0.0);
  }
  return sums.data() + (parents.size() - 1) * width;
}

double* aligned(std::vector<double>& memory, int64_t doubles) {
  if (static_cast<int64_t>(memory.size()) < doubles + 8) memory.resize(doubles + 8);
  const auto at = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (64 - at % 64) % 64 / sizeof(double);
}

std::string nesting_fault(const ffi::Buffer<ffi::S32>& group, const ffi::Buffer<ffi::S32>& parent,
                          int64_t parents) {
  const auto outside = [](const ffi::Buffer<ffi::S32>& numbers, int64_t least, int64_t count) {
    const int32_t *begin = numbers.typed_data(), *end = begin + numbers.element_count();
    return std::any_of(begin, end, [=](int32_t v) { return v < least || v >= count; });
  };
  const Dimensions dims = parent.dimensions();
  const int64_t groups = dims[dims.size() - 1];
  if (outside(group, -1, groups)) return "a group is none of " + std::to_string(groups);
  if (outside(parent, 0, parents)) return "a parent is none of " + std::to_string(parents);
  return "";
}

#define JAXGLMM_DECLARE(target)                                                                    \
  namespace target {                                                                               \
  int64_t nested_workspace(const NestedProblem&, const Tile&);                                     \
  void add_nested(const NestedProblem&, const Tile&, double* workspace, const Sums&, ParentRuns&); \
  }
JAXGLMM_DECLARE(baseline)
#if defined(JAXGLMM_X86)
JAXGLMM_DECLARE(avx2)
JAXGLMM_DECLARE(avx512)
#endif

namespace {

struct Code {
  decltype(&baseline::nested_workspace) workspace;
  decltype(&baseline::add_nested) add;
};

Code best() {
#if defined(JAXGLMM_X86)
  const char* name = best_target().name;
  if (!std::strcmp(name, "avx512")) return {avx512::nested_workspace, avx512::add_nested};
  if (!std::strcmp(name, "avx2")) return {avx2::nested_workspace, avx2::add_nested};
#endif
  return {baseline::nested_workspace, baseline::add_nested};
}

// One chunk's sums over groups, and by parent.
struct Part {
  explicit Part(const Sums& shape) : memory(shape.size() + 8, 0.0), runs(kParentSums + 3 * shape.padded) {}
  std::vector<double> memory;
  ParentRuns runs;
};

std::vector<Tile> tiles_of(const int32_t* sizes, int64_t blocks, const int32_t* pieces, int64_t n_pieces,
                           int64_t block) {
  std::vector<Tile> tiles;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t across = block / sizes[b], step = groups_of_tile(sizes[b]);
    for (int64_t j = 0; j < across; j += step)
      tiles.push_back({false, sizes[b], std::min(step, across - j), b * block + j, across, 0});
  }
  for (int64_t begin = 0, end; begin < n_pieces; begin = end) {
    for (end = begin + 1; end < n_pieces && pieces[end] == pieces[begin];) ++end;
    tiles.push_back({true, kLongest, end - begin, begin, block / kLongest, blocks * block});
  }
  return tiles;
}

// Throws std::bad_alloc.
void sweep_nested(ffi::ThreadPool& pool, bool threaded, const NestedProblem& q,
                  const std::vector<Tile>& tiles, std::vector<double>& total,
                  const MutableColumn& of_parents) {
  const Code code = best();
  const Sums shape = {nullptr, best_target().padded(q.columns), 2};
  const int64_t n_tiles = static_cast<int64_t>(tiles.size());
  std::vector<std::unique_ptr<Part>> parts(std::min(n_tiles, kChunks));
  std::atomic<bool> failed{false};
  for_each_chunk(pool, n_tiles, threaded, [&](int64_t chunk, int64_t first, int64_t last) {
    try {
      auto part = std::make_unique<Part>(shape);
      std::vector<double> workspace;
      const Sums sums = {aligned(part->memory, shape.size()), shape.padded, shape.unknowns};
      for (int64_t i = first; i < last; ++i)
        code.add(q, tiles[i], aligned(workspace, code.workspace(q, tiles[i])), sums, part->runs);
      parts[chunk] = std::move(part);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  });
  if (failed) throw std::bad_alloc();
  total.assign(shape.size(), 0.0);
  const int64_t out_width = kParentSums + 3 * q.columns;
  double* out = static_cast<double*>(of_parents.at);
  for (const auto& part : parts) {  // chunk after chunk: always the same bits
    const double* from = aligned(part->memory, shape.size());
    for (int64_t i = 0; i < shape.size(); ++i) total[i] += from[i];
    const double* run = part->runs.sums.data();
    for (const int32_t parent : part->runs.parents) {
      double* to = out + parent * out_width;
      for (int64_t i = 0; i < kParentSums; ++i) to[i] += run[i];
      for (int v = 0; v < 3; ++v)
        for (int64_t i = 0; i < q.columns; ++i)
          to[kParentSums + v * q.columns + i] += run[kParentSums + v * shape.padded + i];
      run += part->runs.width;
    }
  }
}

ffi::Error invalid(const std::string& what) { return ffi::Error::InvalidArgument("nested_pass: " + what); }

using Any = ffi::AnyBuffer;
using S32 = ffi::Buffer<ffi::S32>;
using Out = ffi::Result<ffi::AnyBuffer>;

ffi::Error nested_pass(ffi::ThreadPool pool, Any X, Any eta, Any y, Any weight, S32 sizes, S32 pieces,
                       S32 group, S32 parent, Any start, Any shift, Any kappa, Any lambda, Any unknowns,
                       Out value, Out gradient, Out hessian, Out modes, Out information, Out of_parents,
                       int64_t block, int64_t family) {
  if (X.dimensions().size() < 2 || shift.dimensions().size() < 1 || parent.dimensions().size() < 1 ||
      sizes.dimensions().size() < 1 || pieces.dimensions().size() < 1)
    return invalid("expected X (..., slots, columns) and shift (..., parents), found " +
                   shape_text(X.dimensions()) + " and " + shape_text(shift.dimensions()));
  const auto extent = [](Dimensions dims, int from_last) { return dims[dims.size() - from_last]; };
  const int64_t p = extent(X.dimensions(), 1), N = extent(X.dimensions(), 2),
                H = extent(shift.dimensions(), 1), G = extent(parent.dimensions(), 1);
  const int64_t n_sizes = extent(sizes.dimensions(), 1), n_pieces = extent(pieces.dimensions(), 1);
  const int64_t m = p + 2, width = kParentSums + 3 * p;
  if (family < 0 || family >= kFamilies) return invalid("family " + std::to_string(family) + " is not known");
  Operands in(value->dimensions());
  const Numbers X_ = in.numbers("X", X, {N, p}), eta_ = in.numbers("eta", eta, {N}),
                y_ = in.numbers("y", y, {N}), weight_ = in.numbers("weight", weight, {N}),
                start_ = in.numbers("start", start, {G}), shift_ = in.numbers("shift", shift, {H}),
                kappa_ = in.numbers("kappa", kappa, {H}), lambda_ = in.numbers("lambda", lambda, {H}),
                unknowns_ = in.numbers("unknowns", unknowns, {2});
  const Integers sizes_ = in.integers("sizes", sizes, {n_sizes}),
                 pieces_ = in.integers("pieces", pieces, {n_pieces}),
                 group_ = in.integers("group", group, {N}), parent_ = in.integers("parent", parent, {G});
  const Result value_ = in.result("value", value, {}), gradient_ = in.result("gradient", gradient, {m}),
               hessian_ = in.result("hessian", hessian, {m, m}), modes_ = in.result("modes", modes, {G}),
               information_ = in.result("information", information, {G}),
               of_parents_ = in.result("of_parents", of_parents, {H, width});
  in.require(of_parents->element_type() == ffi::F64, "of_parents must be float64");
  if (!in.wrong().empty()) return invalid(in.wrong() + " beside X " + shape_text(X.dimensions()));
  const int64_t of_sizes = n_sizes ? static_cast<int64_t>(sizes.element_count()) / n_sizes : 0;
  std::string fault = storage_fault(sizes_, of_sizes, n_sizes, n_pieces, block, N);
  if (fault.empty()) fault = nesting_fault(group, parent, H);
  if (!fault.empty()) return invalid(fault);

  const auto evaluate = [&](int64_t b, bool threaded) {
    NestedProblem q;
    std::vector<double> of_parent(3 * H), parameters(2), total;
    shift_.at(b).read(0, H, of_parent.data()), kappa_.at(b).read(0, H, of_parent.data() + H);
    lambda_.at(b).read(0, H, of_parent.data() + 2 * H), unknowns_.at(b).read(0, 2, parameters.data());
    q.X = X_.at(b), q.eta = eta_.at(b), q.y = y_.at(b), q.weight = weight_.at(b), q.start = start_.at(b);
    q.group = group_.at(b), q.parent = parent_.at(b);
    q.shift = of_parent.data(), q.kappa = q.shift + H, q.lambda = q.kappa + H;
    q.tau = parameters[0], q.log_phi = parameters[1];
    q.slots = N, q.columns = p, q.family = static_cast<Family>(family), q.modes = modes_.at(b);
    q.information = information_.at(b);
    for (int64_t g = 0; g < G; ++g) q.modes.set(g, 0.0), q.information.set(g, 0.0);
    const MutableColumn out = of_parents_.at(b);
    std::fill_n(static_cast<double*>(out.at), H * width, 0.0);
    sweep_nested(pool, threaded, q, tiles_of(sizes_.at(b), n_sizes, pieces_.at(b), n_pieces, block), total,
                 out);
    Problem shape;
    shape.y = q.y, shape.weight = q.weight, shape.slots = N, shape.log_phi = q.log_phi,
    shape.family = q.family;
    shape.columns = p, shape.effects = 1, shape.second = true;
    add_count_terms(pool, threaded, shape, total);
    write_sums(shape, total, value_.at(b), gradient_.at(b), hessian_.at(b));
  };
  if (!for_each_fit(pool, in.items(), N, evaluate))
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "nested_pass: out of memory");
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxglmm

JAXGLMM_HANDLER(jaxglmm_nested_pass, jaxglmm::nested_pass,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<jaxglmm::Any>()  // X
                    .Arg<jaxglmm::Any>()  // eta
                    .Arg<jaxglmm::Any>()  // y
                    .Arg<jaxglmm::Any>()  // weight
                    .Arg<jaxglmm::S32>()  // sizes
                    .Arg<jaxglmm::S32>()  // pieces
                    .Arg<jaxglmm::S32>()  // group
                    .Arg<jaxglmm::S32>()  // parent
                    .Arg<jaxglmm::Any>()  // start
                    .Arg<jaxglmm::Any>()  // shift
                    .Arg<jaxglmm::Any>()  // kappa
                    .Arg<jaxglmm::Any>()  // lambda
                    .Arg<jaxglmm::Any>()  // unknowns
                    .Ret<jaxglmm::Any>()  // value
                    .Ret<jaxglmm::Any>()  // gradient
                    .Ret<jaxglmm::Any>()  // hessian
                    .Ret<jaxglmm::Any>()  // modes
                    .Ret<jaxglmm::Any>()  // information
                    .Ret<jaxglmm::Any>()  // of_parents
                    .Attr<int64_t>("block")
                    .Attr<int64_t>("family"));
