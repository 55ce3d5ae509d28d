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
#include "cuda/launch_plan.h"
#include "kernels_on_host.h"
#include "rules/registry.h"

namespace fusedopt {
namespace {

using namespace fusedopt::cuda;

struct Settings {
  bool overflows = false;  // even where the table would fit
  unsigned seed = 0;       // of the blocks' order; 0: ascending
  bool fails = false;      // as a launch may
  int64_t first = 0;       // every update is a part of a larger tensor that begins there
  unsigned launches = 0, blocks = 0;
  LaunchPlan::Storage storage = LaunchPlan::Storage::kSmall;  // of the last launch
} settings;

std::vector<uint32_t> block_order(uint32_t blocks) {
  std::vector<uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  if (settings.seed != 0) std::shuffle(order.begin(), order.end(), std::mt19937(settings.seed));
  return order;
}

class EmulatedCuda final : public Engine {
 public:
  bool is_asynchronous() const override { return true; }

  void run(const UpdateList& list, const Execution&, EngineMemory*) override {
    if (settings.fails) throw std::runtime_error("the launch fails");
    for (const Update& update : list.updates()) {
      if (list.draws(update) != nullptr) begin_at(settings.first, *list.draws(update));
    }
    for (const Round& round : list.rounds()) launch(list, round);
  }

 private:
  void launch(const UpdateList& list, const Round& round) {
    using Storage = LaunchPlan::Storage;
    plan_.build(list, round);
    if (plan_.blocks() == 0) return;
    settings.launches += 1;
    settings.blocks = plan_.blocks();
    settings.storage = settings.overflows ? Storage::kOverflow : plan_.storage();
    const bool is_large = settings.storage == Storage::kLarge;
    const KernelKind kind = plan_.kernel(settings.storage);
    const void* const table = is_large ? write(large_) : write(small_);
    find_host_kernel(kernel_of(list.rule(), kind))->run(table, block_order(plan_.blocks()));
    if (arrivals_ != 0) throw std::logic_error("blocks that arrived were not counted out");
  }

  // Changes what is const to engines alone.
  static void begin_at(int64_t first, const Draws& draws) {
    const_cast<Draws&>(draws).first = first;
  }

  template <unsigned size>
  const void* write(Table<size>& table) {
    const bool overflows = settings.storage == LaunchPlan::Storage::kOverflow;
    plan_.write(table, overflows ? plan_.sections().data() : nullptr, &arrivals_);
    return &table;
  }

  LaunchPlan plan_;
  uint32_t arrivals_ = 0;
  Table<kSmallTable> small_;
  Table<kLargeTable> large_;
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
  // By KernelKind, as the names of the compiled kernels number it.
  m.attr("min_blocks_per_multiprocessor") = [] {
    py::dict blocks;
    for (const KernelKind kind : {KernelKind::kSmall, KernelKind::kLarge, KernelKind::kAnyFormats,
                                  KernelKind::kAnyFormatsInDouble}) {
      blocks[py::int_(static_cast<int>(kind))] = min_blocks_per_multiprocessor(kind);
    }
    return blocks;
  }();
  m.def("configure", [](bool overflows, unsigned seed, bool fails, int64_t first) {
    settings = {.overflows = overflows, .seed = seed, .fails = fails, .first = first};
  });
  m.def("launches", [] { return settings.launches; });
  m.def("blocks", [] { return settings.blocks; });
  m.def("storage", [] {
    constexpr const char* names[] = {"small", "large", "overflow"};
    return names[static_cast<int>(settings.storage)];
  });
}

}  // namespace fusedopt
