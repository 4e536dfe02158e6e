// Sparse matrices over the levels of two factors, a block for each pair of levels that meet: what the
// handlers hand to the code of each target. `start` (levels + 1,) says where each level's entries begin.
#pragma once

#include <cstdint>

namespace jaxglmm {

// out[g] = sum over its entries j of A_j x[other[j]], A_j = values[place[j]] (rows, inner), or the transpose
// of such a block (inner, rows).
struct PairProduct {
  const double* values;
  const int32_t *start, *other, *place;  // place: null where it counts up
  const double* x;                       // (., inner, columns)
  double* out;                           // (levels, rows, columns)
  int64_t levels, rows, inner, columns;
  bool transposed;
};

// out[j] = sum over columns of a[g] b[other[j]]', (rows, inner), for the entries j of g.
struct PairOuter {
  const int32_t *start, *other;
  const double *a, *b;  // (levels, rows, columns), (., inner, columns)
  double* out;
  int64_t levels, rows, inner, columns;
};

// out[g] = sum over its entries j of left[:, i] right[:, i]', i = place[j].
struct RowSums {
  const int32_t *start, *place;  // place: null where it counts up
  const double *left, *right;    // (rows, length), (inner, length); right: null for ones, inner = 1
  double* out;
  int64_t rows, inner, length;
};

// out[j] = sum over the entries i of the same row of values[i] R[other[i], other[j]]; R symmetric (order,
// order), its lower triangle stored by columns.
struct SampledProduct {
  const double* values;
  const int32_t *start, *other;
  const double* R;
  double* out;
  int64_t order;
};

// Work of the levels first .. last - 1.
#define JAXGLMM_PAIR_KERNELS(name)                           \
  namespace name {                                           \
  void run(const PairProduct&, int64_t first, int64_t last); \
  void run(const PairOuter&, int64_t first, int64_t last);   \
  }
JAXGLMM_PAIR_KERNELS(baseline)
#if defined(JAXGLMM_X86)
JAXGLMM_PAIR_KERNELS(avx2)
JAXGLMM_PAIR_KERNELS(avx512)
#endif
#undef JAXGLMM_PAIR_KERNELS

}  // namespace jaxglmm
