#include "kernels_on_host.h"

#include "core/ieee_environment.h"
#include "cuda/block.h"
#include "rules/registry.h"

namespace fusedopt {
namespace {

using namespace cuda;

template <class Rule, KernelKind kind>
void run_blocks(const void* parameter, std::span<const uint32_t> blocks) {
  using Block = Block<Rule, kind>;
  const IeeeEnvironment environment;
  const auto& table = *static_cast<const Table<table_size(kind)>*>(parameter);
  if (Block::is_skipped(table)) return;
  for (uint32_t index : blocks) {
    const Block block(table, index);
    typename Block::Shared shared{};
    for (unsigned thread = 0; thread < kThreads; ++thread) block.prepare(thread, shared);
    for (unsigned thread = 0; thread < kThreads; ++thread) block.run(thread, shared);
  }
}

template <KernelKind kind>
struct HostKernelOf {
  template <class Rule>
  HostKernel operator()() const {
    constexpr const char* names[] = {"small", "large", "any", "double"};
    return {Rule::kName, names[static_cast<int>(kind)], sizeof(Table<table_size(kind)>), kThreads,
            &run_blocks<Rule, kind>};
  }
};

using KernelsByRule = std::array<HostKernel, AllRules::kCount>;

// By KernelKind.
const std::array<KernelsByRule, 4>& all_kernels() {
  static const std::array kernels = {
      AllRules::map(HostKernelOf<KernelKind::kSmall>{}),
      AllRules::map(HostKernelOf<KernelKind::kLarge>{}),
      AllRules::map(HostKernelOf<KernelKind::kAnyFormats>{}),
      AllRules::map(HostKernelOf<KernelKind::kAnyFormatsInDouble>{})};
  return kernels;
}

}  // namespace

const void* cuda::kernel_of(unsigned rule, KernelKind kind) {
  return &all_kernels()[static_cast<size_t>(kind)][rule];
}

const HostKernel* find_host_kernel(const void* address) {
  for (const HostKernel& kernel : square_kernels()) {
    if (&kernel == address) return &kernel;
  }
  for (const KernelsByRule& kernels : all_kernels()) {
    for (const HostKernel& kernel : kernels) {
      if (&kernel == address) return &kernel;
    }
  }
  return nullptr;
}

}  // namespace fusedopt
