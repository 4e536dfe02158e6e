// A tile of groups with its rows of X: what the fused pass does with each.
//
// A group of few rows forms the matrix of its second derivatives in eta; a joined tile keeps the row vectors
// that the matrix is made of, and multiplies them with X one by one.
#pragma once

#include <algorithm>

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
    pass.curvatures = q.curvature ? take(Pass::kPairs * width) : nullptr;
    pass.direction = q.t_unknowns;
    copy = take(tile.size * slice * padded);
    scaled = take(tile.size * slice * padded);
    vectors = at;
  }

  static int64_t workspace(const Problem& q, const Tile& tile) {
    const int64_t width = lanes_of(tile), padded = padded_columns(q.columns);
    const int64_t slice = tile.joined ? kLanes : width, slack = 7 * 8;
    const int64_t kept = tile.joined ? (4 * kForm + 2 * q.nodes + 1) * padded + (1 + S) * q.nodes : 0;
    const int64_t curvatures = q.curvature ? Pass::kPairs : 0;
    return (R::arrays * tile.size + S + curvatures + entries_of(q, tile)) * width +
           2 * tile.size * slice * padded + kept + slack;
  }

  void run() {
    const bool live = load_rows();
    if (live) {
      if (tile.joined)
        pass.evaluate(0, width);
      else
        for (int64_t v = 0; v < width; v += kLanes) pass.evaluate(v, v + kLanes);
      if (q.columns) add_columns();
      add_totals();
    }
    const auto write = [&](const MutableColumn& to, int64_t which, const double* rows, int64_t step) {
      if (to)
        for (int64_t k = 0; k < tile.size; ++k) write_lanes(to.from(which * q.slots), k, rows + k * step);
    };
    for (int a = 0; a < S; ++a) write(q.modes, a, pass.modes + a * width, 0);
    if (!live) clear();
    write(q.d_eta, 0, pass.r[R::d_eta], width);
    write(q.pushed, 0, pass.r[R::pushed], width);
    for (int p = 0; p < Pass::kPairs; ++p) write(q.curvature, p, pass.curvatures + p * width, 0);
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
  double *copy, *scaled, *vectors;
  TileRows x;

  static int64_t lanes_of(const Tile& tile) { return (tile.lanes + kLanes - 1) / kLanes * kLanes; }
  static int64_t entries_of(const Problem& q, const Tile& tile) {
    return q.second && !q.t_unknowns && !tile.joined ? tile.size * (tile.size + 1) / 2 : 0;
  }

  // Row k of every lane to where it belongs.
  void write_lanes(const MutableColumn& to, int64_t k, const double* from) const {
    if (!tile.joined && !to.narrow) {
      std::memcpy(static_cast<double*>(to.at) + tile.first + k * tile.stride, from,
                  tile.lanes * sizeof(double));
      return;
    }
    for (int64_t j = 0; j < tile.lanes; ++j) to.set(tile.slot(j) + k * tile.stride, from[j]);
  }

  // What rows without a weight give.
  void clear() {
    for (double* rows : {pass.r[R::d_eta], pass.r[R::pushed]}) std::fill_n(rows, tile.size * width, 0.0);
    for (int a = 0; a < S && q.curvature; ++a)
      for (int b = a; b < S; ++b)
        std::fill_n(pass.curvatures + pair_at(S, a, b) * width, width, a == b ? 1.0 : 0.0);
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
    if (q.t_unknowns) load(q.t_eta, 0.0, r[R::t]);
    for (int a = 0; a < S; ++a) {
      load(q.z.from(a * q.slots), 0.0, r[R::z + a]);
      double* mode = pass.modes + a * width;
      const Column start = q.start.from(a * q.slots);
      if (tile.joined)
        for (int64_t j = 0; j < tile.lanes; ++j) mode[j] = start[tile.slot(j)];
      else
        start.read(tile.first, tile.lanes, mode);
      for (int64_t j = tile.lanes; j < width; ++j) mode[j] = tile.joined ? mode[0] : 0.0;
    }
    if (F::kLogResponse)
      for (int64_t i = 0; i < tile.size * width; i += kLanes)
        store(r[R::y] + i, log(jaxglmm::JAXGLMM_TARGET::load(r[R::y] + i)));
    for (int64_t j = 0; j < width && q.columns; j += slice) {
      x = load_columns(q, tile, j, slice, padded, copy);
      for (int64_t k = 0; k < tile.size; ++k)
        for (int64_t g = 0; g < slice; g += kLanes) {
          double* eta = r[R::eta] + k * width + j + g;
          store(eta, jaxglmm::JAXGLMM_TARGET::load(eta) + dots(x.row(k, g), q.beta, padded));
        }
    }
    return true;
  }

  void add_totals() {
    sums.value() += sum(pass.totals.value);
    for (int k = 0; k < kUnknowns; ++k) sums.first()[k] += sum(pass.totals.first[k]);
    for (int k = 0; k < kUnknowns; ++k) sums.pushed()[k] += sum(pass.totals.pushed[k]);
    for (int k = 0; k < pairs_of(kUnknowns); ++k) sums.second()[k] += sum(pass.totals.second.at[k]);
  }

  // The rows' derivatives times X.
  void add_columns() {
    const auto& r = pass.r;
    if (!tile.joined) {
      const double* weights[1 + kUsed] = {r[R::d_eta]};
      double* to[1 + kUsed] = {sums.gradient()};
      if (!q.second) return add_weighted<1>({weights[0]}, x, tile.size, width, {to[0]});
      for (int y = 0; y < kUsed; ++y) weights[1 + y] = r[R::mixed + y], to[1 + y] = sums.mixed(y);
      add_weighted(weights, x, tile.size, width, to);
      multiply_groups(pass.pairs, x, tile.size, width, scaled);
      add_outer(scaled, x, tile.size, width, sums.hessian());
      return;
    }
    if (q.second) std::memset(vectors, 0, (2 * kForm + q.nodes) * padded * sizeof(double));
    for (int64_t j = 0; j < width; j += kLanes) {
      x = load_columns(q, tile, j, kLanes, padded, copy);
      add_joined(j);
    }
    if (q.second) finish_joined();
  }

  // One slice of a joined tile: into `vectors` go the sums of g, of r and of the nodes' spreads with X.
  void add_joined(int64_t j) {
    const auto& r = pass.r;
    const auto add = [&](const double* weight, double* out) {
      for (int64_t k = 0; k < tile.size; ++k)
        add_weighted(weight + k * width + j, x.row(k, 0), kLanes, padded, out);
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
        add_weighted(entry[f], x.row(k, 0), kLanes, padded, vectors + f * padded);
      for (int64_t g = 0; g < kLanes; ++g) {
        double* to = scaled + (k * kLanes + g) * padded;
        for (int64_t c = 0; c < padded; ++c) to[c] = r[R::diagonal][i + g] * x.row(k, g)[c];
      }
    }
    add_outer(scaled, x, tile.size, kLanes, sums.hessian());
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
    add_outer(vectors, {others, 1, padded}, 2 * kForm, 1, sums.hessian());
    if (q.nodes == 1) return;
    const double per = 1 / pass.form.mass[0];
    for (int64_t c = 0; c < padded; ++c) {
      centre[c] = 0;
      for (int64_t k = 0; k < q.nodes; ++k) centre[c] += per * pass.nodes[k] * at[k * padded + c];
      for (int64_t k = 0; k < q.nodes; ++k)
        centred[k * padded + c] = per * pass.nodes[k] * (at[k * padded + c] - centre[c]);
    }
    add_outer(at, {centred, 1, padded}, q.nodes, 1, sums.hessian());
  }
};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
