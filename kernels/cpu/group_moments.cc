// group_moments: the posterior of every group's scalar effect given the parameters, in level order.
//
//   X (N, p), y, weight, offset, z, modes (N,)   float64 or float32, tile storage (jaxglmm/tile.h)
//   sizes (NB,), pieces (NP,)                    int32, as in fused_pass
//   level (N,)                                   int32: at the first slot of a group its level, -1 elsewhere
//   psi (p + 2,), points, log_weights (K,)       float64
//   moments (G, 3), weights (G, K)               float64: D^(-1/2), mean and variance of u; the nodes' weights
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

#define JAXGLMM_DECLARE(target)                                                                       \
  namespace target {                                                                                  \
  void add_moments(const MomentsProblem<double>&, const MomentsTile&, std::vector<double>&);          \
  void add_moments(const MomentsProblem<float>&, const MomentsTile&, std::vector<double>&);           \
  }
JAXGLMM_DECLARE(baseline)
#if defined(JAXGLMM_X86)
JAXGLMM_DECLARE(avx2)
JAXGLMM_DECLARE(avx512)
#endif

namespace {

constexpr int64_t kPieceRows = 32;
constexpr int64_t kWorthThreads = 1 << 12;  // slots

ffi::Error invalid(const std::string& what) { return ffi::Error::InvalidArgument("group_moments: " + what); }

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
  if (failed) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "group_moments: out of memory");
  return ffi::Error::Success();
}

using S32 = ffi::Buffer<ffi::S32>;
using F64 = ffi::Buffer<ffi::F64>;
using Out = ffi::ResultBuffer<ffi::F64>;

ffi::Error group_moments(ffi::ThreadPool pool, ffi::AnyBuffer X, ffi::AnyBuffer y, ffi::AnyBuffer weight,
                         ffi::AnyBuffer offset, ffi::AnyBuffer z, ffi::AnyBuffer modes, S32 sizes, S32 pieces,
                         S32 level, F64 psi, F64 points, F64 log_weights, Out moments, Out weights, int64_t block,
                         int64_t family) {
  if (X.dimensions().size() != 2) return invalid("expected X (slots, columns), found " + shape_text(X.dimensions()));
  const int64_t slots = X.dimensions()[0], p = X.dimensions()[1];
  const int64_t n_sizes = sizes.element_count(), n_pieces = pieces.element_count(), nodes = points.element_count();
  for (const ffi::AnyBuffer* v : {&y, &weight, &offset, &z, &modes})
    if (static_cast<int64_t>(v->element_count()) != slots || v->element_type() != X.element_type())
      return invalid("found " + shape_text(v->dimensions()) + " beside X " + shape_text(X.dimensions()));
  const Dimensions out = moments->dimensions(), out_weights = weights->dimensions();
  const bool fits = out.size() == 2 && out[1] == 3 && out_weights.size() == 2 && out_weights[0] == out[0] &&
                    out_weights[1] == nodes && static_cast<int64_t>(level.element_count()) == slots &&
                    static_cast<int64_t>(psi.element_count()) == p + 2 &&
                    static_cast<int64_t>(log_weights.element_count()) == nodes;
  if (!fits || family < 0 || family >= kFamilies) return invalid("shapes do not fit together");
  if (block <= 0 || n_sizes * block + n_pieces * kPieceRows != slots ||
      (n_pieces && (block % kPieceRows || n_pieces % (block / kPieceRows))))
    return invalid("blocks of " + std::to_string(block) + " slots do not make " + std::to_string(slots));
  const int32_t *size = sizes.typed_data(), *piece = pieces.typed_data(), *at = level.typed_data();
  for (int64_t i = 0; i < n_sizes; ++i)
    if (!is_class_size(size[i], block)) return invalid("a size of groups does not divide the block");
  for (int64_t i = 0; i < slots; ++i)
    if (at[i] >= out[0]) return invalid("level " + std::to_string(at[i]) + " of " + std::to_string(out[0]));

  std::vector<MomentsTile> tiles;
  for (int64_t b = 0; b < n_sizes; ++b)
    tiles.push_back({b * block, block / size[b], size[b], block / size[b], 0, 1, block, 0});
  for (int64_t begin = 0, end; begin < n_pieces; begin = end) {
    for (end = begin + 1; end < n_pieces && piece[end] == piece[begin];) ++end;
    tiles.push_back({begin, 1, kPieceRows, 0, end - begin, block / kPieceRows, block, n_sizes * block});
  }
  const double* parameters = psi.typed_data();
  const auto run = [&](auto type) {
    using T = decltype(type);
    const auto vector = [](ffi::AnyBuffer& v) { return static_cast<const T*>(v.untyped_data()); };
    const MomentsProblem<T> q = {vector(X), vector(y), vector(weight), vector(offset), vector(z), vector(modes), at,
                                 parameters, parameters[p], parameters[p + 1], points.typed_data(),
                                 log_weights.typed_data(), p, nodes, static_cast<Family>(family),
                                 moments->typed_data(), weights->typed_data()};
    return compute(pool, q, tiles, slots);
  };
  std::fill_n(moments->typed_data(), moments->element_count(), 0.0);
  std::fill_n(weights->typed_data(), weights->element_count(), 0.0);
  if (X.element_type() == ffi::F64) return run(double());
  if (X.element_type() == ffi::F32) return run(float());
  return invalid("X must be float32 or float64");
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
