#include "cuda/kernels.h"

#include "cuda/block.h"
#include "rules/registry.h"

namespace fusedopt::cuda {

template <class Rule, unsigned size, bool has_mixed_formats>
__global__ void __launch_bounds__(kThreads, min_blocks_per_multiprocessor(has_mixed_formats))
    step_kernel(const __grid_constant__ Table<size> table) {
  using Block = Block<Rule, size, has_mixed_formats>;
  if (Block::is_skipped(table)) return;
  const Block block(table, blockIdx.x);
  __shared__ Shared<Rule> shared;
  if (block.derives()) {
    if (threadIdx.x == 0) block.derive(shared);
    __syncthreads();
  }
  block.run(threadIdx.x, shared);
}

namespace {

template <unsigned size, bool has_mixed_formats>
struct KernelOf {
  template <class Rule>
  const void* operator()() const {
    return reinterpret_cast<const void*>(&step_kernel<Rule, size, has_mixed_formats>);
  }
};

}  // namespace

const void* kernel_of(unsigned rule, KernelKind kind) {
  static const auto small = AllRules::map(KernelOf<kSmallTable, false>{});
  static const auto large = AllRules::map(KernelOf<kLargeTable, false>{});
  static const auto mixed = AllRules::map(KernelOf<kSmallTable, true>{});
  switch (kind) {
    case KernelKind::kSmall: return small[rule];
    case KernelKind::kLarge: return large[rule];
    default: return mixed[rule];
  }
}

}  // namespace fusedopt::cuda
