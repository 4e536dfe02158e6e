// group_moments, group_effects: the posterior of every group's scalar effect given the parameters, in level
// order.
//
//   X (N, p), y, weight, offset, z, modes (N,)   float64 or float32, tile storage (jaxglmm/tile.h)
//   sizes (NB,), pieces (NP,)                    int32, as in fused_pass
//   level (N,)                                   int32: at the first slot of a group its level, -1 elsewhere
//   psi (p + 2,), points, log_weights (K,)       float64
//   moments (G, 3), weights (G, K) or (G, 0)     float64: D^(-1/2), mean and variance of u; the nodes'
//   weights
//
// group_effects has no nodes but covariance (p + 2, p + 2) of psi, float64, and returns
//   effects (G, 3)                               float64: mean and variance of b = tau u; d'V d of its mean
#include "group_moments.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "chunks.h"
#include "handler.h"
#include "jaxglmm/tile.h"

namespace jaxglmm {

#define JAXGLMM_DECLARE(target)                                                              \
  namespace target {                                                                         \
  void add_moments(const MomentsProblem<double>&, const MomentsTile&, std::vector<double>&); \
  void add_moments(const MomentsProblem<float>&, const MomentsTile&, std::vector<double>&);  \
  }
JAXGLMM_DECLARE(baseline)
#if defined(JAXGLMM_X86)
JAXGLMM_DECLARE(avx2)
JAXGLMM_DECLARE(avx512)
#endif

namespace {

constexpr int64_t kPieceRows = 32;
constexpr int64_t kWorthThreads = 1 << 12;  // slots

template <typename T>
using Add = void (*)(const MomentsProblem<T>&, const MomentsTile&, std::vector<double>&);

template <typename T>
Add<T> best() {
#if defined(JAXGLMM_X86)
  const char* name = best_target().name;
  if (!std::strcmp(name, "avx512")) return avx512::add_moments;
  if (!std::strcmp(name, "avx2")) return avx2::add_moments;
#endif
  return baseline::add_moments;
}

template <typename T>
ffi::Error compute(ffi::ThreadPool& pool, const MomentsProblem<T>& q, const std::vector<MomentsTile>& tiles,
                   int64_t slots) {
  std::atomic<bool> failed{false};
  const Add<T> add = best<T>();
  for_each_chunk(pool, static_cast<int64_t>(tiles.size()), slots >= kWorthThreads,
                 [&](int64_t, int64_t first, int64_t last) {
                   try {
                     std::vector<double> memory;
                     for (int64_t i = first; i < last; ++i) add(q, tiles[i], memory);
                   } catch (const std::bad_alloc&) {
                     failed = true;
                   }
                 });
  if (failed) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "posteriors of groups: out of memory");
  return ffi::Error::Success();
}

using S32 = ffi::Buffer<ffi::S32>;
using F64 = ffi::Buffer<ffi::F64>;
using Out = ffi::ResultBuffer<ffi::F64>;

// What both handlers take.
struct Rows {
  const char* name;
  ffi::AnyBuffer &X, &y, &weight, &offset, &z, &modes;
  S32 &sizes, &pieces, &level;
  F64& psi;
  int64_t block, family;

  ffi::Error invalid(const std::string& what) const {
    return ffi::Error::InvalidArgument(std::string(name) + ": " + what);
  }
  // `results` says where the results go; `fits` whether their shapes do, of so many levels.
  ffi::Error run(ffi::ThreadPool& pool, int64_t levels, bool fits, MomentsResults results) const;
};

ffi::Error Rows::run(ffi::ThreadPool& pool, int64_t levels, bool fits, MomentsResults results) const {
  if (X.dimensions().size() != 2)
    return invalid("expected X (slots, columns), found " + shape_text(X.dimensions()));
  const int64_t slots = X.dimensions()[0], p = X.dimensions()[1];
  const int64_t n_sizes = sizes.element_count(), n_pieces = pieces.element_count();
  for (const ffi::AnyBuffer* v : {&y, &weight, &offset, &z, &modes})
    if (static_cast<int64_t>(v->element_count()) != slots || v->element_type() != X.element_type())
      return invalid("found " + shape_text(v->dimensions()) + " beside X " + shape_text(X.dimensions()));
  if (!fits || static_cast<int64_t>(level.element_count()) != slots ||
      static_cast<int64_t>(psi.element_count()) != p + 2 || family < 0 || family >= kFamilies)
    return invalid("shapes do not fit together");
  if (block <= 0 || n_sizes * block + n_pieces * kPieceRows != slots ||
      (n_pieces && (block % kPieceRows || n_pieces % (block / kPieceRows))))
    return invalid("blocks of " + std::to_string(block) + " slots do not make " + std::to_string(slots));
  const int32_t *size = sizes.typed_data(), *piece = pieces.typed_data(), *at = level.typed_data();
  for (int64_t i = 0; i < n_sizes; ++i)
    if (!is_class_size(size[i], block)) return invalid("a size of groups does not divide the block");
  for (int64_t i = 0; i < slots; ++i)
    if (at[i] >= levels) return invalid("level " + std::to_string(at[i]) + " of " + std::to_string(levels));

  std::vector<MomentsTile> tiles;
  for (int64_t b = 0; b < n_sizes; ++b)
    tiles.push_back({b * block, block / size[b], size[b], block / size[b], 0, 1, block, 0});
  for (int64_t begin = 0, end; begin < n_pieces; begin = end) {
    for (end = begin + 1; end < n_pieces && piece[end] == piece[begin];) ++end;
    tiles.push_back({begin, 1, kPieceRows, 0, end - begin, block / kPieceRows, block, n_sizes * block});
  }
  const double* parameters = psi.typed_data();
  const auto of = [&](auto type) {
    using T = decltype(type);
    const auto vector = [](ffi::AnyBuffer& v) { return static_cast<const T*>(v.untyped_data()); };
    const MomentsProblem<T> q = {results,
                                 vector(X),
                                 vector(y),
                                 vector(weight),
                                 vector(offset),
                                 vector(z),
                                 vector(modes),
                                 at,
                                 parameters,
                                 parameters[p],
                                 parameters[p + 1],
                                 p,
                                 static_cast<Family>(family)};
    return compute(pool, q, tiles, slots);
  };
  if (X.element_type() == ffi::F64) return of(double());
  if (X.element_type() == ffi::F32) return of(float());
  return invalid("X must be float32 or float64");
}

bool has_shape(Dimensions found, int64_t rows, int64_t columns) {
  return found.size() == 2 && found[0] == rows && found[1] == columns;
}

double* cleared(Out& out) {
  std::fill_n(out->typed_data(), out->element_count(), 0.0);
  return out->typed_data();
}

ffi::Error group_moments(ffi::ThreadPool pool, ffi::AnyBuffer X, ffi::AnyBuffer y, ffi::AnyBuffer weight,
                         ffi::AnyBuffer offset, ffi::AnyBuffer z, ffi::AnyBuffer modes, S32 sizes, S32 pieces,
                         S32 level, F64 psi, F64 points, F64 log_weights, Out moments, Out weights,
                         int64_t block, int64_t family) {
  const int64_t nodes = points.element_count(),
                levels = moments->dimensions().size() ? moments->dimensions()[0] : 0;
  const bool wanted = weights->element_count() > 0;
  const bool fits = has_shape(moments->dimensions(), levels, 3) &&
                    has_shape(weights->dimensions(), levels, wanted ? nodes : 0) &&
                    static_cast<int64_t>(log_weights.element_count()) == nodes;
  MomentsResults results;
  results.points = points.typed_data(), results.log_weights = log_weights.typed_data(), results.nodes = nodes;
  results.moments = cleared(moments), results.weights = wanted ? cleared(weights) : nullptr;
  return Rows{"group_moments", X, y, weight, offset, z, modes, sizes, pieces, level, psi, block, family}.run(
      pool, levels, fits, results);
}

ffi::Error group_effects(ffi::ThreadPool pool, ffi::AnyBuffer X, ffi::AnyBuffer y, ffi::AnyBuffer weight,
                         ffi::AnyBuffer offset, ffi::AnyBuffer z, ffi::AnyBuffer modes, S32 sizes, S32 pieces,
                         S32 level, F64 psi, F64 covariance, Out effects, int64_t block, int64_t family) {
  const int64_t m = psi.element_count(), levels = effects->dimensions().size() ? effects->dimensions()[0] : 0;
  MomentsResults results;
  results.covariance = covariance.typed_data(), results.effects = cleared(effects);
  return Rows{"group_effects", X, y, weight, offset, z, modes, sizes, pieces, level, psi, block, family}.run(
      pool, levels, has_shape(effects->dimensions(), levels, 3) && has_shape(covariance.dimensions(), m, m),
      results);
}

}  // namespace
}  // namespace jaxglmm

JAXGLMM_HANDLER(jaxglmm_group_moments, jaxglmm::group_moments,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()  // X
                    .Arg<xla::ffi::AnyBuffer>()  // y
                    .Arg<xla::ffi::AnyBuffer>()  // weight
                    .Arg<xla::ffi::AnyBuffer>()  // offset
                    .Arg<xla::ffi::AnyBuffer>()  // z
                    .Arg<xla::ffi::AnyBuffer>()  // modes
                    .Arg<jaxglmm::S32>()         // sizes
                    .Arg<jaxglmm::S32>()         // pieces
                    .Arg<jaxglmm::S32>()         // level
                    .Arg<jaxglmm::F64>()         // psi
                    .Arg<jaxglmm::F64>()         // points
                    .Arg<jaxglmm::F64>()         // log_weights
                    .Ret<jaxglmm::F64>()         // moments
                    .Ret<jaxglmm::F64>()         // weights
                    .Attr<int64_t>("block")
                    .Attr<int64_t>("family"));

JAXGLMM_HANDLER(jaxglmm_group_effects, jaxglmm::group_effects,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()  // X
                    .Arg<xla::ffi::AnyBuffer>()  // y
                    .Arg<xla::ffi::AnyBuffer>()  // weight
                    .Arg<xla::ffi::AnyBuffer>()  // offset
                    .Arg<xla::ffi::AnyBuffer>()  // z
                    .Arg<xla::ffi::AnyBuffer>()  // modes
                    .Arg<jaxglmm::S32>()         // sizes
                    .Arg<jaxglmm::S32>()         // pieces
                    .Arg<jaxglmm::S32>()         // level
                    .Arg<jaxglmm::F64>()         // psi
                    .Arg<jaxglmm::F64>()         // covariance
                    .Ret<jaxglmm::F64>()         // effects
                    .Attr<int64_t>("block")
                    .Attr<int64_t>("family"));
