#include "cpu/isa.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "core/refusal.h"

namespace fusedopt::cpu {

#if defined(__x86_64__)
namespace baseline {
extern const KernelTable kernel_table;
}
namespace avx2 {
extern const KernelTable kernel_table;
}
namespace avx512 {
extern const KernelTable kernel_table, vbmi_kernel_table;
}
#elif defined(__aarch64__)
namespace neon {
extern const KernelTable kernel_table;
}
#else
namespace baseline {
extern const KernelTable kernel_table;
}
#endif

namespace {

#if defined(__x86_64__)
// Not __builtin_cpu_supports("f16c"), which many versions of clang do not know. Whether the
// operating system saves the registers is the same question as for AVX2.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

std::vector<const KernelTable*> detect() {
#if defined(__x86_64__)
  std::vector<const KernelTable*> tables = {&baseline::kernel_table};
  // These ask the operating system as well, which has to save the registers.
  if (__builtin_cpu_supports("avx2") && has_f16c()) {
    tables.push_back(&avx2::kernel_table);
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    tables.push_back(&avx512::kernel_table);
    if (__builtin_cpu_supports("avx512vbmi")) tables.push_back(&avx512::vbmi_kernel_table);
  }
  return tables;
#elif defined(__aarch64__)
  return {&neon::kernel_table};
#else
  return {&baseline::kernel_table};
#endif
}

std::atomic<const KernelTable*>& selection() {
  static std::atomic<const KernelTable*> table{available_isas().back()};
  return table;
}

}  // namespace

const std::vector<const KernelTable*>& available_isas() {
  static const std::vector<const KernelTable*> tables = detect();
  return tables;
}

const KernelTable& selected_isa() { return *selection().load(std::memory_order_relaxed); }

void select_isa(const std::string& name) {
  std::string names;
  for (const KernelTable* table : available_isas()) {
    if (name == table->isa) {
      selection().store(table, std::memory_order_relaxed);
      return;
    }
    names += (names.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw Refusal(Refusal::kValue, "instruction set '" + name +
                                     "' is unknown or not available on this CPU; " +
                                     "available: " + names);
}

}  // namespace fusedopt::cpu
