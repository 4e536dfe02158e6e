// The rows of many strata: sorted by stratum and group, and gathered to be fitted. See
// jaxglmm/ops/stratum_rows.py.
#include "strata.h"

#include <cmath>

#include "host.h"

namespace jaxglmm {
namespace {

constexpr int64_t kStrata = 16;  // that a thread takes at once
constexpr double kConstant = 1e-7;

// Calls body(stratum) for strata begin .. end in pieces; each piece has a `Scratch` of its own.
template <typename Scratch, typename Body>
void for_strata(int64_t strata, int64_t threads, const Body& body) {
  for_pieces(strata, kStrata, threads, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t b = begin; b < end; ++b) body(b, scratch);
  });
}

// The groups of one stratum, found by hashing.
struct Grouper {
  struct Group {
    int32_t code, rows, place;
  };
  std::vector<Group> groups;
  std::vector<int32_t> table, of_row;
  std::vector<int64_t> at;

  // `order` gets the rows sorted by group, the largest group first; `size` the groups' rows. How many groups
  // there are.
  int64_t sort(const int64_t* rows, int64_t n, const int32_t* code, int64_t* order, int32_t* size) {
    int64_t capacity = 8;
    while (capacity < 2 * n) capacity *= 2;
    table.assign(capacity, -1), of_row.resize(n), groups.clear();
    for (int64_t i = 0; i < n; ++i) {
      const int32_t own = code[rows[i]];
      uint64_t h = (static_cast<uint64_t>(own) * 0x9e3779b97f4a7c15 >> 32) & (capacity - 1);
      while (table[h] >= 0 && groups[table[h]].code != own) h = (h + 1) & (capacity - 1);
      if (table[h] < 0) {
        const int32_t number = static_cast<int32_t>(groups.size());
        table[h] = number, groups.push_back({own, 0, number});
      }
      of_row[i] = table[h], ++groups[table[h]].rows;
    }
    std::sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
      return a.rows != b.rows ? a.rows > b.rows : a.code < b.code;
    });
    const int64_t count = groups.size();
    at.resize(count);
    for (int64_t g = 0, begin = 0; g < count; begin += groups[g++].rows) {
      at[groups[g].place] = begin;
      size[g] = groups[g].rows;
    }
    for (int64_t i = 0; i < n; ++i) order[at[of_row[i]]++] = rows[i];
    return count;
  }
};

struct Measured {
  std::vector<double> mean, gram, L;
};

// Centre and scale of the columns: of the rows' weighted distribution, but 0 and the constant itself of an
// intercept.
void measure_scaling(const StratumRows& q, int64_t b, const double* X, const double* weight, int64_t n) {
  const int64_t p = q.columns;
  double *center = q.center + b * p, *scale = q.scale + b * p, total = 0;
  std::fill_n(center, p, 0.0), std::fill_n(scale, p, 0.0);
  for (int64_t i = 0; i < n; ++i) {
    const double w = weight ? weight[i] : 1.0;
    total += w;
    for (int64_t c = 0; c < p; ++c) center[c] += w * X[i * p + c];
  }
  for (int64_t c = 0; c < p; ++c) center[c] /= total;
  for (int64_t i = 0; i < n; ++i) {
    const double w = weight ? weight[i] : 1.0;
    for (int64_t c = 0; c < p; ++c) {
      const double away = X[i * p + c] - center[c];
      scale[c] += w * away * away;
    }
  }
  for (int64_t c = 0; c < p; ++c) {
    scale[c] = std::sqrt(scale[c] / total);
    if (q.intercept < 0) {
      scale[c] = std::sqrt(scale[c] * scale[c] + center[c] * center[c]), center[c] = 0;
    } else if (c == q.intercept) {
      scale[c] = center[c], center[c] = 0;
    }
    if (scale[c] == 0) scale[c] = 1;
  }
}

// Whether columns may be zero, constant or combinations of others: what is left of the correlation matrix of
// columns when it is factorised, and how a column's spread compares with its mean.
bool suspect_columns(const StratumRows& q, const double* X, int64_t n, double least, Measured& m) {
  const int64_t p = q.columns;
  m.mean.assign(p, 0.0), m.gram.assign(p * p, 0.0), m.L.assign(p * p, 0.0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < p; ++c) m.mean[c] += X[i * p + c];
  for (int64_t c = 0; c < p; ++c) m.mean[c] = c == q.intercept ? 0.0 : m.mean[c] / n;
  std::vector<double>& row = m.L;  // its first p numbers, before it is needed
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < p; ++c) row[c] = X[i * p + c] - (q.intercept < 0 ? 0.0 : m.mean[c]);
    for (int64_t c = 0; c < p; ++c)
      for (int64_t d = 0; d <= c; ++d) m.gram[c * p + d] += row[c] * row[d];
  }
  for (int64_t c = 0; c < p; ++c) {
    const double size = std::sqrt(m.gram[c * p + c]);
    if (m.mean[c] != 0 && size < kConstant * std::sqrt(static_cast<double>(n)) * std::fabs(m.mean[c]))
      return true;
  }
  std::fill(m.L.begin(), m.L.end(), 0.0);
  for (int64_t c = 0; c < p; ++c)
    for (int64_t d = 0; d <= c; ++d) {
      double rest = m.gram[c * p + d] / std::sqrt(m.gram[c * p + c] * m.gram[d * p + d]);
      for (int64_t k = 0; k < d; ++k) rest -= m.L[c * p + k] * m.L[d * p + k];
      if (c != d)
        m.L[c * p + d] = rest / m.L[d * p + d];
      else if (rest > least)  // not so for what is not a number
        m.L[c * p + c] = std::sqrt(rest);
      else
        return true;
    }
  return false;
}

void read_stratum(const StratumRows& q, const std::vector<HostColumn>& columns, int64_t b, double least,
                  Measured& measured) {
  const int64_t begin = q.begin[b], n = q.begin[b + 1] - begin, p = q.columns, S = q.effects;
  const int64_t* rows = q.order + begin;
  double *y = q.y_out + begin, *X = q.x_out + begin * p, low = 0, high = 0;
  double *weight = q.weight ? q.weight_out + begin : nullptr,
         *offset = q.offset ? q.offset_out + begin : nullptr;
  bool weightless = false;
  for (int64_t i = 0; i < n; ++i) {
    y[i] = q.y[rows[i]];
    low = i ? std::min(low, y[i]) : y[i], high = i ? std::max(high, y[i]) : y[i];
    if (weight) weight[i] = q.weight[rows[i]], weightless |= !(weight[i] > 0);
    if (offset) offset[i] = q.offset[rows[i]];
  }
  for (int64_t c = 0; c < p; ++c)
    with_type(columns[c].type, [&](auto zero) {
      using T = decltype(zero);
      const char* at = columns[c].at;
      const int64_t stride = columns[c].stride;
      for (int64_t i = 0; i < n; ++i) X[i * p + c] = static_cast<double>(value<T>(at + rows[i] * stride));
    });
  for (int64_t a = 0; a < S; ++a) {
    double square = 0;
    if (q.z)
      for (int64_t i = 0; i < n; ++i) {
        const double z = q.z[a * q.all_rows + rows[i]];
        q.z_out[a * q.rows + begin + i] = z, square += z * z;
      }
    q.z_scale[b * S + a] = square > 0 ? std::sqrt(square / n) : 1.0;
  }
  q.suspect[b] = n == 0 || n < p || low == high || weightless || suspect_columns(q, X, n, least, measured);
  if (n == 0) {
    std::fill_n(q.center + b * p, p, 0.0), std::fill_n(q.scale + b * p, p, 1.0);
    return;
  }
  measure_scaling(q, b, X, weight, n);
  const double *center = q.center + b * p, *scale = q.scale + b * p;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < p; ++c) X[i * p + c] = (X[i * p + c] - center[c]) / scale[c];
}

}  // namespace
}  // namespace jaxglmm

// order (rows,): the rows stratum by stratum, in each group by group, the largest first (of the same size: by
// code). size (rows,): from where a stratum begins on, its groups' numbers of rows; zero behind them. groups
// (strata,). Returns 1 where begin (strata + 1,) does not have each stratum's rows, else 0.
JAXGLMM_EXPORT int32_t jaxglmm_segments(int64_t rows, const int64_t* stratum, const int32_t* code,
                                        int64_t strata, const int64_t* begin, int64_t* order, int32_t* size,
                                        int64_t* groups, int64_t threads) {
  using namespace jaxglmm;
  if (!rises(begin, strata, rows) || begin[strata] != rows || !within(stratum, rows, strata)) return 1;
  std::vector<int64_t> sorted(rows), next(begin, begin + strata);
  for (int64_t i = 0; i < rows; ++i) {
    if (next[stratum[i]] == begin[stratum[i] + 1]) return 1;
    sorted[next[stratum[i]]++] = i;
  }
  for_strata<Grouper>(strata, threads, [&](int64_t b, Grouper& grouper) {
    const int64_t n = begin[b + 1] - begin[b];
    groups[b] = grouper.sort(sorted.data() + begin[b], n, code, order + begin[b], size + begin[b]);
    std::fill(size + begin[b] + groups[b], size + begin[b] + n, 0);
  });
  return 0;
}

// Returns 1 where strata do not begin one after the other, or a row is none, else 0.
JAXGLMM_EXPORT int32_t jaxglmm_stratum_rows(const jaxglmm::StratumRows* q, double least, int64_t threads) {
  using namespace jaxglmm;
  if (!rises(q->begin, q->strata, q->rows) || !within(q->order, q->rows, q->all_rows)) return 1;
  const auto columns = columns_of(q->columns, q->column, q->stride, q->type);
  for_strata<Measured>(q->strata, threads,
                       [&](int64_t b, Measured& measured) { read_stratum(*q, columns, b, least, measured); });
  return 0;
}
