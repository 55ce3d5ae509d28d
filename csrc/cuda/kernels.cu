#include "cuda/kernels.h"

#include "cuda/block.h"
#include "rules/registry.h"

namespace fusedopt::cuda {

template <class Rule, KernelKind kind>
__global__ void __launch_bounds__(kThreads, min_blocks_per_multiprocessor(kind))
    step_kernel(const __grid_constant__ Table<table_size(kind)> table) {
  using Block = Block<Rule, kind>;
  if (Block::is_skipped(table)) return;
  const Block block(table, blockIdx.x);
  __shared__ typename Block::Shared shared;
  if (block.prepares()) {
    block.prepare(threadIdx.x, shared);
    __syncthreads();
  }
  block.run(threadIdx.x, shared);
}

namespace {

template <KernelKind kind>
struct KernelOf {
  template <class Rule>
  const void* operator()() const {
    return reinterpret_cast<const void*>(&step_kernel<Rule, kind>);
  }
};

}  // namespace

const void* kernel_of(unsigned rule, KernelKind kind) {
  static const auto small = AllRules::map(KernelOf<KernelKind::kSmall>{});
  static const auto large = AllRules::map(KernelOf<KernelKind::kLarge>{});
  static const auto any = AllRules::map(KernelOf<KernelKind::kAnyFormats>{});
  static const auto in_double = AllRules::map(KernelOf<KernelKind::kAnyFormatsInDouble>{});
  switch (kind) {
    case KernelKind::kSmall: return small[rule];
    case KernelKind::kLarge: return large[rule];
    case KernelKind::kAnyFormats: return any[rule];
    default: return in_double[rule];
  }
}

}  // namespace fusedopt::cuda
