// Work on threads of its own, outside of XLA, and memory for each of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#define JAXGLMM_EXPORT extern "C" __attribute__((visibility("default")))

namespace jaxglmm {

// Calls body(k) for k = 0 ... count - 1, on as many threads as asked for.
template <typename Body>
void for_each(int64_t count, int64_t threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t k; (k = next.fetch_add(1)) < count;) body(k);
  };
  std::vector<std::thread> others;
  try {
    for (int64_t k = 1; k < std::min(threads, count); ++k) others.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads to be had: those that there are do the work
  }
  work();
  for (std::thread& other : others) other.join();
}

// Calls body(begin, end) for pieces of `rows` of so many.
template <typename Body>
void for_pieces(int64_t rows, int64_t piece, int64_t threads, const Body& body) {
  for_each((rows + piece - 1) / piece, threads,
           [&](int64_t k) { body(k * piece, std::min((k + 1) * piece, rows)); });
}

struct FreeAligned {
  void operator()(double* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
using Workspace = std::unique_ptr<double[], FreeAligned>;

// Numbers that begin at a multiple of 64 bytes; null where memory has run out.
inline Workspace workspace(int64_t numbers) {
  void* memory = ::operator new[](numbers * sizeof(double), std::align_val_t(64), std::nothrow);
  return Workspace(static_cast<double*>(memory));
}

}  // namespace jaxglmm
