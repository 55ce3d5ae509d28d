#include "cuda/kernels.h"

#include "cuda/block.h"
#include "rules/registry.h"

namespace fusedopt::cuda {

template <class Rule, unsigned size>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerMultiprocessor)
    step_kernel(const __grid_constant__ Table<size> table) {
  if (Block<Rule, size>::is_skipped(table)) return;
  const Block<Rule, size> block(table, blockIdx.x);
  __shared__ Shared<Rule> shared;
  if (block.derives()) {
    if (threadIdx.x == 0) block.derive(shared);
    __syncthreads();
  }
  block.run(threadIdx.x, shared);
}

namespace {

template <unsigned size>
struct KernelOf {
  template <class Rule>
  const void* operator()() const {
    return reinterpret_cast<const void*>(&step_kernel<Rule, size>);
  }
};

}  // namespace

const void* kernel_of(unsigned rule, bool has_large_table) {
  static const auto small = AllRules::map(KernelOf<kSmallTable>{});
  static const auto large = AllRules::map(KernelOf<kLargeTable>{});
  return has_large_table ? large[rule] : small[rule];
}

}  // namespace fusedopt::cuda
