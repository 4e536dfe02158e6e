// The inner loops over columns, for one target: see pairs.h.
#include "pairs.h"

#include "jaxglmm/vec.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {
namespace {

constexpr int64_t kAhead = 12;  // entries whose x is asked for before it is needed
constexpr int kMost = 6;        // vectors of columns that are held at once

// Rows of x that an entry reads, asked for ahead: they lie anywhere.
inline void prefetch(const PairProduct& q, int64_t j, int64_t end) {
  if (j + kAhead >= end) return;
  const char* x = reinterpret_cast<const char*>(q.x + q.other[j + kAhead] * q.inner * q.columns);
  for (int64_t byte = 0; byte < q.inner * q.columns * 8; byte += 64) __builtin_prefetch(x + byte);
}

// Columns c and the next ones, `Vectors` vectors held in registers, of row s of one level.
template <int Vectors>
void add_entries(const PairProduct& q, int64_t level, int64_t s, int64_t c, double* out) {
  V held[Vectors] = {};
  const int64_t size = q.rows * q.inner, by_row = q.transposed ? 1 : q.inner,
                step = q.transposed ? q.rows : 1;
  const int64_t all = q.start[q.levels];
  for (int64_t j = q.start[level]; j < q.start[level + 1]; ++j) {
    prefetch(q, j, all);
    const double* a = q.values + (q.place ? q.place[j] : j) * size + s * by_row;
    const double* x = q.x + q.other[j] * q.inner * q.columns + c;
    for (int64_t r = 0; r < q.inner; ++r, x += q.columns)
      for (int v = 0; v < Vectors; ++v) held[v] += a[r * step] * load(x + v * kLanes);
  }
  for (int v = 0; v < Vectors; ++v) store(out + v * kLanes, held[v]);
}

double add_column(const PairProduct& q, int64_t level, int64_t s, int64_t c) {
  double total = 0;
  const int64_t size = q.rows * q.inner, by_row = q.transposed ? 1 : q.inner,
                step = q.transposed ? q.rows : 1;
  const int64_t all = q.start[q.levels];
  for (int64_t j = q.start[level]; j < q.start[level + 1]; ++j) {
    prefetch(q, j, all);
    const double* a = q.values + (q.place ? q.place[j] : j) * size + s * by_row;
    const double* x = q.x + q.other[j] * q.inner * q.columns + c;
    for (int64_t r = 0; r < q.inner; ++r) total += a[r * step] * x[r * q.columns];
  }
  return total;
}

template <int Vectors = kMost>
int64_t add_most(const PairProduct& q, int64_t level, int64_t s, int64_t c, int64_t vectors, double* out) {
  if (vectors >= Vectors) {
    add_entries<Vectors>(q, level, s, c, out);
    return Vectors;
  }
  if constexpr (Vectors > 1) return add_most<Vectors - 1>(q, level, s, c, vectors, out);
  return 0;
}

}  // namespace

void run(const PairProduct& q, int64_t first, int64_t last) {
  for (int64_t level = first; level < last; ++level)
    for (int64_t s = 0; s < q.rows; ++s) {
      double* out = q.out + (level * q.rows + s) * q.columns;
      int64_t c = 0;
      for (int64_t left; (left = (q.columns - c) / kLanes) > 0;)
        c += kLanes * add_most(q, level, s, c, left, out + c);
      for (; c < q.columns; ++c) out[c] = add_column(q, level, s, c);
    }
}

void run(const PairOuter& q, int64_t first, int64_t last) {
  const int64_t whole = q.columns / kLanes * kLanes;
  for (int64_t level = first; level < last; ++level)
    for (int64_t j = q.start[level]; j < q.start[level + 1]; ++j) {
      if (j + kAhead < q.start[q.levels]) {
        const char* b = reinterpret_cast<const char*>(q.b + q.other[j + kAhead] * q.inner * q.columns);
        for (int64_t byte = 0; byte < q.inner * q.columns * 8; byte += 64) __builtin_prefetch(b + byte);
      }
      double* out = q.out + j * q.rows * q.inner;
      for (int64_t s = 0; s < q.rows; ++s)
        for (int64_t r = 0; r < q.inner; ++r) {
          const double* a = q.a + (level * q.rows + s) * q.columns;
          const double* b = q.b + (q.other[j] * q.inner + r) * q.columns;
          V held{};
          for (int64_t c = 0; c < whole; c += kLanes) held += load(a + c) * load(b + c);
          double total = sum(held);
          for (int64_t c = whole; c < q.columns; ++c) total += a[c] * b[c];
          out[s * q.inner + r] = total;
        }
    }
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
