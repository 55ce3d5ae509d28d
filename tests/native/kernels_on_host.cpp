#include "kernels_on_host.h"

#include "core/ieee_environment.h"
#include "cuda/block.h"
#include "rules/registry.h"

namespace fusedopt {
namespace {

using namespace cuda;

template <class Rule, unsigned size, bool has_mixed_formats>
void run_blocks(const void* parameter, std::span<const uint32_t> blocks) {
  using Block = Block<Rule, size, has_mixed_formats>;
  const IeeeEnvironment environment;
  const auto& table = *static_cast<const Table<size>*>(parameter);
  if (Block::is_skipped(table)) return;
  for (uint32_t index : blocks) {
    const Block block(table, index);
    Shared<Rule> shared{};
    if (block.derives()) block.derive(shared);
    for (unsigned thread = 0; thread < kThreads; ++thread) block.run(thread, shared);
  }
}

template <unsigned size, bool has_mixed_formats>
struct HostKernelOf {
  KernelKind kind;

  template <class Rule>
  HostKernel operator()() const {
    return {Rule::kName, kind, sizeof(Table<size>), &run_blocks<Rule, size, has_mixed_formats>};
  }
};

using KernelsByRule = std::array<HostKernel, AllRules::kCount>;

// By KernelKind.
const std::array<KernelsByRule, 3>& all_kernels() {
  static const std::array kernels = {
      AllRules::map(HostKernelOf<kSmallTable, false>{KernelKind::kSmall}),
      AllRules::map(HostKernelOf<kLargeTable, false>{KernelKind::kLarge}),
      AllRules::map(HostKernelOf<kSmallTable, true>{KernelKind::kMixedFormats})};
  return kernels;
}

}  // namespace

const void* cuda::kernel_of(unsigned rule, KernelKind kind) {
  return &all_kernels()[static_cast<size_t>(kind)][rule];
}

const HostKernel* find_host_kernel(const void* address) {
  for (const KernelsByRule& kernels : all_kernels()) {
    for (const HostKernel& kernel : kernels) {
      if (&kernel == address) return &kernel;
    }
  }
  return nullptr;
}

}  // namespace fusedopt
