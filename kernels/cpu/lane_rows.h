// The rows of kLanes fits, one group of each at a time, and sums of their products with columns.
#pragma once

#include "jaxglmm/families.h"
#include "lane_pass.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

constexpr int64_t kTileColumns = 4;  // columns of a row of the Hessian that are held in registers

// The fits of a vector; lanes beyond the last fit repeat it.
struct LaneFits {
  const LaneProblem& q;
  int64_t first, lanes;
  int64_t fit[kLanes], response[kLanes], design[kLanes];
  const int32_t* begin[kLanes];

  LaneFits(const LaneProblem& problem, int64_t from) : q(problem), first(from) {
    lanes = q.fits - first < kLanes ? q.fits - first : kLanes;
    for (int64_t j = 0; j < kLanes; ++j) {
      fit[j] = q.which[first + (j < lanes ? j : lanes - 1)];
      response[j] = q.response_row[fit[j]], design[j] = q.design_row[fit[j]];
      begin[j] = q.begin + fit[j] * q.begin_stride;
    }
  }
  int64_t size(int64_t group) const {
    int64_t most = 0;
    for (int64_t j = 0; j < kLanes; ++j) {
      const int64_t own = begin[j][group + 1] - begin[j][group];
      most = own > most ? own : most;
    }
    return most;
  }
  // Entry k of each lane's parameters.
  V parameter(int64_t k, int64_t m) const {
    V out;
    for (int64_t j = 0; j < kLanes; ++j) out[j] = q.psi[(first + (j < lanes ? j : lanes - 1)) * m + k];
    return out;
  }
};

// Columns of the rows of a group: one number for all lanes, or one for each.
struct SharedColumns {
  const double* at;
  int64_t columns;
  JAXGLMM_INLINE double operator()(int64_t row, int64_t c) const { return at[row * columns + c]; }
};
struct OwnColumns {
  const double* at;
  int64_t columns;
  JAXGLMM_INLINE V operator()(int64_t row, int64_t c) const {
    return load(at + (row * columns + c) * kLanes);
  }
};

// One group of each fit: its rows' arrays, kLanes numbers a row. Rows beyond a lane's own have weight 0.
struct LaneGroup {
  double *y, *weight, *eta, *z, *x;
  int64_t z_stride;  // from an effect's column to the next

  // eta is filled with the offset alone.
  void load(const LaneFits& f, int64_t group, int64_t size) {
    const LaneProblem& q = f.q;
    for (int64_t j = 0; j < kLanes; ++j) {
      const int64_t from = f.begin[j][group], own = f.begin[j][group + 1] - from;
      const int64_t row = f.design[j] + from, response = f.response[j] + from;
      for (int64_t k = 0; k < own; ++k) {
        const int64_t to = k * kLanes + j;
        y[to] = q.y[response + k];
        weight[to] = q.weight ? q.weight[row + k] : 1.0;
        eta[to] = q.offset ? q.offset[row + k] : 0.0;
        for (int64_t a = 0; a < q.effects; ++a) z[a * z_stride + to] = q.z ? q.z[a * q.rows + row + k] : 1.0;
        if (!q.shared)
          for (int64_t c = 0; c < q.columns; ++c)
            x[(k * q.columns + c) * kLanes + j] = q.X[(row + k) * q.columns + c];
      }
      for (int64_t k = own; k < size; ++k) {
        const int64_t to = k * kLanes + j;
        y[to] = 1.0, weight[to] = eta[to] = 0.0;
        for (int64_t a = 0; a < q.effects; ++a) z[a * z_stride + to] = 0.0;
        if (!q.shared)
          for (int64_t c = 0; c < q.columns; ++c) x[(k * q.columns + c) * kLanes + j] = 0.0;
      }
    }
  }
  template <class Columns>
  void add_linear(const Columns& x, const double* beta, int64_t columns, int64_t size) const {
    for (int64_t i = 0; i < size; ++i) {
      V total = jaxglmm::JAXGLMM_TARGET::load(eta + i * kLanes);
      for (int64_t c = 0; c < columns; ++c)
        total += x(i, c) * jaxglmm::JAXGLMM_TARGET::load(beta + c * kLanes);
      store(eta + i * kLanes, total);
    }
  }
};

// out_c += sum over the rows of weight_i x_ic.
template <class Columns>
inline void add_weighted(const double* weight, const Columns& x, int64_t size, int64_t columns, double* out) {
  for (int64_t c = 0; c < columns; ++c) {
    V total = load(out + c * kLanes);
    for (int64_t i = 0; i < size; ++i) total += load(weight + i * kLanes) * x(i, c);
    store(out + c * kLanes, total);
  }
}

template <int N, class Left, class Right>
JAXGLMM_INLINE void add_products(const Left& left, const Right& right, int64_t size, int64_t c, int64_t d,
                                 double* out) {
  V held[N] = {};
  for (int64_t i = 0; i < size; ++i) {
    const V by = left(i, c);
    for (int k = 0; k < N; ++k) held[k] += by * right(i, d + k);
  }
  for (int k = 0; k < N; ++k) store(out + k * kLanes, load(out + k * kLanes) + held[k]);
}

// out_cd += sum over i of left_ic right_id for d >= c; `out` is the upper triangle row by row.
template <class Left, class Right>
inline void add_outer(const Left& left, const Right& right, int64_t size, int64_t columns, double* out) {
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t d = c; d < columns;) {
      const int64_t n = columns - d < kTileColumns ? columns - d : kTileColumns;
      if (n == 4)
        add_products<4>(left, right, size, c, d, out);
      else if (n == 3)
        add_products<3>(left, right, size, c, d, out);
      else if (n == 2)
        add_products<2>(left, right, size, c, d, out);
      else
        add_products<1>(left, right, size, c, d, out);
      d += n, out += n * kLanes;
    }
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
