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
#include "cuda/square_plan.h"
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
  Storage storage = Storage::kSmall;  // of the last launch
  unsigned measured = 0;              // launches that measure
  Storage storage_of_squares = Storage::kSmall;
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

  void decide(SquareList& list, const Prologue& prologue, const Execution&,
              std::unique_ptr<EngineMemory>&, const ClipOptions& options) override {
    launch_squares(list, prologue, options, sum_.numbers().data());
    if (arrivals_ != 0 || sum_.numbers() != ExactSum{}.numbers()) {
      throw std::logic_error("what blocks have added up was not cleared");
    }
  }

  void measure(SquareList& list, const Prologue& prologue, const Execution&,
               std::unique_ptr<EngineMemory>&, std::span<ExactSum> sums) override {
    launch_squares(list, {.grad_scale = prologue.grad_scale}, {}, sums.front().numbers().data());
  }

  void run(const UpdateList& list, const Execution&, EngineMemory*) override {
    if (settings.fails) throw std::runtime_error("the launch fails");
    for (const Update& update : list.updates()) {
      if (list.draws(update) != nullptr) begin_at(settings.first, *list.draws(update));
    }
    for (const Round& round : list.rounds()) launch(list, round);
  }

 private:
  void launch(const UpdateList& list, const Round& round) {
    plan_.build(list, round);
    if (plan_.blocks() == 0) return;
    settings.launches += 1;
    settings.blocks = plan_.blocks();
    settings.storage = settings.overflows ? Storage::kOverflow : plan_.storage();
    const void* const kernel = kernel_of(list.rule(), plan_.kernel(settings.storage));
    launch(kernel, plan_, settings.storage);
    if (arrivals_ != 0) throw std::logic_error("blocks that arrived were not counted out");
  }

  void launch_squares(const SquareList& list, const Prologue& prologue, const ClipOptions& options,
                      int64_t* sums) {
    if (settings.fails) throw std::runtime_error("the launch fails");
    squares_.build(list, prologue, options);
    squares_.set_sums(sums);
    settings.measured += 1;
    const Storage storage = settings.overflows ? Storage::kOverflow : squares_.storage();
    settings.storage_of_squares = storage;
    launch(square_kernel_of(storage == Storage::kLarge), squares_, storage);
  }

  // Changes what is const to engines alone.
  static void begin_at(int64_t first, const Draws& draws) {
    const_cast<Draws&>(draws).first = first;
  }

  template <class Header>
  void launch(const void* kernel, const TablePlan<Header>& plan, Storage storage) {
    const std::byte* const overflow =
        storage == Storage::kOverflow ? plan.sections().data() : nullptr;
    Table<kSmallTable, Header> small;
    Table<kLargeTable, Header> large;
    const bool is_large = storage == Storage::kLarge;
    if (is_large) {
      plan.write(large, overflow, &arrivals_);
    } else {
      plan.write(small, overflow, &arrivals_);
    }
    const void* const table = is_large ? static_cast<const void*>(&large) : &small;
    find_host_kernel(kernel)->run(table, block_order(plan.blocks()));
  }

  LaunchPlan plan_;
  SquarePlan squares_;
  uint32_t arrivals_ = 0;
  ExactSum sum_{};
};

}  // namespace

PYBIND11_MODULE(_emulated_cuda, m) {
  static EmulatedCuda engine;
  m.attr("engine") = py::capsule(static_cast<Engine*>(&engine), kEngineCapsule);
  m.attr("chunk_bytes") = chunk_elements(1) * kPackBytes;
  m.attr("threads") = kThreads;
  m.attr("square_threads") = kSquareThreads;
  m.attr("square_blocks") = kSquareBlocksPerMultiprocessor;
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
  m.def("measured", [] { return settings.measured; });
  static constexpr const char* names[] = {"small", "large", "overflow"};
  m.def("storage", [] { return names[static_cast<int>(settings.storage)]; });
  m.def("storage_of_squares", [] { return names[static_cast<int>(settings.storage_of_squares)]; });
}

}  // namespace fusedopt
