// The GPU's passes on the host: the bodies of kernels/cuda in a loop over blocks, the threads of each taking
// turns where they wait for each other. Most machines that build this have no GPU; tests/test_host_grid.py
// compiles it.
#define JAXGLMM_HOST_GRID 1
#include <ucontext.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

namespace jaxglmm {
namespace host_grid {
void sync();
}
}  // namespace jaxglmm

#include "run.h"

namespace jaxglmm {
namespace host_grid {

// Threads of one block as coroutines: one runs until it waits, then the next. All wait equally often, or none
// goes on.
constexpr size_t kStack = 1 << 18;
ucontext_t scheduler;
std::vector<ucontext_t> threads;
size_t running;
bool finished;
std::function<void(size_t)> body;

void sync() { swapcontext(&threads[running], &scheduler); }

void enter() {
  body(running);
  finished = true;
  swapcontext(&threads[running], &scheduler);
}

void run_block(size_t count) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() < count) stacks.emplace_back(new char[kStack]);
  threads.resize(count);
  for (size_t t = 0; t < count; ++t) {
    getcontext(&threads[t]);
    threads[t].uc_stack.ss_sp = stacks[t].get(), threads[t].uc_stack.ss_size = kStack;
    makecontext(&threads[t], enter, 0);
  }
  for (size_t done = 0; done < count;) {
    done = 0;
    for (running = 0; running < count; ++running) {
      finished = false;
      swapcontext(&scheduler, &threads[running]);
      done += finished;
    }
    if (done && done < count) std::abort();  // threads that wait for one that has left: a GPU would hang
  }
}

struct Grid {
  template <class Body>
  void launch(int64_t blocks, const Body& launched) {
    double shared[device::kThreads];
    for (int64_t block = 0; block < blocks; ++block) {
      body = [&](size_t t) {
        launched(device::Team{static_cast<int64_t>(t), device::kThreads, shared}, block);
      };
      run_block(device::kThreads);
    }
  }
};

template <class F, int S>
void evaluate(device::Pass& p) {
  std::vector<double> scratch(device::place<S>(p, nullptr),
                              device::kNaN);  // nothing may be read before it is written
  device::place<S>(p, scratch.data());
  Grid grid;
  device::run_family<Grid, F, S>(grid, p);
}

}  // namespace host_grid
}  // namespace jaxglmm

using namespace jaxglmm;
using host_grid::evaluate;

// Families that differ in what they have, to keep compiling short. As the handler fused_pass where X is
// given, else as group_modes, or with t_eta as group_push; float32 where `narrow`.
extern "C" void host_pass(int narrow, int64_t slots, int64_t columns, int64_t effects, int64_t stride,
                          int64_t block, int64_t family, int64_t determinant, int64_t second, const void* X,
                          const void* y, const void* weight, const void* offset, const void* z,
                          const void* start, const int32_t* sizes, int64_t n_sizes, const int32_t* pieces,
                          int64_t n_pieces, const void* psi, const void* points, const void* log_weights,
                          const int32_t* count, const void* t_eta, const void* t_unknowns, void* value,
                          void* gradient, void* hessian, void* modes, void* d_eta, void* curvature,
                          void* pushed, void* pushed_unknowns) {
  const auto in = [&](const void* at) { return Column{at, narrow != 0}; };
  const auto out = [&](void* at) { return MutableColumn{at, narrow != 0}; };
  device::Pass p = {};
  p.q.X = in(X), p.q.y = in(y), p.q.weight = in(weight), p.q.offset = in(offset), p.q.z = in(z),
  p.q.start = in(start);
  p.q.slots = slots, p.q.columns = columns, p.q.effects = effects, p.q.stride = stride, p.q.block = block;
  p.q.family = static_cast<Family>(family), p.q.determinant = determinant, p.q.second = second;
  p.q.modes = out(modes), p.q.d_eta = out(d_eta), p.q.curvature = out(curvature), p.q.pushed = out(pushed);
  p.q.t_eta = in(t_eta);
  p.psi = in(psi), p.points = in(points), p.log_weights = in(log_weights), p.t_unknowns = in(t_unknowns);
  p.sizes = sizes, p.n_sizes = n_sizes, p.pieces = pieces, p.n_pieces = n_pieces, p.count = count;
  p.value = out(value), p.gradient = out(gradient), p.hessian = out(hessian),
  p.pushed_unknowns = out(pushed_unknowns);
  if (effects == 1 && p.q.family == Family::logit) return evaluate<device::Logit, 1>(p);
  if (effects == 1 && p.q.family == Family::gamma) return evaluate<device::Gamma, 1>(p);
  if (effects == 2 && p.q.family == Family::negativebinomial) return evaluate<device::NegativeBinomial, 2>(p);
  if (effects == 3 && p.q.family == Family::probit) return evaluate<device::Probit, 3>(p);
  std::abort();
}

extern "C" void host_group_total(int64_t blocks, int64_t slots, const double* v, const int32_t* sizes,
                                 double* out) {
  host_grid::Grid().launch(blocks, device::GroupTotal<double>{v, sizes, out, slots});
}
