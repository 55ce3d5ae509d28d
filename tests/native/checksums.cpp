// Prints a checksum of every kernel's results on fixed inputs. Built for another architecture and
// run there or in an emulator, it has to print the same lines: see `make neon-check`.
#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "core/rule_info.h"
#include "cpu/kernels.h"
#include "fixed_options.h"

namespace fusedopt::cpu::FUSEDOPT_ISA {
extern const KernelTable kernel_table;
}

namespace fusedopt {
namespace {

constexpr int64_t kElements = 1003;

template <class T>
std::vector<T> inputs(uint64_t seed, bool non_negative) {
  using Limits = std::numeric_limits<T>;
  const T special[] = {T(0),
                       -T(0),
                       Limits::infinity(),
                       -Limits::infinity(),
                       Limits::max(),
                       T(1),
                       Limits::denorm_min(),
                       Limits::min(),
                       Limits::quiet_NaN()};
  std::vector<T> values(kElements);
  for (int64_t i = 0; i < kElements; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const T mantissa = T(static_cast<int32_t>(seed >> 32)) / T(1 << 30);
    values[i] = std::ldexp(mantissa, static_cast<int>(seed >> 8 & 63) - 32);
    if (i % 11 == 0) values[i] = special[(seed >> 16) % std::size(special)];
    if (non_negative) values[i] = std::fabs(values[i]);
  }
  return values;
}

// FNV-1a over the bits, every NaN taken for the same one.
uint64_t add_to_checksum(uint64_t checksum, const void* data, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    checksum = (checksum ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
  }
  return checksum;
}

template <class T>
uint64_t checksum_of(uint64_t checksum, std::vector<T> values) {
  std::replace_if(
      values.begin(), values.end(), [](T value) { return value != value; },
      std::numeric_limits<T>::quiet_NaN());
  return add_to_checksum(checksum, values.data(), kElements * sizeof(T));
}

template <class Rule, class T>
void print_rule(unsigned index) {
  for (unsigned variant = 0; variant < kVariantCount<Rule>; ++variant) {
    FixedOptions options{variant % 2 == 1};
    const HyperparametersOf<Rule> hyper(Rule::read(options));
    UpdateList list;
    list.clear(index);
    Update update;
    update.scalars = hyper.add_scalars(list, 7, sizeof(T) == sizeof(double));
    std::vector<std::vector<T>> arrays;
    std::array<void*, kMaxOperands> operands{};
    for (size_t k = 0; k < kFirstState + Rule::kStates.size(); ++k) {
      arrays.push_back(inputs<T>(k + 1, k >= kFirstState));
    }
    for (size_t k = 0; k < arrays.size(); ++k) operands[k] = arrays[k].data();
    const auto kernel =
        cpu::FUSEDOPT_ISA::kernel_table.kernels[index][2 * variant + (sizeof(T) == 8)];
    for (int step = 0; step < 3; ++step) kernel(operands.data(), list.scalars(update), kElements);
    uint64_t checksum = 14695981039346656037u;
    for (const auto& array : arrays) checksum = checksum_of(checksum, array);
    std::printf("%s %u %zu %016" PRIx64 "\n", Rule::kName, variant, sizeof(T), checksum);
  }
}

void print_conversions() {
  const auto& table = cpu::FUSEDOPT_ISA::kernel_table;
  std::vector<uint16_t> all(65536), back(65536);
  std::vector<float> wide(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  const auto print = [&](const char* name, auto widen, auto narrow) {
    widen(all.data(), wide.data(), 65536);
    for (float& value : wide) value = value * 1.0009765f + 1e-7f;
    narrow(wide.data(), back.data(), 65536);
    for (float& value : wide) value = value != value ? 0.0f : value;  // any NaN will do
    uint64_t checksum = add_to_checksum(0, wide.data(), 65536 * sizeof(float));
    checksum = add_to_checksum(checksum, back.data(), 65536 * sizeof(uint16_t));
    std::printf("%s %016" PRIx64 "\n", name, checksum);
  };
  print("bfloat16", table.widen_bfloat16, table.narrow_bfloat16);
  print("float16", table.widen_float16, table.narrow_float16);
}

}  // namespace
}  // namespace fusedopt

int main() {
  unsigned index = 0;
  fusedopt::AllRules::map([&]<class Rule>() {
    fusedopt::print_rule<Rule, float>(index);
    fusedopt::print_rule<Rule, double>(index);
    return index++;
  });
  fusedopt::print_conversions();
}
