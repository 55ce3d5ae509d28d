#include "core/engine.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/staging.h"
#include "cpu/threads.h"

namespace fusedopt {
namespace cpu {
namespace {

void update_range(const KernelTable& isa, const UpdateList& list, const Update& update,
                  int64_t begin, int64_t end) {
  if (begin == end) return;
  const Kernel kernel = isa.kernels[list.rule()][2 * update.variant + update.in_double];
  const bool direct = update.direct && list.amp().grad_scale == nullptr;
  if (!direct) return update_staged(isa, kernel, list, update, begin, end);

  const auto size = static_cast<int64_t>(update.in_double ? sizeof(double) : sizeof(float));
  std::array<void*, kMaxOperands> operands = update.data;
  for (void*& operand : operands) {
    if (operand != nullptr) operand = static_cast<char*>(operand) + begin * size;
  }
  kernel(operands.data(), list.scalars(update), end - begin);
}

class CpuEngine final : public Engine {
 public:
  bool is_asynchronous() const override { return false; }

  void run(const UpdateList& list, const Execution& execution, EngineMemory*) override {
    const KernelTable& isa = selected_isa();
    const int max_threads = execution.in_order ? 1 : execution.max_threads;
    const int64_t worthwhile = list.numel() / min_elements_per_thread();
    const int parts = static_cast<int>(std::clamp<int64_t>(worthwhile, 1, max_threads));
    run_parts(parts, [&](int part) noexcept {
      const Cut begin = list.cut(part, parts);
      const Cut end = list.cut(part + 1, parts);
      const auto& updates = list.updates();
      for (size_t u = begin.update; u < updates.size() && u <= end.update; ++u) {
        update_range(isa, list, updates[u], u == begin.update ? begin.element : 0,
                     u == end.update ? end.element : updates[u].numel);
      }
    });
  }
};

}  // namespace
}  // namespace cpu

Engine& cpu_engine() {
  static cpu::CpuEngine engine;
  return engine;
}

}  // namespace fusedopt
