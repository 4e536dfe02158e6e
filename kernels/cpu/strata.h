// The rows of some strata, as the exported functions take them.
#pragma once

#include <cstdint>

namespace jaxglmm {

// What jaxglmm_stratum_rows reads and writes; jaxglmm/ops/stratum_rows.py has the same.
struct StratumRows {
  int64_t strata, rows, columns, effects, all_rows, intercept;
  const int64_t *begin, *order;  // (strata + 1,), (rows,)
  const void* const* column;
  const int64_t* stride;
  const int32_t* type;
  const double *y, *weight, *offset, *z;                    // of all rows; weight, offset and z may be null
  double *y_out, *x_out, *weight_out, *offset_out, *z_out;  // (rows,), (rows, columns), ..., (effects, rows)
  double *center, *scale, *z_scale;                         // (strata, columns), and (strata, effects)
  uint8_t* suspect;                                         // (strata,)
};

}  // namespace jaxglmm
