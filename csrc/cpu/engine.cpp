#include "core/engine.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/staging.h"
#include "cpu/threads.h"

namespace fusedopt {
namespace cpu {
namespace {

bool is_staged(const UpdateList& list, const Update& update) {
  return !update.direct || list.amp().grad_scale != nullptr;
}

void update_range(const KernelTable& isa, const UpdateList& list, const Update& update,
                  int64_t begin, int64_t end, BlockBuffers* buffers) {
  if (begin == end) return;
  const Kernel kernel = isa.kernels[list.rule()][2 * update.variant + update.in_double];
  if (is_staged(list, update)) {
    return update_staged(isa, kernel, list, update, begin, end, *buffers);
  }
  const auto size = static_cast<int64_t>(update.in_double ? sizeof(double) : sizeof(float));
  std::array<void*, kMaxOperands> operands = update.data;
  for (void*& operand : operands) {
    if (operand != nullptr) operand = static_cast<char*>(operand) + begin * size;
  }
  kernel(operands.data(), list.scalars(update), end - begin);
}

// Part `part` of the updates of a round.
void update_part(const KernelTable& isa, const UpdateList& list, const Round& round, int part,
                 int parts, BlockBuffers* buffers) {
  const Cut begin = list.cut(round, part, parts);
  const Cut end = list.cut(round, part + 1, parts);
  for (size_t u = begin.update; u < round.first + round.count && u <= end.update; ++u) {
    const Update& update = list.updates()[u];
    update_range(isa, list, update, u == begin.update ? begin.element : 0,
                 u == end.update ? end.element : update.numel, buffers);
  }
}

struct Memory final : EngineMemory {
  int max_parts = 1;
  std::vector<BlockBuffers> buffers;  // one for each part, if any update is staged
};

class CpuEngine final : public Engine {
 public:
  bool is_asynchronous() const override { return false; }

  void prepare(const UpdateList& list, const Execution& execution,
               std::unique_ptr<EngineMemory>& engine_memory) override {
    if (engine_memory == nullptr) engine_memory = std::make_unique<Memory>();
    auto& memory = static_cast<Memory&>(*engine_memory);
    int parts = 1;
    for (const Round& round : list.rounds()) {
      parts = std::max(parts, parts_of(round, execution.max_threads));
    }
    memory.max_parts = can_start_threads(parts) ? parts : 1;
    bool is_any_staged = false;
    for (const Update& update : list.updates()) {
      is_any_staged = is_any_staged || is_staged(list, update);
      if (update.unwritten != 0) advise_on_states(update);
    }
    const auto needed = static_cast<size_t>(is_any_staged ? memory.max_parts : 0);
    if (memory.buffers.size() < needed) memory.buffers.resize(needed);
  }

  void run(const UpdateList& list, const Execution&, EngineMemory* engine_memory) override {
    auto& memory = static_cast<Memory&>(*engine_memory);
    const KernelTable& isa = selected_isa();
    for (const Round& round : list.rounds()) {
      const int parts = parts_of(round, memory.max_parts);
      run_parts(parts, [&](int part) noexcept {
        BlockBuffers* const buffers = memory.buffers.empty() ? nullptr : &memory.buffers[part];
        update_part(isa, list, round, part, parts, buffers);
      });
    }
  }

 private:
  static int parts_of(const Round& round, int max_threads) {
    const int64_t worthwhile = round.numel / min_elements_per_thread();
    return static_cast<int>(std::clamp<int64_t>(worthwhile, 1, max_threads));
  }

  static void advise_on_states(const Update& update) {
    for (int k = kFirstState; k < kMaxOperands; ++k) {
      if (!(update.unwritten >> (k - kFirstState) & 1)) continue;
      advise_huge_pages(update.data[k],
                        static_cast<size_t>(update.numel) * size_of(update.dtypes[k]));
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
