// The XLA FFI handlers for CUDA: operands and results as those of the CPU (cpu/fused_pass.cc,
// cpu/group_modes.cc), but in the device's memory, so that only shapes and types are checked here. Sizes that
// do not fit come out as NaN.
#include <utility>

#include "handler.h"
#include "launch.h"

namespace jaxglmm {
namespace {

using Any = ffi::AnyBuffer;
using S32 = ffi::Buffer<ffi::S32>;
using Out = ffi::Result<ffi::AnyBuffer>;
using device::Pass;

int64_t extent(Dimensions dims, int from_last) { return dims[dims.size() - from_last]; }

// The operands that all passes have; X is null where eta is given.
struct Given {
  const char* name;
  Any *X, &y, &weight, &offset, &z, &start;
  S32 &sizes, &pieces;
  Any &psi, &points, &log_weights;
  S32& count;
  int64_t block, family, determinant;

  ffi::Error invalid(const std::string& what) const {
    return ffi::Error::InvalidArgument(std::string(name) + ": " + what);
  }

  // `results(in, pass)` takes the further operands and results, and returns place(pass, b), which puts item b
  // of the batch into a pass.
  template <class Results>
  ffi::Error run(cudaStream_t stream, ffi::ScratchAllocator& memory, Dimensions batch, bool second,
                 const Results& results) const {
    if ((X && X->dimensions().size() < 2) || offset.dimensions().size() < 1 || z.dimensions().size() < 2 ||
        points.dimensions().size() < 2 || sizes.dimensions().size() < 1 || pieces.dimensions().size() < 1)
      return invalid("an operand has too few axes; z is " + shape_text(z.dimensions()));
    Pass p = {};
    p.q.columns = X ? extent(X->dimensions(), 1) : 0, p.q.slots = extent(offset.dimensions(), 1);
    p.q.effects = extent(z.dimensions(), 2), p.q.stride = extent(points.dimensions(), 1);
    p.q.block = block, p.q.determinant = determinant != 0, p.q.second = second;
    if (p.q.effects < 1 || p.q.effects > kMostEffects)
      return invalid(std::to_string(p.q.effects) + " effects a group; expected 1, 2 or 3");
    if (family < 0 || family >= kFamilies)
      return invalid("family " + std::to_string(family) + " is not known");
    p.q.family = static_cast<Family>(family);
    p.n_sizes = extent(sizes.dimensions(), 1), p.n_pieces = extent(pieces.dimensions(), 1);
    const int64_t N = p.q.slots, S = p.q.effects, K = p.q.stride;

    Operands in(batch);
    const Numbers X_ = X ? in.numbers("X", *X, {N, p.q.columns}) : Numbers{{}, {{}, 0, {}, 0}, 0},
                  y_ = in.numbers("y", y, {N}), weight_ = in.numbers("weight", weight, {N}),
                  offset_ = in.numbers(X ? "offset" : "eta", offset, {N}), z_ = in.numbers("z", z, {S, N}),
                  start_ = in.numbers("start", start, {S, N}),
                  psi_ = in.numbers(X ? "psi" : "unknowns", psi, {p.parameters()}),
                  points_ = in.numbers("points", points, {S, K}),
                  omega_ = in.numbers("log_weights", log_weights, {K});
    const Integers sizes_ = in.integers("sizes", sizes, {p.n_sizes}),
                   pieces_ = in.integers("pieces", pieces, {p.n_pieces}),
                   count_ = in.integers("count", count, {});
    const auto place = results(in, p);
    if (!in.wrong().empty()) return invalid(in.wrong());
    const std::string fault = shape_fault(p.n_sizes, p.n_pieces, block, N);
    if (!fault.empty()) return invalid(fault);

    place(p, 0);  // says what the scratch memory must hold
    const auto scratch = memory.Allocate(place_pass(S, p, nullptr) * sizeof(double), sizeof(double));
    if (!scratch)
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, std::string(name) + ": out of memory");
    for (int64_t b = 0; b < in.items(); ++b) {
      p.q.X = X ? X_.at(b) : Column{}, p.q.y = y_.at(b), p.q.weight = weight_.at(b),
      p.q.offset = offset_.at(b);
      p.q.z = z_.at(b), p.q.start = start_.at(b), p.psi = psi_.at(b), p.points = points_.at(b);
      p.log_weights = omega_.at(b), p.sizes = sizes_.at(b), p.pieces = pieces_.at(b), p.count = count_.at(b);
      place(p, b);
      place_pass(S, p, static_cast<double*>(*scratch));
      const cudaError_t error = run_pass(S, stream, p);
      if (error != cudaSuccess)
        return ffi::Error(ffi::ErrorCode::kInternal, std::string(name) + ": " + cudaGetErrorString(error));
    }
    return ffi::Error::Success();
  }

  static int64_t place_pass(int64_t S, Pass& p, double* scratch) {
    return S == 1   ? device::place_pass<1>(p, scratch)
           : S == 2 ? device::place_pass<2>(p, scratch)
                    : device::place_pass<3>(p, scratch);
  }
  template <int S>
  static cudaError_t run_pass(cudaStream_t stream, const Pass& p) {
    using namespace device;
    static constexpr decltype(&device::run_pass<Logit, S>) kRun[kFamilies] = {
        device::run_pass<Gaussian, S>, device::run_pass<Logit, S>,   device::run_pass<Probit, S>,
        device::run_pass<Cloglog, S>,  device::run_pass<Poisson, S>, device::run_pass<NegativeBinomial, S>,
        device::run_pass<Gamma, S>};
    return kRun[static_cast<int>(p.q.family)](stream, p);
  }
  static cudaError_t run_pass(int64_t S, cudaStream_t stream, const Pass& p) {
    return S == 1 ? run_pass<1>(stream, p) : S == 2 ? run_pass<2>(stream, p) : run_pass<3>(stream, p);
  }
};

ffi::Error fused_pass(cudaStream_t stream, ffi::ScratchAllocator memory, Any X, Any y, Any weight, Any offset,
                      Any z, Any start, S32 sizes, S32 pieces, Any psi, Any points, Any log_weights,
                      S32 count, Out value, Out gradient, Out hessian, Out modes, int64_t block,
                      int64_t family, int64_t determinant, int64_t second) {
  const Given given{"fused_pass", &X,  y,      weight,      offset, z,     start,  sizes,
                    pieces,       psi, points, log_weights, count,  block, family, determinant};
  return given.run(stream, memory, value->dimensions(), second != 0, [&](Operands& in, const Pass& p) {
    const int64_t m = p.parameters();
    const Result value_ = in.result("value", value, {}), gradient_ = in.result("gradient", gradient, {m}),
                 hessian_ = in.result("hessian", hessian, {m, m}),
                 modes_ = in.result("modes", modes, {p.q.effects, p.q.slots});
    return [=](Pass& p, int64_t b) {
      p.value = value_.at(b), p.gradient = gradient_.at(b), p.hessian = hessian_.at(b),
      p.q.modes = modes_.at(b);
    };
  });
}

ffi::Error group_modes(cudaStream_t stream, ffi::ScratchAllocator memory, Any eta, Any y, Any weight, Any z,
                       Any start, S32 sizes, S32 pieces, Any unknowns, Any points, Any log_weights, S32 count,
                       Out value, Out d_eta, Out d_unknowns, Out modes, Out curvature, int64_t block,
                       int64_t family, int64_t determinant) {
  const Given given{"group_modes", nullptr,  y,      weight,      eta,   z,     start,  sizes,
                    pieces,        unknowns, points, log_weights, count, block, family, determinant};
  return given.run(stream, memory, value->dimensions(), false, [&](Operands& in, const Pass& p) {
    const int64_t N = p.q.slots, U = p.q.unknowns();
    const Result value_ = in.result("value", value, {}), d_eta_ = in.result("d_eta", d_eta, {N}),
                 d_unknowns_ = in.result("d_unknowns", d_unknowns, {U}),
                 modes_ = in.result("modes", modes, {p.q.effects, N}),
                 curvature_ = in.result("curvature", curvature, {U - 1, N});
    return [=](Pass& p, int64_t b) {
      p.value = value_.at(b), p.gradient = d_unknowns_.at(b);
      p.q.d_eta = d_eta_.at(b), p.q.modes = modes_.at(b), p.q.curvature = curvature_.at(b);
    };
  });
}

ffi::Error group_push(cudaStream_t stream, ffi::ScratchAllocator memory, Any eta, Any y, Any weight, Any z,
                      Any start, S32 sizes, S32 pieces, Any unknowns, Any points, Any log_weights, S32 count,
                      Any t_eta, Any t_unknowns, Out pushed_eta, Out pushed_unknowns, int64_t block,
                      int64_t family, int64_t determinant) {
  const Given given{"group_push", nullptr,  y,      weight,      eta,   z,     start,  sizes,
                    pieces,       unknowns, points, log_weights, count, block, family, determinant};
  const Dimensions dims = pushed_eta->dimensions();
  if (dims.size() < 1) return given.invalid("expected pushed_eta (..., slots), found " + shape_text(dims));
  return given.run(stream, memory, {dims.begin(), dims.size() - 1}, true, [&](Operands& in, const Pass& p) {
    const int64_t N = p.q.slots, U = p.q.unknowns();
    const Numbers t_eta_ = in.numbers("t_eta", t_eta, {N}),
                  t_unknowns_ = in.numbers("t_unknowns", t_unknowns, {U});
    const Result eta_ = in.result("pushed_eta", pushed_eta, {N}),
                 unknowns_ = in.result("pushed_unknowns", pushed_unknowns, {U});
    return [=](Pass& p, int64_t b) {
      p.q.t_eta = t_eta_.at(b), p.t_unknowns = t_unknowns_.at(b);
      p.q.pushed = eta_.at(b), p.pushed_unknowns = unknowns_.at(b);
    };
  });
}

ffi::Error group_total(cudaStream_t stream, Any v, S32 sizes, Out out) {
  const auto invalid = [](const std::string& what) {
    return ffi::Error::InvalidArgument("group_total: " + what);
  };
  if (v.dimensions().size() < 2)
    return invalid("expected v (..., blocks, slots), found " + shape_text(v.dimensions()));
  const int64_t blocks = extent(v.dimensions(), 2), slots = extent(v.dimensions(), 1);
  if (out->dimensions().size() < 2) return invalid("the result has too few axes");
  Operands in({out->dimensions().begin(), out->dimensions().size() - 2});
  const Numbers v_ = in.numbers("v", v, {blocks, slots});
  const Integers sizes_ = in.integers("sizes", sizes, {blocks});
  const Result out_ = in.result("out", out, {blocks, slots});
  in.require(v.element_type() == out->element_type(), "v and the result differ in type");
  if (!in.wrong().empty()) return invalid(in.wrong());
  for (int64_t b = 0; b < in.items(); ++b) {
    const auto run = [&](auto number) {
      using T = decltype(number);
      return device::run_group_total<T>(
          stream, blocks,
          {static_cast<const T*>(v_.at(b).at), sizes_.at(b), static_cast<T*>(out_.at(b).at), slots});
    };
    const cudaError_t error = v_.at(b).narrow ? run(0.0f) : run(0.0);
    if (error != cudaSuccess)
      return ffi::Error(ffi::ErrorCode::kInternal, std::string("group_total: ") + cudaGetErrorString(error));
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxglmm

#define JAXGLMM_ON_STREAM xla::ffi::Ffi::Bind().Ctx<xla::ffi::PlatformStream<cudaStream_t>>()
#define JAXGLMM_GROUPS     \
  .Arg<jaxglmm::Any>()     \
      .Arg<jaxglmm::Any>() \
      .Arg<jaxglmm::Any>() \
      .Arg<jaxglmm::Any>() \
      .Arg<jaxglmm::Any>() \
      .Arg<jaxglmm::S32>() \
      .Arg<jaxglmm::S32>() \
      .Arg<jaxglmm::Any>() \
      .Arg<jaxglmm::Any>() \
      .Arg<jaxglmm::Any>() \
      .Arg<jaxglmm::S32>()
#define JAXGLMM_SETTINGS .Attr<int64_t>("block").Attr<int64_t>("family").Attr<int64_t>("determinant")

JAXGLMM_HANDLER(jaxglmm_fused_pass, jaxglmm::fused_pass,
                JAXGLMM_ON_STREAM.Ctx<xla::ffi::ScratchAllocator>()
                    .Arg<jaxglmm::Any>() JAXGLMM_GROUPS.Ret<jaxglmm::Any>()
                    .Ret<jaxglmm::Any>()
                    .Ret<jaxglmm::Any>()
                    .Ret<jaxglmm::Any>() JAXGLMM_SETTINGS.Attr<int64_t>("second"));

JAXGLMM_HANDLER(jaxglmm_group_modes, jaxglmm::group_modes,
                JAXGLMM_ON_STREAM.Ctx<xla::ffi::ScratchAllocator>() JAXGLMM_GROUPS.Ret<jaxglmm::Any>()
                    .Ret<jaxglmm::Any>()
                    .Ret<jaxglmm::Any>()
                    .Ret<jaxglmm::Any>()
                    .Ret<jaxglmm::Any>() JAXGLMM_SETTINGS);

JAXGLMM_HANDLER(jaxglmm_group_push, jaxglmm::group_push,
                JAXGLMM_ON_STREAM.Ctx<xla::ffi::ScratchAllocator>() JAXGLMM_GROUPS.Arg<jaxglmm::Any>()
                    .Arg<jaxglmm::Any>()
                    .Ret<jaxglmm::Any>()
                    .Ret<jaxglmm::Any>() JAXGLMM_SETTINGS);

JAXGLMM_HANDLER(jaxglmm_group_total, jaxglmm::group_total,
                JAXGLMM_ON_STREAM.Arg<jaxglmm::Any>().Arg<jaxglmm::S32>().Ret<jaxglmm::Any>());
