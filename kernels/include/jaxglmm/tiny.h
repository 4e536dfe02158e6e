// Symmetric and triangular matrices of S = 1, 2, 3, one a lane. Every loop has a fixed, small count.
#pragma once

#include "jaxglmm/vec.h"

namespace jaxglmm {
namespace JAXGLMM_TARGET {

// Number of pairs a <= b below S, and the place of one: row by row of the upper triangle, which is column by
// column of the lower one. The arguments may come in either order.
JAXGLMM_HD constexpr int pairs_of(int S) { return S * (S + 1) / 2; }
JAXGLMM_HD constexpr int pair_at(int S, int a, int b) {
  return a <= b ? a * S - a * (a - 1) / 2 + b - a : b * S - b * (b - 1) / 2 + a - b;
}

template <int S>
struct Vector {
  V at[S];
  JAXGLMM_INLINE V& operator[](int a) { return at[a]; }
  JAXGLMM_INLINE V operator[](int a) const { return at[a]; }
};

template <int S>
struct Symmetric {
  V at[pairs_of(S)];
  JAXGLMM_INLINE V& operator()(int a, int b) { return at[pair_at(S, a, b)]; }
  JAXGLMM_INLINE V operator()(int a, int b) const { return at[pair_at(S, a, b)]; }
};

template <int S>
struct Square {
  V at[S][S];
  JAXGLMM_INLINE V& operator()(int a, int b) { return at[a][b]; }
  JAXGLMM_INLINE V operator()(int a, int b) const { return at[a][b]; }
};

template <int S>
JAXGLMM_INLINE V dot(const Vector<S>& x, const Vector<S>& y) {
  V total{};
  for (int a = 0; a < S; ++a) total += x[a] * y[a];
  return total;
}

// A' x.
template <int S>
JAXGLMM_INLINE Vector<S> transposed_times(const Square<S>& A, const Vector<S>& x) {
  Vector<S> out{};
  for (int r = 0; r < S; ++r)
    for (int a = 0; a < S; ++a) out[a] += A(r, a) * x[r];
  return out;
}

template <int S>
JAXGLMM_INLINE Vector<S> times(const Square<S>& A, const Vector<S>& x) {
  Vector<S> out{};
  for (int r = 0; r < S; ++r)
    for (int a = 0; a < S; ++a) out[r] += A(r, a) * x[a];
  return out;
}

template <int S>
JAXGLMM_INLINE Vector<S> times(const Symmetric<S>& A, const Vector<S>& x) {
  Vector<S> out{};
  for (int r = 0; r < S; ++r)
    for (int a = 0; a < S; ++a) out[r] += A(r, a) * x[a];
  return out;
}

template <int S>
JAXGLMM_INLINE Square<S> times(const Symmetric<S>& A, const Square<S>& B) {
  Square<S> out{};
  for (int r = 0; r < S; ++r)
    for (int t = 0; t < S; ++t)
      for (int a = 0; a < S; ++a) out(r, a) += A(r, t) * B(t, a);
  return out;
}

// B' C where that is symmetric.
template <int S>
JAXGLMM_INLINE Symmetric<S> transposed_times(const Square<S>& B, const Square<S>& C) {
  Symmetric<S> out{};
  for (int a = 0; a < S; ++a)
    for (int b = a; b < S; ++b)
      for (int r = 0; r < S; ++r) out(a, b) += B(r, a) * C(r, b);
  return out;
}

// B' A B.
template <int S>
JAXGLMM_INLINE Symmetric<S> congruent(const Symmetric<S>& A, const Square<S>& B) {
  return transposed_times(B, times(A, B));
}

// Sum over all a, b of A_ab B_ab.
template <int S>
JAXGLMM_INLINE V inner(const Symmetric<S>& A, const Symmetric<S>& B) {
  V total{};
  for (int a = 0; a < S; ++a)
    for (int b = a; b < S; ++b) total += (a == b ? 1.0 : 2.0) * (A(a, b) * B(a, b));
  return total;
}

// x' A x.
template <int S>
JAXGLMM_INLINE V quadratic(const Symmetric<S>& A, const Vector<S>& x) {
  return dot(x, times(A, x));
}

// M = L^-T, upper triangular, where A = L L'. NaN where A is not positive definite.
template <int S>
JAXGLMM_INLINE Square<S> inverse_root(const Symmetric<S>& A) {
  Square<S> L{}, M{};
  for (int i = 0; i < S; ++i) {
    for (int j = 0; j <= i; ++j) {
      V rest = A(i, j);
      for (int k = 0; k < j; ++k) rest -= L(i, k) * L(j, k);
      L(i, j) = i == j ? root(rest) : rest * M(j, j);
    }
    M(i, i) = 1.0 / L(i, i);
    for (int j = 0; j < i; ++j) {
      V rest{};
      for (int k = j; k < i; ++k) rest += L(i, k) * M(j, k);
      M(j, i) = -M(i, i) * rest;
    }
  }
  return M;
}

}  // namespace JAXGLMM_TARGET
}  // namespace jaxglmm
