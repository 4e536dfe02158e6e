// Rows of X in cache: products with vectors of row weights, and sums of outer products.
#pragma once

#include "fused_pass.h"
#include "jaxglmm/vec.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

constexpr int64_t kTileRows = 4;   // rows of an outer product's register tile
constexpr int64_t kMostRows = 32;  // of a group that has a lane to itself
constexpr int kHeld = 12;          // sums that registers hold

inline int64_t padded_columns(int64_t columns) {
  constexpr int64_t unit = kLanes > kTileRows ? kLanes : kTileRows;
  return (columns + unit - 1) / unit * unit;
}

// Rows of X, each padded with zero columns: row (k, j) is at (k * stride + j) * padded.
struct TileRows {
  const double* at;
  int64_t stride, padded;
  const double* row(int64_t k, int64_t j) const { return at + (k * stride + j) * padded; }
};

// Lanes j0 .. j0 + lanes of a tile's X: where they lie if that will do, else a copy in `out`. Lanes beyond
// the tile are zero.
inline TileRows load_columns(const Problem& q, const Tile& tile, int64_t j0, int64_t lanes, int64_t padded,
                             double* out) {
  if (!tile.joined && !q.X.narrow && padded == q.columns && j0 + lanes <= tile.lanes)
    return {static_cast<const double*>(q.X.at) + tile.slot(j0) * padded, tile.stride, padded};
  const TileRows rows = {out, lanes, padded};
  for (int64_t k = 0; k < tile.size; ++k)
    for (int64_t j = 0; j < lanes; ++j, out += padded) {
      const bool inside = j0 + j < tile.lanes;
      if (inside) q.X.read((tile.slot(j0 + j) + k * tile.stride) * q.columns, q.columns, out);
      for (int64_t c = inside ? q.columns : 0; c < padded; ++c) out[c] = 0;
    }
  return rows;
}

// Products with beta of kLanes rows one behind the other.
JAXGLMM_INLINE V dots(const double* x, const double* beta, int64_t padded) {
  V total[kLanes] = {}, out{};
  for (int64_t c = 0; c < padded; c += kLanes) {
    const V b = load(beta + c);
    for (int64_t j = 0; j < kLanes; ++j) total[j] += b * load(x + j * padded + c);
  }
  for (int64_t j = 0; j < kLanes; ++j) set_lane(out, j, sum(total[j]));
  return out;
}

// out += sum of weight[i] x_i over rows one behind the other.
inline void add_weighted(const double* weight, const double* x, int64_t rows, int64_t padded, double* out) {
  for (int64_t c = 0; c < padded; c += kLanes) {
    V total = load(out + c);
    for (int64_t i = 0; i < rows; ++i) total += weight[i] * load(x + i * padded + c);
    store(out + c, total);
  }
}

// `Vectors` vectors of columns of the sums below, held in registers.
template <int Vectors, int Sums>
inline void add_weighted_tile(const double* const (&weight)[Sums], const TileRows x, int64_t c, int64_t size,
                              int64_t lanes, double* const (&out)[Sums]) {
  V total[Sums][Vectors];
  for (int w = 0; w < Sums; ++w)
    for (int v = 0; v < Vectors; ++v) total[w][v] = load(out[w] + c + v * kLanes);
  for (int64_t k = 0, i = 0; k < size; ++k) {
    const double* at = x.row(k, 0) + c;
    for (int64_t j = 0; j < lanes; ++j, ++i, at += x.padded)
      for (int w = 0; w < Sums; ++w) {
        const V factor = splat(weight[w][i]);
        for (int v = 0; v < Vectors; ++v) total[w][v] += factor * load(at + v * kLanes);
      }
  }
  for (int w = 0; w < Sums; ++w)
    for (int v = 0; v < Vectors; ++v) store(out[w] + c + v * kLanes, total[w][v]);
}

template <int Vectors, int Sums>
inline void add_weighted_tiles(const double* const (&weight)[Sums], const TileRows& x, int64_t c,
                               int64_t size, int64_t lanes, double* const (&out)[Sums]) {
  for (; c + Vectors * kLanes <= x.padded; c += Vectors * kLanes)
    add_weighted_tile<Vectors>(weight, x, c, size, lanes, out);
  if constexpr (Vectors > 1) add_weighted_tiles<Vectors - 1>(weight, x, c, size, lanes, out);
}

// out[w] += sum of weight[w][i] x_i over rows i = k * lanes + j, for all of `Sums` vectors of weights.
template <int Sums>
inline void add_weighted(const double* const (&weight)[Sums], const TileRows& x, int64_t size, int64_t lanes,
                         double* const (&out)[Sums]) {
  add_weighted_tiles < Sums == 1 ? 6 : Sums<kHeld ? kHeld / Sums : 1>(weight, x, 0, size, lanes, out);
}

// kTileRows rows and `Vectors` vectors of columns of sum a_i x_i', held in registers; the rows a_i are one
// behind the other.
template <int Vectors>
inline void add_outer_tile(const double* a, const TileRows x, int64_t c, int64_t size, int64_t lanes,
                           double* out) {
  V held[kTileRows][Vectors] = {};
  for (int64_t k = 0; k < size; ++k) {
    const double* at = x.row(k, 0) + c;
    for (int64_t j = 0; j < lanes; ++j, a += x.padded, at += x.padded) {
      V value[Vectors];
      for (int v = 0; v < Vectors; ++v) value[v] = load(at + v * kLanes);
      for (int r = 0; r < kTileRows; ++r)
        for (int v = 0; v < Vectors; ++v) held[r][v] += a[r] * value[v];
    }
  }
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < Vectors; ++v) {
      double* to = out + r * x.padded + v * kLanes;
      store(to, load(to) + held[r][v]);
    }
}

// out += the upper triangle of sum a_i x_i'.
inline void add_outer(const double* a, const TileRows& x, int64_t size, int64_t lanes, double* out) {
  for (int64_t r = 0; r < x.padded; r += kTileRows)
    for (int64_t c = r / kLanes * kLanes; c < x.padded;) {
      double* to = out + r * x.padded + c;
      const int64_t vectors = (x.padded - c) / kLanes;
      if (vectors >= 3 && vectors != 4) {
        add_outer_tile<3>(a + r, x, c, size, lanes, to);
        c += 3 * kLanes;
      } else if (vectors > 1) {
        add_outer_tile<2>(a + r, x, c, size, lanes, to);
        c += 2 * kLanes;
      } else {
        add_outer_tile<1>(a + r, x, c, size, lanes, to);
        c += kLanes;
      }
    }
}

// `Rows` rows of M x of one group from row i on, M (size, size) symmetric.
template <int Rows>
JAXGLMM_INLINE void multiply_rows(const double* m, const TileRows& x, int64_t g, int64_t i, int64_t size,
                                  int64_t lanes, double* out) {
  for (int64_t c = 0; c < x.padded; c += kLanes) {
    V total[Rows] = {};
    for (int64_t j = 0; j < size; ++j) {
      const V value = load(x.row(j, g) + c);
      for (int r = 0; r < Rows; ++r) total[r] += m[(i + r) * size + j] * value;
    }
    for (int r = 0; r < Rows; ++r) store(out + ((i + r) * lanes + g) * x.padded + c, total[r]);
  }
}

// All of a group of few rows, whose matrix fits in registers; its pairs are `lanes` apart.
template <int Size>
JAXGLMM_INLINE void multiply_group(const double* pair, const TileRows& x, int64_t g, int64_t lanes,
                                   double* out) {
  V m[Size][Size], value[Size];
  for (int i = 0; i < Size; ++i)
    for (int j = i; j < Size; ++j, pair += lanes) m[i][j] = m[j][i] = splat(*pair);
  for (int64_t c = 0; c < x.padded; c += kLanes) {
    for (int j = 0; j < Size; ++j) value[j] = load(x.row(j, g) + c);
    for (int i = 0; i < Size; ++i) {
      V total = m[i][0] * value[0];
      for (int j = 1; j < Size; ++j) total += m[i][j] * value[j];
      store(out + (i * lanes + g) * x.padded + c, total);
    }
  }
}

// Row (i, g) of out = sum over j of M[i, j][g] x_(j, g): one symmetric matrix a lane, stored by its upper
// triangle, the pair (i, j) at [pair * lanes + g].
inline void multiply_groups(const double* m, const TileRows& x, int64_t size, int64_t lanes, double* out) {
  double square[kMostRows * kMostRows];
  for (int64_t g = 0; g < lanes; ++g) {
    const double* pair = m + g;
    switch (size) {
      case 1:
        multiply_group<1>(pair, x, g, lanes, out);
        continue;
      case 2:
        multiply_group<2>(pair, x, g, lanes, out);
        continue;
      case 3:
        multiply_group<3>(pair, x, g, lanes, out);
        continue;
      case 4:
        multiply_group<4>(pair, x, g, lanes, out);
        continue;
    }
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = i; j < size; ++j, pair += lanes) square[i * size + j] = square[j * size + i] = *pair;
    int64_t i = 0;
    for (; i + 6 <= size; i += 6) multiply_rows<6>(square, x, g, i, size, lanes, out);
    for (; i + 4 <= size; i += 4) multiply_rows<4>(square, x, g, i, size, lanes, out);
    for (; i < size; ++i) multiply_rows<1>(square, x, g, i, size, lanes, out);
  }
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
