// The CUDA kernels' body, run over all blocks and threads on the CPU, as an engine for tensors
// there. It proves what does not need a GPU: cutting, the table in both of its storages, heads and
// tails, indices, who counts a step. Blocks run one after the other in an order that a test
// chooses.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>

#include "bindings/engines.h"
#include "core/ieee_environment.h"
#include "cuda/block.h"
#include "cuda/launch_plan.h"
#include "rules/registry.h"

namespace fusedopt {
namespace {

using namespace fusedopt::cuda;

struct Settings {
  bool overflows = false;  // even where the table would fit
  unsigned seed = 0;       // of the blocks' order; 0: ascending
  bool fails = false;      // as a launch may
  unsigned launches = 0, blocks = 0;
  LaunchPlan::Storage storage = LaunchPlan::Storage::kSmall;  // of the last launch
} settings;

template <class Rule, bool has_mixed_formats, unsigned size>
void run_blocks(const Table<size>& table, const std::vector<uint32_t>& order) {
  using Block = Block<Rule, size, has_mixed_formats>;
  if (Block::is_skipped(table)) return;
  for (uint32_t index : order) {
    const Block block(table, index);
    Shared<Rule> shared{};
    if (block.derives()) block.derive(shared);
    for (unsigned thread = 0; thread < kThreads; ++thread) block.run(thread, shared);
  }
}

std::vector<uint32_t> block_order(uint32_t blocks) {
  std::vector<uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  if (settings.seed != 0) std::shuffle(order.begin(), order.end(), std::mt19937(settings.seed));
  return order;
}

template <class Rule>
struct RunRule {
  template <unsigned size>
  static void run(const LaunchPlan& plan, const std::byte* overflow, uint32_t* arrivals) {
    static Table<size> table;
    plan.write(table, overflow, arrivals);
    const auto order = block_order(plan.blocks());
    if (!plan.has_mixed_formats()) return run_blocks<Rule, false>(table, order);
    if constexpr (size == kSmallTable) run_blocks<Rule, true>(table, order);
  }

  static void launch(const LaunchPlan& plan, uint32_t* arrivals) {
    using Storage = LaunchPlan::Storage;
    settings.storage = settings.overflows ? Storage::kOverflow : plan.storage();
    switch (settings.storage) {
      case Storage::kSmall: return run<kSmallTable>(plan, nullptr, arrivals);
      case Storage::kLarge: return run<kLargeTable>(plan, nullptr, arrivals);
      case Storage::kOverflow: return run<kSmallTable>(plan, plan.sections().data(), arrivals);
    }
  }
};

using LaunchRule = void (*)(const LaunchPlan&, uint32_t* arrivals);

struct LaunchOf {
  template <class Rule>
  LaunchRule operator()() const {
    return &RunRule<Rule>::launch;
  }
};

class EmulatedCuda final : public Engine {
 public:
  bool is_asynchronous() const override { return true; }

  void run(const UpdateList& list, const Execution&, EngineMemory*) override {
    if (settings.fails) throw std::runtime_error("the launch fails");
    for (const Round& round : list.rounds()) launch(list, round);
  }

 private:
  void launch(const UpdateList& list, const Round& round) {
    static const auto launches = AllRules::map(LaunchOf{});
    const IeeeEnvironment environment;
    plan_.build(list, round);
    if (plan_.blocks() == 0) return;
    settings.launches += 1;
    settings.blocks = plan_.blocks();
    launches[list.rule()](plan_, &arrivals_);
    if (arrivals_ != 0) throw std::logic_error("blocks that arrived were not counted out");
  }

  LaunchPlan plan_;
  uint32_t arrivals_ = 0;
};

}  // namespace

PYBIND11_MODULE(_emulated_cuda, m) {
  static EmulatedCuda engine;
  m.attr("engine") = py::capsule(static_cast<Engine*>(&engine), kEngineCapsule);
  m.attr("chunk_bytes") = chunk_elements(1) * kPackBytes;
  m.attr("threads") = kThreads;
  m.attr("small_table") = kSmallTable;
  m.attr("large_table") = kLargeTable;
  m.attr("rules") = AllRules::kCount;
  m.attr("min_blocks_per_multiprocessor") = min_blocks_per_multiprocessor(false);
  m.attr("min_blocks_of_mixed_formats") = min_blocks_per_multiprocessor(true);
  m.def("configure", [](bool overflows, unsigned seed, bool fails) {
    settings = {.overflows = overflows, .seed = seed, .fails = fails};
  });
  m.def("launches", [] { return settings.launches; });
  m.def("blocks", [] { return settings.blocks; });
  m.def("storage", [] {
    constexpr const char* names[] = {"small", "large", "overflow"};
    return names[static_cast<int>(settings.storage)];
  });
}

}  // namespace fusedopt
