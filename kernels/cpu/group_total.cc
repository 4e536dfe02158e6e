// group_total: for every row slot, the sum over its group's slots.
//
//   v      (..., NB, R)  float32 or float64, tile storage (jaxglmm/tile.h)
//   sizes  (..., NB)     int32, the size class of each block; must divide R
//   out    (..., NB, R)  like v
#include "jaxglmm/group_total.h"

#include <string>

#include "chunks.h"
#include "handler.h"

namespace jaxglmm {
namespace {

constexpr int64_t kWorthThreads = 1 << 15;  // slots; below, waking a thread costs more than the sums

ffi::Error invalid(const std::string& what) { return ffi::Error::InvalidArgument("group_total: " + what); }

template <typename T>
void compute(ffi::ThreadPool& pool, const T* v, const int32_t* sizes, T* out, const Leading& v_lead,
             const Leading& sizes_lead, int64_t blocks, int64_t slots) {
  const int64_t items = v_lead.count() * blocks;
  for_each_chunk(pool, items, items * slots >= kWorthThreads, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t batch = item / blocks, block = item % blocks;
      const int64_t size = sizes[sizes_lead.at(batch) * blocks + block];
      group_total_block(v + (v_lead.at(batch) * blocks + block) * slots, out + item * slots, size,
                        slots / size);
    }
  });
}

ffi::Error group_total(ffi::ThreadPool pool, ffi::AnyBuffer v, ffi::Buffer<ffi::S32> sizes,
                       ffi::Result<ffi::AnyBuffer> out) {
  const Dimensions v_dims = v.dimensions(), sizes_dims = sizes.dimensions(), out_dims = out->dimensions();
  if (v_dims.size() < 2 || sizes_dims.size() < 1 || out_dims.size() < 2)
    return invalid("expected v (..., blocks, slots) and sizes (..., blocks), found v " + shape_text(v_dims) +
                   ", sizes " + shape_text(sizes_dims) + ", result " + shape_text(out_dims));
  const int64_t slots = v_dims.back(), blocks = v_dims[v_dims.size() - 2];
  const Leading v_lead(v_dims, 2, out_dims, 2), sizes_lead(sizes_dims, 1, out_dims, 2);
  if (sizes_dims.back() != blocks || out_dims.back() != slots || out_dims[out_dims.size() - 2] != blocks ||
      !v_lead.fits() || !sizes_lead.fits())
    return invalid("shapes do not fit together: v " + shape_text(v_dims) + ", sizes " +
                   shape_text(sizes_dims) + ", result " + shape_text(out_dims));
  if (v.element_type() != out->element_type()) return invalid("v and the result differ in type");
  const int32_t* size = sizes.typed_data();
  for (size_t i = 0; i < sizes.element_count(); ++i)
    if (!is_class_size(size[i], slots))
      return invalid("sizes[" + std::to_string(i) + "] = " + std::to_string(size[i]) +
                     " does not divide the block's " + std::to_string(slots) + " slots");

  switch (v.element_type()) {
    case ffi::F32:
      compute(pool, v.typed_data<float>(), size, out->typed_data<float>(), v_lead, sizes_lead, blocks, slots);
      return ffi::Error::Success();
    case ffi::F64:
      compute(pool, v.typed_data<double>(), size, out->typed_data<double>(), v_lead, sizes_lead, blocks,
              slots);
      return ffi::Error::Success();
    default:
      return invalid("v must be float32 or float64");
  }
}

}  // namespace
}  // namespace jaxglmm

JAXGLMM_HANDLER(jaxglmm_group_total, jaxglmm::group_total,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()
                    .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                    .Ret<xla::ffi::AnyBuffer>());
