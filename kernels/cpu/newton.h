// Trust-region Newton maximisation of one function of few parameters: the method of
// jaxglmm/optimise/batch_newton.py, with its rules and constants. Its hard case, a gradient without any part
// along the direction of growth, is left to that.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace jaxglmm {

// The order of REASONS in jaxglmm/optimise/batch_newton.py; kOpen: to be gone on with from here.
enum NewtonReason : int64_t { kConverged, kStalled, kLimit, kNotFinite, kStopped, kOpen, kRunning };

struct NewtonRules {
  int64_t m;
  const uint8_t*
      even;  // (m,) parameters of which the function is even: they step in the logarithm of their size
  double tol;
  int64_t iterations;  // evaluations after the first
  int64_t watched;     // a parameter that ends the search where its size is below `nothing`; -1: none
  double nothing;
};

// Where a function's results go; x is where it begins, too.
struct NewtonPlace {
  double *x, *value, *gradient, *hessian, *decrement, *move;
  int64_t *reason, *evaluations;
};

class Newton {
 public:
  explicit Newton(const NewtonRules& rules)
      : trial(rules.m),
        q(rules),
        g(rules.m),
        H(rules.m * rules.m),
        d(rules.m),
        L(rules.m * rules.m),
        step(rules.m),
        logged(rules.m) {}

  std::vector<double> trial;  // where to evaluate next

  // (Called anew for each function.)
  void begin(const NewtonPlace& at) {
    place = at, radius = INFINITY, *place.decrement = INFINITY, *place.evaluations = 0;
    std::copy_n(place.x, m(), trial.begin()), std::fill_n(place.move, m(), 0.0);
  }

  // Takes what was found at `trial`, and makes the next one. False where the search has ended. `kept`: it was
  // a step ahead.
  bool take(double value, const double* gradient, const double* hessian, bool* kept) {
    bool finite = std::isfinite(value);
    for (int64_t i = 0; i < m(); ++i) finite &= std::isfinite(gradient[i]);
    for (int64_t i = 0; i < m() * m(); ++i) finite &= std::isfinite(hessian[i]);
    *kept = finite;
    if ((*place.evaluations)++ == 0) {
      *place.value = finite ? value : -INFINITY;
      if (!finite) {
        copy(gradient, hessian);
        return end(kNotFinite);
      }
    } else {
      const double rounding = 1e-14 * (std::fabs(*place.value) + 1), gain = value - *place.value;
      const bool accepted = finite && gain >= kLeastGain * predicted - 8 * rounding;
      *kept = accepted;
      if (!accepted || gain < 0.25 * predicted - rounding)
        radius = kShrinks * length;
      else if (gain > 0.75 * predicted && length > 0.9 * radius)
        radius *= kGrows;
      if (!accepted && (predicted <= rounding || radius < 1e-14)) return end(kStalled);
    }
    if (*kept) *place.value = value, copy(gradient, hessian), std::copy(trial.begin(), trial.end(), place.x);
    return propose();
  }

 private:
  static constexpr double kLongestLogStep = 2, kShrinks = 0.25, kGrows = 2, kLeastGain = 1e-4;

  NewtonRules q;
  NewtonPlace place{};
  std::vector<double> g, H, d, L, step;
  std::vector<uint8_t> logged;
  double radius = INFINITY, predicted = 0, length = 0;

  int64_t m() const { return q.m; }
  bool end(NewtonReason reason) {
    *place.reason = reason;
    return false;
  }
  void copy(const double* gradient, const double* hessian) {
    std::copy_n(gradient, m(), place.gradient), std::copy_n(hessian, m() * m(), place.hessian);
  }

  // Gradient and Hessian in the logarithm of the logged parameters.
  void transform() {
    for (int64_t i = 0; i < m(); ++i) {
      const double x = place.x[i], slope = place.gradient[i], curvature = place.hessian[i * m() + i];
      // Where a step in the parameter itself leads to the inner half of its way to zero, it is not logged.
      const bool falls =
          x == 0 || (curvature < 0 && std::fabs(x - slope / curvature) < 0.5 * std::fabs(x) && slope * x < 0);
      logged[i] = q.even[i] && !falls;
      g[i] = (logged[i] ? x : 1.0) * slope;
    }
    for (int64_t i = 0; i < m(); ++i)
      for (int64_t j = 0; j < m(); ++j) {
        const double scale = (logged[i] ? place.x[i] : 1.0) * (logged[j] ? place.x[j] : 1.0);
        H[i * m() + j] = 0.5 * scale * (place.hessian[i * m() + j] + place.hessian[j * m() + i]);
      }
    for (int64_t i = 0; i < m(); ++i) H[i * m() + i] += logged[i] ? g[i] : 0.0;
  }

  // Scales the model g's + s'Hs/2 to unit diagonal.
  void scale() {
    double largest = 1e-180;
    for (int64_t i = 0; i < m(); ++i) largest = std::max(largest, std::fabs(H[i * m() + i]));
    for (int64_t i = 0; i < m(); ++i) {
      const double floor =
          logged[i] ? 0.1 * std::fabs(g[i]) + 1e-4 * largest : 1e-12 * g[i] * g[i] + 1e-20 * largest;
      d[i] = std::sqrt(std::max(std::fabs(H[i * m() + i]), floor));
    }
  }

  // step = (shift - H)^-1 g in the scaled coordinates, and its length. False where that matrix is not
  // positive definite.
  bool solve(double shift) {
    for (int64_t i = 0; i < m(); ++i)
      for (int64_t j = 0; j <= i; ++j) {
        double rest = -H[i * m() + j] / d[i] / d[j] + (i == j ? shift : 0.0);
        for (int64_t k = 0; k < j; ++k) rest -= L[i * m() + k] * L[j * m() + k];
        if (i != j)
          L[i * m() + j] = rest / L[j * m() + j];
        else if (rest > 1e-13)
          L[i * m() + i] = std::sqrt(rest);
        else
          return false;
      }
    for (int64_t i = 0; i < m(); ++i) {
      double rest = g[i] / d[i];
      for (int64_t k = 0; k < i; ++k) rest -= L[i * m() + k] * step[k];
      step[i] = rest / L[i * m() + i];
    }
    for (int64_t i = m(); i-- > 0;) {
      double rest = step[i];
      for (int64_t k = i + 1; k < m(); ++k) rest -= L[k * m() + i] * step[k];
      step[i] = rest / L[i * m() + i];
    }
    double square = 0;
    for (int64_t i = 0; i < m(); ++i) square += step[i] * step[i];
    length = std::sqrt(square);
    return true;
  }

  // The model's maximiser at the distance `radius`, by bisection of the shift (More & Sorensen 1983). False
  // in the hard case.
  bool solve_on_the_boundary() {
    double low = 0, high = 0, frobenius = 0, slope = 0;
    for (int64_t i = 0; i < m(); ++i) {
      slope += g[i] * g[i] / (d[i] * d[i]);
      for (int64_t j = 0; j < m(); ++j) {
        const double entry = H[i * m() + j] / d[i] / d[j];
        frobenius += entry * entry;
      }
    }
    slope = std::sqrt(slope);
    if (std::isinf(radius)) radius = std::max(slope, 1e-8);
    high = slope / radius + std::sqrt(frobenius);
    for (int k = 0; k < 60; ++k) {
      const double middle = 0.5 * (low + high);
      if (solve(middle) && length <= radius)
        high = middle;
      else
        low = middle;
    }
    return solve(high) && length > 0.99 * radius;
  }

  bool propose() {
    if (q.watched >= 0 && std::fabs(place.x[q.watched]) < q.nothing) return end(kStopped);
    transform(), scale();
    const bool definite = solve(0), limit = *place.evaluations > q.iterations;
    double decrement = definite ? 0 : INFINITY, longest = 0;
    for (int64_t i = 0; definite && i < m(); ++i) decrement += step[i] * g[i] / d[i];
    *place.decrement = decrement;
    if (decrement <= q.tol) return end(kConverged);
    if (limit) return end(kLimit);
    if (!(definite && length <= radius) && !solve_on_the_boundary()) return end(kOpen);
    for (int64_t i = 0; i < m(); ++i) {
      step[i] /= d[i];
      if (logged[i]) longest = std::max(longest, std::fabs(step[i]));
    }
    const double share = std::min(1.0, kLongestLogStep / std::max(longest, kLongestLogStep));
    length *= share, predicted = 0;
    for (int64_t i = 0; i < m(); ++i) step[i] *= share;
    for (int64_t i = 0; i < m(); ++i) {
      double row = 0;
      for (int64_t j = 0; j < m(); ++j) row += H[i * m() + j] * step[j];
      predicted += step[i] * (g[i] + 0.5 * row);
      trial[i] = logged[i] ? place.x[i] * std::exp(step[i]) : place.x[i] + step[i];
      place.move[i] = trial[i] - place.x[i];
    }
    return true;
  }
};

}  // namespace jaxglmm
