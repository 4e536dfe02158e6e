// A tile of groups with its rows of X: what the fused pass does with each.
//
// A group of few rows forms the matrix of its second derivatives in eta; a joined tile keeps the row vectors
// that the matrix is made of, and multiplies them with X one by one.
#pragma once

#include "columns.h"
#include "fused_pass.h"
#include "jaxglmm/group_derivatives.h"
#include "jaxglmm/group_mode.h"
#include "jaxglmm/group_nodes.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

inline Setting setting_of(const Problem& q) {
  return {q.factor, q.points, q.log_weights, q.stride, q.nodes, q.log_phi, q.determinant, q.second};
}

template <class F, int S>
class TilePass {
 public:
  TilePass(const Problem& problem, const Tile& tile, double* workspace, const Sums& sums)
      : q(problem),
        tile(tile),
        sums(sums),
        width(lanes_of(tile)),
        padded(padded_columns(problem.columns)),
        slice(tile.joined ? kLanes : width),
        setting(setting_of(problem)),
        pass(setting, tile.joined, tile.size, width, workspace) {
    double* at = workspace + R::arrays * tile.size * width;
    const auto take = [&](int64_t doubles) {
      double* begin = at;
      at += (doubles + 7) / 8 * 8;
      return begin;
    };
    pass.modes = take(S * width);
    pass.pairs = entries_of(q, tile) ? take(entries_of(q, tile) * width) : nullptr;
    pass.nodes = tile.joined ? take((1 + S) * q.nodes) : nullptr;
    x = take(tile.size * slice * padded);
    scaled = take(tile.size * slice * padded);
    vectors = at;
  }

  static int64_t workspace(const Problem& q, const Tile& tile) {
    const int64_t width = lanes_of(tile), padded = padded_columns(q.columns);
    const int64_t slice = tile.joined ? kLanes : width, slack = 6 * 8;
    const int64_t kept = tile.joined ? (4 * kForm + 2 * q.nodes + 1) * padded + (1 + S) * q.nodes : 0;
    return (R::arrays * tile.size + S + entries_of(q, tile)) * width + 2 * tile.size * slice * padded + kept +
           slack;
  }

  void run() {
    if (load_rows()) {
      if (tile.joined)
        pass.evaluate(0, width);
      else
        for (int64_t v = 0; v < width; v += kLanes) pass.evaluate(v, v + kLanes);
      add_columns();
      add_totals();
    }
    for (int a = 0; a < S; ++a)
      for (int64_t k = 0; k < tile.size; ++k)
        for (int64_t j = 0; j < tile.lanes; ++j)
          q.modes.set(a * q.slots + tile.slot(j) + k * tile.stride, pass.modes[a * width + j]);
  }

 private:
  using Pass = GroupPass<F, S>;
  using R = Rows<S>;
  static constexpr int kForm = Pass::kForm, kUsed = Pass::kUsed, kUnknowns = Pass::kUnknowns;

  const Problem& q;
  const Tile& tile;
  const Sums& sums;
  const int64_t width, padded, slice;
  const Setting setting;
  Pass pass;
  double *x, *scaled, *vectors;

  static int64_t lanes_of(const Tile& tile) { return (tile.lanes + kLanes - 1) / kLanes * kLanes; }
  static int64_t entries_of(const Problem& q, const Tile& tile) {
    return q.second && !tile.joined ? tile.size * (tile.size + 1) / 2 : 0;
  }

  // One of the problem's columns into the tile's rows, lanes beyond the tile filled.
  void load(const Column& column, double fill, double* out) const {
    for (int64_t k = 0; k < tile.size; ++k, out += width) {
      if (tile.joined)
        for (int64_t j = 0; j < tile.lanes; ++j) out[j] = column[tile.slot(j) + k * tile.stride];
      else
        column.read(tile.first + k * tile.stride, tile.lanes, out);
      for (int64_t j = tile.lanes; j < width; ++j) out[j] = fill;
    }
  }

  // Rows into contiguous arrays, eta at the fixed effects. False where no row has a weight: then modes are
  // zero.
  bool load_rows() {
    const auto& r = pass.r;
    load(q.weight, 0.0, r[R::weight]);
    bool live = false;
    for (int64_t i = 0; i < tile.size * width; ++i) live |= r[R::weight][i] != 0;
    if (!live) {
      for (int64_t j = 0; j < S * width; ++j) pass.modes[j] = 0;
      return false;
    }
    load(q.y, 1.0, r[R::y]);
    load(q.offset, 0.0, r[R::eta]);
    for (int a = 0; a < S; ++a) {
      load(q.z.from(a * q.slots), 0.0, r[R::z + a]);
      double* mode = pass.modes + a * width;
      for (int64_t j = 0; j < width; ++j) {
        const bool inside = j < tile.lanes;
        mode[j] = inside ? q.start[a * q.slots + tile.slot(j)] : tile.joined ? mode[0] : 0.0;
      }
    }
    if (F::kLogResponse)
      for (int64_t i = 0; i < tile.size * width; i += kLanes)
        store(r[R::y] + i, log(jaxglmm::JAXGLMM_TARGET::load(r[R::y] + i)));
    for (int64_t j = 0; j < width; j += slice) {
      load_columns(q, tile, j, slice, padded, x);
      const double* at = x;
      for (int64_t k = 0; k < tile.size; ++k)
        for (int64_t g = 0; g < slice; ++g, at += padded)
          r[R::eta][k * width + j + g] += dot(at, q.beta, padded);
    }
    return true;
  }

  void add_totals() {
    sums.value() += sum(pass.totals.value);
    for (int k = 0; k < kUnknowns; ++k) sums.first()[k] += sum(pass.totals.first[k]);
    for (int k = 0; k < pairs_of(kUnknowns); ++k) sums.second()[k] += sum(pass.totals.second.at[k]);
  }

  // The rows' derivatives times X.
  void add_columns() {
    const auto& r = pass.r;
    if (!tile.joined) {
      const int64_t rows = tile.size * width;
      add_weighted(r[R::d_eta], x, rows, padded, sums.gradient());
      if (!q.second) return;
      for (int y = 0; y < kUsed; ++y) add_weighted(r[R::mixed + y], x, rows, padded, sums.mixed(y));
      multiply_groups(pass.pairs, x, tile.size, width, padded, scaled);
      add_outer(scaled, x, rows, padded, sums.hessian());
      return;
    }
    if (q.second) std::memset(vectors, 0, (2 * kForm + q.nodes) * padded * sizeof(double));
    for (int64_t j = 0; j < width; j += kLanes) {
      load_columns(q, tile, j, kLanes, padded, x);
      add_joined(j);
    }
    if (q.second) finish_joined();
  }

  // One slice of a joined tile: into `vectors` go the sums of g, of r and of the nodes' spreads with X.
  void add_joined(int64_t j) {
    const auto& r = pass.r;
    const auto add = [&](const double* weight, double* out) {
      for (int64_t k = 0; k < tile.size; ++k)
        add_weighted(weight + k * width + j, x + k * kLanes * padded, kLanes, padded, out);
    };
    add(r[R::d_eta], sums.gradient());
    if (!q.second) return;
    for (int y = 0; y < kUsed; ++y) add(r[R::mixed + y], sums.mixed(y));
    double entry[2 * kForm][kLanes];
    for (int64_t k = 0; k < tile.size; ++k) {
      const int64_t i = k * width + j;
      const auto form = pass.form_of(i);
      for (int f = 0; f < kForm; ++f) store(entry[f], form.g[f]), store(entry[kForm + f], form.r[f]);
      for (int f = 0; f < 2 * kForm; ++f)
        add_weighted(entry[f], x + k * kLanes * padded, kLanes, padded, vectors + f * padded);
      for (int64_t g = 0; g < kLanes; ++g) {
        const int64_t at = (k * kLanes + g) * padded;
        for (int64_t c = 0; c < padded; ++c) scaled[at + c] = r[R::diagonal][i + g] * x[at + c];
      }
    }
    add_outer(scaled, x, tile.size * kLanes, padded, sums.hessian());
    if (q.nodes == 1) return;
    for (int64_t node = 0; node < q.nodes; ++node) {
      Vector<S> slope;
      Symmetric<S> slope_e;
      for (int a = 0; a < S; ++a) slope[a] = splat(pass.nodes[(1 + a) * q.nodes + node]);
      for (int a = 0; a < S; ++a)
        for (int b = a; b < S; ++b) slope_e(a, b) = slope[a] * pass.node(b, node);
      const Vector<S> shift = pass.shift_at(node);
      pass.each_row(j, j + kLanes, [&](int64_t i) {
        store(r[R::spread] + i, pass.spread_of(i, pass.row(i, shift).s, slope, slope_e));
      });
      add(r[R::spread], vectors + (2 * kForm + node) * padded);
    }
  }

  // The form of a joined group in its p-vectors.
  void finish_joined() {
    double *g = vectors, *r = g + kForm * padded, *at = r + kForm * padded, *centred = at + q.nodes * padded;
    double *others = centred + q.nodes * padded, *centre = others + 2 * kForm * padded;
    for (int64_t c = 0; c < padded; ++c)
      for (int k = 0; k < kForm; ++k) {
        double to = r[k * padded + c];
        for (int j = 0; j < kForm; ++j) to += pass.form.entry[k][j][0] * g[j * padded + c];
        others[k * padded + c] = to;
        others[(kForm + k) * padded + c] = g[k * padded + c];
      }
    add_outer(vectors, others, 2 * kForm, padded, sums.hessian());
    if (q.nodes == 1) return;
    const double per = 1 / pass.form.mass[0];
    for (int64_t c = 0; c < padded; ++c) {
      centre[c] = 0;
      for (int64_t k = 0; k < q.nodes; ++k) centre[c] += per * pass.nodes[k] * at[k * padded + c];
      for (int64_t k = 0; k < q.nodes; ++k)
        centred[k * padded + c] = per * pass.nodes[k] * (at[k * padded + c] - centre[c]);
    }
    add_outer(at, centred, q.nodes, padded, sums.hessian());
  }
};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
