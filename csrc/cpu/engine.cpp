#include "core/engine.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/measure.h"
#include "cpu/memory.h"
#include "cpu/pipeline.h"
#include "cpu/threads.h"

namespace fusedopt {
namespace cpu {
namespace {

// What updates the operands where they lie, or null for what goes through blocks.
Kernel direct_kernel(const KernelTable& isa, const UpdateList& list, const Update& update) {
  if (!update.is_plain || list.prologue().grad_scale != nullptr) return nullptr;
  return isa.find_kernel(list.rule(), update.variant, update.formats);
}

void update_range(const KernelTable& isa, const UpdateList& list, const Update& update,
                  int64_t begin, int64_t end, BlockBuffer* buffers) {
  if (begin == end) return;
  const Kernel kernel = direct_kernel(isa, list, update);
  if (kernel == nullptr) return update_in_blocks(isa, list, update, begin, end, buffers);
  void* addresses[kMostOperands];
  const auto operands = list.operands(update);
  for (size_t k = 0; k < operands.size(); ++k) {
    const auto size = static_cast<int64_t>(size_of(operands[k].format));
    addresses[k] = static_cast<char*>(operands[k].data) + begin * size;
  }
  Draws draws;
  if (update.draws != Update::kNone) draws = list.draws(update)->from(begin);
  kernel(addresses, list.scalars(update), &draws, end - begin, nullptr);
}

// Part `part` of the updates of a round.
void update_part(const KernelTable& isa, const UpdateList& list, const Round& round, int part,
                 int parts, BlockBuffer* buffers) {
  const Cut begin = list.cut(round, part, parts);
  const Cut end = list.cut(round, part + 1, parts);
  for (size_t u = begin.update; u < round.first + round.count && u <= end.update; ++u) {
    const Update& update = list.updates()[u];
    update_range(isa, list, update, u == begin.update ? begin.element : 0,
                 u == end.update ? end.element : update.numel, buffers);
  }
}

struct Memory final : EngineMemory {
  const KernelTable* isa = nullptr;
  int max_parts = 1;
  size_t buffers_per_part = 0;  // if any update is done in blocks
  std::vector<BlockBuffer> buffers;
};

class CpuEngine final : public Engine {
 public:
  bool is_asynchronous() const override { return false; }

  void measure(SquareList& gradients, const Prologue& prologue, const Execution& execution,
               std::unique_ptr<EngineMemory>&, std::span<ExactSum> sums) override {
    sum_squares(selected_isa(), gradients, prologue.grad_scale, execution.max_threads, sums);
  }

  void prepare(const UpdateList& list, const Execution& execution,
               std::unique_ptr<EngineMemory>& engine_memory) override {
    if (engine_memory == nullptr) engine_memory = std::make_unique<Memory>();
    auto& memory = static_cast<Memory&>(*engine_memory);
    memory.isa = &selected_isa();
    int parts = 1;
    for (const Round& round : list.rounds()) {
      parts = std::max(parts, parts_of(round, execution.max_threads));
    }
    memory.max_parts = can_start_threads(parts) ? parts : 1;
    memory.buffers_per_part = 0;
    for (const Update& update : list.updates()) {
      if (direct_kernel(*memory.isa, list, update) != nullptr) continue;
      memory.buffers_per_part = std::max<size_t>(memory.buffers_per_part, update.operand_count);
      advise_on_new_states(list, update);
    }
    const size_t needed = static_cast<size_t>(memory.max_parts) * memory.buffers_per_part;
    if (memory.buffers.size() < needed) memory.buffers.resize(needed);
  }

  void run(const UpdateList& list, const Execution&, EngineMemory* engine_memory) override {
    auto& memory = static_cast<Memory&>(*engine_memory);
    for (const Round& round : list.rounds()) {
      const int parts = parts_of(round, memory.max_parts);
      run_parts(parts, [&](int part) noexcept {
        BlockBuffer* const buffers =
            memory.buffers.data() + static_cast<size_t>(part) * memory.buffers_per_part;
        update_part(*memory.isa, list, round, part, parts, buffers);
      });
    }
  }

 private:
  static int parts_of(const Round& round, int max_threads) {
    const int64_t worthwhile = round.numel / min_elements_per_thread();
    return static_cast<int>(std::clamp<int64_t>(worthwhile, 1, max_threads));
  }

  static void advise_on_new_states(const UpdateList& list, const Update& update) {
    for (const Operand& operand : list.operands(update)) {
      if (operand.is_read()) continue;
      advise_huge_pages(operand.data, static_cast<size_t>(update.numel) * size_of(operand.format));
    }
  }
};

}  // namespace
}  // namespace cpu

Engine& cpu_engine() {
  static cpu::CpuEngine engine;
  return engine;
}

}  // namespace fusedopt
