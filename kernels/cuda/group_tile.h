// Groups of one evaluation on a GPU: a thread a group where groups are short, a block of threads where one is
// long.
//
// A tile is what a block of threads works on at a time: up to kThreads groups of one class, or one long
// group. Rows lie k-major, so that threads side by side read slots side by side. What a group needs of each
// of its rows lies in the tile's work memory, a thread's next to its neighbour's. Products with X are formed
// when all threads are done with their groups: each thread owns entries of the sums, and adds the rows of the
// tile to them in order.
#pragma once

#include "jaxglmm/group_derivatives.h"
#include "jaxglmm/group_mode.h"
#include "jaxglmm/group_nodes.h"
#include "pass.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

template <class F, int S>
class GroupTile {
 public:
  using Groups = GroupPass<F, S>;
  using R = Rows<S>;
  static constexpr int kForm = Groups::kForm, kUsed = Groups::kUsed, kUnknowns = Groups::kUnknowns,
                       kPairs = Groups::kPairs;

  // Doubles of work memory: for each lane, and for each tile besides.
  static JAXGLMM_HD int64_t lane_work(const Problem& q, bool joined, int64_t size) {
    const int64_t columns = q.second ? q.columns : 0;
    const int64_t products = joined ? (columns ? 2 * kForm * size : 0) : size * columns;
    return R::arrays * size + S + kPairs + (has_pairs(q, joined) ? size * (size + 1) / 2 : 0) + products;
  }
  static JAXGLMM_HD int64_t tile_work(const Problem& q) {
    return (1 + S) * q.stride + (2 * kForm + q.stride) * q.columns;
  }

  JAXGLMM_HD GroupTile(const Problem& q, const Tile& tile, const Team& team, double* work, const Sums& sums)
      : q(q),
        tile(tile),
        team(team),
        sums(sums),
        rows(tile.size * tile.lanes),
        setting{q.factor, q.points, q.log_weights, q.stride, q.nodes, q.log_phi, q.determinant, q.second},
        groups(setting, tile.joined, tile.size, tile.lanes, work) {
    double* at = work + R::arrays * rows;
    const auto take = [&](int64_t doubles) {
      double* begin = at;
      at += doubles;
      return begin;
    };
    if (tile.joined) groups.team = team;
    groups.modes = take(S * tile.lanes);
    groups.curvatures = take(kPairs * tile.lanes);
    if (has_pairs(q, tile.joined)) groups.pairs = take(tile.size * (tile.size + 1) / 2 * tile.lanes);
    groups.direction = q.t_eta.at ? q.t_unknowns : nullptr;
    products = at;
    if (tile.joined) {
      take(q.second && q.columns ? 2 * kForm * rows : 0);
      groups.nodes = take((1 + S) * q.nodes);
      vectors = at;
    }
  }

  // Adds what the tile's groups add; each thread's own sums are left in `groups.totals`.
  JAXGLMM_HD void run() {
    const int64_t lanes = tile.lanes;
    for (int64_t j = team.rank; j < lanes; j += team.size) load_rows(j);
    if (tile.joined) JAXGLMM_SYNC();
    if (tile.joined || team.rank < lanes) {
      const int64_t v0 = tile.joined ? 0 : team.rank, v1 = tile.joined ? lanes : v0 + 1;
      groups.evaluate(v0, v1);
    }
    for (int64_t j = team.rank; j < lanes; j += team.size) write_slots(j);
    if (q.columns) {
      if (q.second) tile.joined ? stage_forms() : stage_products();
      JAXGLMM_SYNC();
      add_columns();
      if (q.second && tile.joined) add_joined();
    }
    JAXGLMM_SYNC();
  }

  JAXGLMM_HD const Totals<S>& totals() const { return groups.totals; }

 private:
  const Problem& q;
  const Tile& tile;
  const Team& team;
  const Sums& sums;
  const int64_t rows;
  const Setting setting;
  Groups groups;
  double *products, *vectors = nullptr;

  static JAXGLMM_HD bool has_pairs(const Problem& q, bool joined) {
    return q.second && !q.t_eta.at && !joined;
  }

  // Column c of the row in lane j's k-th place.
  JAXGLMM_HD double x(int64_t k, int64_t j, int64_t c) const {
    return q.X[(tile.slot(j) + k * tile.stride) * q.columns + c];
  }

  // Lane j of the group's rows, eta at the fixed effects.
  JAXGLMM_HD void load_rows(int64_t j) {
    const auto& r = groups.r;
    const int64_t first = tile.slot(j);
    for (int64_t k = 0; k < tile.size; ++k) {
      const int64_t slot = first + k * tile.stride, i = k * tile.lanes + j;
      double eta = q.offset[slot];
      for (int64_t c = 0; c < q.columns; ++c) eta += q.X[slot * q.columns + c] * q.beta[c];
      r[R::eta][i] = eta;
      r[R::weight][i] = q.weight[slot];
      r[R::y][i] = F::kLogResponse ? log(q.y[slot]) : q.y[slot];
      if (groups.direction) r[R::t][i] = q.t_eta[slot];
      for (int a = 0; a < S; ++a) r[R::z + a][i] = q.z[a * q.slots + slot];
    }
    for (int a = 0; a < S; ++a)
      groups.modes[a * tile.lanes + j] = q.start[a * q.slots + tile.slot(tile.joined ? 0 : j)];
  }

  JAXGLMM_HD void write_slots(int64_t j) const {
    for (int64_t k = 0; k < tile.size; ++k) {
      const int64_t slot = tile.slot(j) + k * tile.stride, i = k * tile.lanes + j;
      for (int a = 0; a < S && q.modes; ++a)
        q.modes.set(a * q.slots + slot, groups.modes[a * tile.lanes + j]);
      for (int p = 0; p < kPairs && q.curvature; ++p)
        q.curvature.set(p * q.slots + slot, groups.curvatures[p * tile.lanes + j]);
      if (q.d_eta) q.d_eta.set(slot, groups.r[R::d_eta][i]);
      if (q.pushed) q.pushed.set(slot, groups.r[R::pushed][i]);
    }
  }

  // Sum over the tile's rows of weight[i] x_ic.
  JAXGLMM_HD double product(const double* weight, int64_t c) const {
    double total = 0;
    for (int64_t k = 0; k < tile.size; ++k)
      for (int64_t j = 0; j < tile.lanes; ++j) total += weight[k * tile.lanes + j] * x(k, j, c);
    return total;
  }

  // `products`, column after column: each group's matrix of second derivatives in eta times its rows of X.
  JAXGLMM_HD void stage_products() {
    const int64_t j = team.rank, lanes = tile.lanes, size = tile.size;
    if (j >= lanes) return;
    for (int64_t c = 0; c < q.columns; ++c)
      for (int64_t k = 0; k < size; ++k) {
        double total = 0;
        for (int64_t l = 0; l < size; ++l) {
          const int64_t low = k < l ? k : l, high = k < l ? l : k;
          total += groups.pairs[(low * size - low * (low - 1) / 2 + high - low) * lanes + j] * x(l, j, c);
        }
        products[c * rows + k * lanes + j] = total;
      }
  }

  // `products` of a long group: the row vectors of which its matrix is made, g and then r.
  JAXGLMM_HD void stage_forms() {
    for (int64_t k = 0; k < tile.size; ++k)
      for (int64_t j = team.rank; j < tile.lanes; j += team.size) {
        const int64_t i = k * tile.lanes + j;
        const auto form = groups.form_of(i);
        for (int f = 0; f < kForm; ++f)
          products[f * rows + i] = form.g[f], products[(kForm + f) * rows + i] = form.r[f];
      }
  }

  // Gradient, the mixed second derivatives, and the Hessian as far as it is a sum over rows.
  JAXGLMM_HD void add_columns() const {
    const int64_t p = q.columns, mixed = q.second ? kUsed : 0, square = q.second ? p * p : 0;
    for (int64_t e = team.rank; e < (1 + mixed) * p + square; e += team.size) {
      if (e < p) {
        sums.gradient()[e] += product(groups.r[R::d_eta], e);
      } else if (e < (1 + mixed) * p) {
        const int64_t x = e / p - 1, c = e % p;
        sums.mixed(x)[c] += product(groups.r[R::mixed + x], c);
      } else {
        const int64_t at = e - (1 + mixed) * p, a = at / p, b = at % p;
        if (a > b) continue;
        double total = 0;
        for (int64_t k = 0; k < tile.size; ++k)
          for (int64_t j = 0; j < tile.lanes; ++j) {
            const int64_t i = k * tile.lanes + j;
            const double left = tile.joined ? groups.r[R::diagonal][i] * x(k, j, a) : products[a * rows + i];
            total += left * x(k, j, b);
          }
        sums.hessian()[at] += total;
      }
    }
  }

  // The rest of a long group's Hessian: a quadratic form in few p-vectors, and the covariance of the nodes'
  // spreads.
  JAXGLMM_HD void add_joined() {
    const int64_t p = q.columns, spreads = q.nodes == 1 ? 0 : q.nodes;
    for (int64_t e = team.rank; e < 2 * kForm * p; e += team.size)
      vectors[e] = product(products + e / p * rows, e % p);
    for (int64_t node = 0; node < spreads; ++node) {
      Vector<S> slope;
      Symmetric<S> slope_e;
      for (int a = 0; a < S; ++a) slope[a] = groups.nodes[(1 + a) * q.nodes + node];
      for (int a = 0; a < S; ++a)
        for (int b = a; b < S; ++b) slope_e(a, b) = slope[a] * groups.node(b, node);
      const Vector<S> shift = groups.shift_at(node);
      groups.each_row(0, tile.lanes, [&](int64_t i) {
        groups.r[R::spread][i] = groups.spread_of(i, groups.row(i, shift).s, slope, slope_e);
      });
      JAXGLMM_SYNC();
      for (int64_t c = team.rank; c < p; c += team.size)
        vectors[(2 * kForm + node) * p + c] = product(groups.r[R::spread], c);
      JAXGLMM_SYNC();
    }
    JAXGLMM_SYNC();
    const double *g = vectors, *r = g + kForm * p, *at = r + kForm * p, per = 1 / groups.form.mass;
    for (int64_t e = team.rank; e < p * p; e += team.size) {
      const int64_t a = e / p, b = e % p;
      if (a > b) continue;
      double total = 0, centre = 0;
      for (int k = 0; k < kForm; ++k) {
        double to = r[k * p + b];
        for (int j = 0; j < kForm; ++j) to += groups.form.entry[k][j] * g[j * p + b];
        total += g[k * p + a] * to + r[k * p + a] * g[k * p + b];
      }
      for (int64_t k = 0; k < spreads; ++k) centre += per * groups.nodes[k] * at[k * p + b];
      for (int64_t k = 0; k < spreads; ++k)
        total += at[k * p + a] * per * groups.nodes[k] * (at[k * p + b] - centre);
      sums.hessian()[e] += total;
    }
  }
};

// All groups: the first blocks of the grid share the short ones, the others the long ones.
template <class F, int S>
struct AddGroups {
  Pass p;

  JAXGLMM_HD void operator()(const Team& team, int64_t part) const {
    const Problem q = p.problem();
    const Sums sums = p.sums_of(part);
    for (int64_t e = team.rank; e < sums.size(); e += team.size) sums.at[e] = 0;
    JAXGLMM_SYNC();
    Totals<S> totals{};
    Place place = place_of(part, q);
    for (Tile tile; next(q, place, tile);) {
      GroupTile<F, S> groups(q, tile, team, place.work, sums);
      groups.run();
      const Totals<S>& more = groups.totals();
      totals.value += more.value;
      for (int x = 0; x < Totals<S>::kUnknowns; ++x)
        totals.first[x] += more.first[x], totals.pushed[x] += more.pushed[x];
      for (int x = 0; x < pairs_of(Totals<S>::kUnknowns); ++x) totals.second.at[x] += more.second.at[x];
    }
    if (place.fault) totals.value = kNaN;

    constexpr int u = Totals<S>::kUnknowns;
    const auto store = [&](double* to, double v) {
      const double total = team.total(v);
      if (team.rank == 0) *to = total;
    };
    store(&sums.value(), totals.value);
    for (int x = 0; x < u; ++x)
      store(sums.first() + x, totals.first[x]), store(sums.pushed() + x, totals.pushed[x]);
    for (int x = 0; x < pairs_of(u); ++x) store(sums.second() + x, totals.second.at[x]);
  }

  // Where a part is: at a lane of a block of short groups, or at a piece of the long ones.
  struct Place {
    bool joined;
    int64_t part, at, end, lane;
    double* work;
    bool fault;  // a size that does not fit, not to be told from here but by the answer
  };
  JAXGLMM_HD Place place_of(int64_t part, const Problem& q) const {
    const bool joined = part >= p.short_parts();
    if (joined) part -= p.short_parts();
    const int64_t parts = joined ? p.long_parts() : p.short_parts(), n = joined ? p.n_pieces : p.n_sizes;
    double* work = joined ? p.long_work : p.short_work + part * short_work(q);
    return {joined, part, begin_of(part, parts, n), begin_of(part + 1, parts, n), 0, work, false};
  }

  // The part's next tile, if there is one. Long groups belong to the part that has their first piece.
  JAXGLMM_HD bool next(const Problem& q, Place& place, Tile& tile) const {
    using Groups = GroupTile<F, S>;
    for (; !place.joined && place.at < place.end; ++place.at, place.lane = 0) {
      const int64_t size = p.sizes[place.at];
      if (!is_class_size(size, q.block) || size > kPiece) {
        place.fault = true;
        continue;
      }
      const int64_t across = q.block / size, lane = place.lane;
      if (lane >= across) continue;
      tile = {false, size, least(kThreads, across - lane), place.at * q.block + lane, across, 0};
      place.lane += kThreads;
      return true;
    }
    while (place.joined && place.at < place.end) {
      const int64_t first = place.at;
      while (++place.at < p.n_pieces && p.pieces[place.at] == p.pieces[first]) continue;
      if (first > 0 && p.pieces[first] == p.pieces[first - 1]) continue;
      place.work =
          p.long_work + first * Groups::lane_work(q, true, kPiece) + place.part * Groups::tile_work(q);
      tile = {true, kPiece, place.at - first, first, q.block / kPiece, p.n_sizes * q.block};
      return true;
    }
    return false;
  }

  // Doubles of work memory that one part needs for short groups, and all parts for long ones.
  static JAXGLMM_HD int64_t short_work(const Problem& q) {
    int64_t most = 0;
    for (int64_t size = 1; size <= kPiece; ++size) {
      const int64_t work = least(kThreads, q.block / size) * GroupTile<F, S>::lane_work(q, false, size);
      if (is_class_size(size, q.block) && work > most) most = work;
    }
    return most;
  }
  int64_t long_work() const {
    using Groups = GroupTile<F, S>;
    return p.n_pieces * Groups::lane_work(p.q, true, kPiece) + p.long_parts() * Groups::tile_work(p.q);
  }
};

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
