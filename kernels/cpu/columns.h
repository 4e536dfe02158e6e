// Rows of X in cache: products with vectors of row weights, and sums of outer products.
#pragma once

#include "fused_pass.h"
#include "jaxglmm/vec.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

constexpr int64_t kTileRows = 4;  // rows of an outer product's register tile

inline int64_t padded_columns(int64_t columns) {
  constexpr int64_t unit = kLanes > kTileRows ? kLanes : kTileRows;
  return (columns + unit - 1) / unit * unit;
}

// Lanes j0 .. j0 + lanes of a tile's X, padded with zero columns; lanes beyond the tile are zero. Row (k, j)
// goes to position k * lanes + j - j0.
inline void load_columns(const Problem& q, const Tile& tile, int64_t j0, int64_t lanes, int64_t padded,
                         double* out) {
  for (int64_t k = 0; k < tile.size; ++k)
    for (int64_t j = 0; j < lanes; ++j, out += padded) {
      const bool inside = j0 + j < tile.lanes;
      if (inside) q.X.read((tile.slot(j0 + j) + k * tile.stride) * q.columns, q.columns, out);
      for (int64_t c = inside ? q.columns : 0; c < padded; ++c) out[c] = 0;
    }
}

JAXGLMM_INLINE double dot(const double* x, const double* beta, int64_t padded) {
  V total{};
  for (int64_t c = 0; c < padded; c += kLanes) total += load(x + c) * load(beta + c);
  return sum(total);
}

// out += sum of weight[i] x_i.
inline void add_weighted(const double* weight, const double* x, int64_t rows, int64_t padded, double* out) {
  for (int64_t c = 0; c < padded; c += kLanes) {
    V total = load(out + c);
    for (int64_t i = 0; i < rows; ++i) total += weight[i] * load(x + i * padded + c);
    store(out + c, total);
  }
}

// kTileRows rows and `Vectors` vectors of columns of sum a_i x_i', held in registers.
template <int Vectors>
inline void add_outer_tile(const double* a, const double* x, int64_t rows, int64_t padded, double* out) {
  V held[kTileRows][Vectors] = {};
  for (int64_t i = 0; i < rows; ++i, a += padded, x += padded) {
    V value[Vectors];
    for (int v = 0; v < Vectors; ++v) value[v] = load(x + v * kLanes);
    for (int r = 0; r < kTileRows; ++r)
      for (int v = 0; v < Vectors; ++v) held[r][v] += a[r] * value[v];
  }
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < Vectors; ++v) {
      double* to = out + r * padded + v * kLanes;
      store(to, load(to) + held[r][v]);
    }
}

// out += the upper triangle of sum a_i x_i'.
inline void add_outer(const double* a, const double* x, int64_t rows, int64_t padded, double* out) {
  for (int64_t r = 0; r < padded; r += kTileRows)
    for (int64_t c = r / kLanes * kLanes; c < padded;) {
      double* to = out + r * padded + c;
      const int64_t vectors = (padded - c) / kLanes;
      if (vectors >= 3) {
        add_outer_tile<3>(a + r, x + c, rows, padded, to);
        c += 3 * kLanes;
      } else if (vectors == 2) {
        add_outer_tile<2>(a + r, x + c, rows, padded, to);
        c += 2 * kLanes;
      } else {
        add_outer_tile<1>(a + r, x + c, rows, padded, to);
        c += kLanes;
      }
    }
}

// Row (i, g) of out = sum over j of M[i, j][g] x_(j, g): one symmetric matrix a lane, stored by its upper
// triangle, the pair (i, j) at [pair * lanes + g].
inline void multiply_groups(const double* m, const double* x, int64_t size, int64_t lanes, int64_t padded,
                            double* out) {
  for (int64_t g = 0; g < lanes; ++g)
    for (int64_t c = 0; c < padded; c += kLanes)
      for (int64_t i = 0; i < size; ++i) {
        V total{};
        for (int64_t j = 0; j < size; ++j) {
          const int64_t low = i < j ? i : j, high = i < j ? j : i;
          total += m[(low * size - low * (low - 1) / 2 + high - low) * lanes + g] *
                   load(x + (j * lanes + g) * padded + c);
        }
        store(out + (i * lanes + g) * padded + c, total);
      }
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
