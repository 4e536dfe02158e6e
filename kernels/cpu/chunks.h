// Work in a fixed number of chunks, shared by XLA's threads and the calling one.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace jaxglmm {

// The cut depends on the data alone, never on the number of threads: a kernel that keeps one accumulator a
// chunk and adds them in order gives the same bits on every machine.
constexpr int64_t kChunks = 64;

// Calls body(chunk, first, last) for every non-empty chunk of `items` and returns when all are done.
//
// The calling thread works too and waits only for chunks that another thread is already working on, so a pool
// that is busy, even with us, cannot deadlock. A task that the pool starts late finds nothing to do and
// touches only `state`, which it keeps alive. `body` must not throw.
template <typename Body>
void for_each_chunk(xla::ffi::ThreadPool& pool, int64_t items, bool worth_threads, const Body& body) {
  const int64_t chunks = std::min(items, kChunks);
  auto run = [items, chunks, &body](int64_t chunk) {
    body(chunk, chunk * items / chunks, (chunk + 1) * items / chunks);
  };
  const int64_t threads = worth_threads ? std::min(pool.num_threads(), chunks) : 1;
  if (threads <= 1) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) run(chunk);
    return;
  }

  struct State {
    std::atomic<int64_t> next{0};
    int64_t left;  // guarded by `mutex`
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto state = std::make_shared<State>();
  state->left = chunks;
  auto work = [state, run, chunks] {
    int64_t mine = 0;
    for (int64_t chunk; (chunk = state->next.fetch_add(1)) < chunks; ++mine) run(chunk);
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(state->mutex);
    if ((state->left -= mine) == 0) state->finished.notify_all();
  };
  for (int64_t thread = 1; thread < threads; ++thread) pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->left == 0; });
}

}  // namespace jaxglmm
