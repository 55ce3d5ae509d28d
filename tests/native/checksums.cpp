// Prints a checksum of every kernel's results on fixed inputs. Built for another architecture and
// run there or in an emulator, it has to print the same lines: see `make neon-check`.
#include <algorithm>
#include <bit>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/codec.h"
#include "core/reduction.h"
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

template <class Rule>
size_t operand_count(unsigned variant) {
  return kFirstState + static_cast<size_t>(std::popcount(used_states<Rule>(rule_variant(variant))));
}

// The ranges that a kernel finds of its states' whole parts have to be those that a pass finds.
class Ranges {
 public:
  // Null where a kernel finds none.
  using OfState = cpu::PartRange[cpu::kBlockParts];
  explicit Ranges(Format states, size_t count) : count_(states == Format::kFloat32 ? count : 0) {}
  OfState* to_find() { return count_ > 0 ? found_ : nullptr; }

  void check(void* const* states) const {
    for (size_t k = 0; k < count_; ++k) {
      OfState expected;
      cpu::FUSEDOPT_ISA::kernel_table.find_ranges[0](states[k], kElements, expected);
      for (int64_t part = 0; part < kElements / kScaledBlock; ++part) {
        const cpu::PartRange &a = expected[part], &b = found_[k][part];
        if (a.scale != b.scale || a.is_finite != b.is_finite) std::printf("another range\n");
      }
    }
  }

 private:
  size_t count_;
  OfState found_[kMostOperands];
};

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
    std::vector<void*> operands;
    for (size_t k = 0; k < operand_count<Rule>(variant); ++k) {
      arrays.push_back(inputs<T>(k + 1, k >= kFirstState));
    }
    for (auto& array : arrays) operands.push_back(array.data());
    const Format format = arithmetic_format(sizeof(T) == sizeof(double));
    const auto kernel =
        cpu::FUSEDOPT_ISA::kernel_table.find_kernel(index, variant, {format, format, format});
    Ranges ranges(format, operands.size() - kFirstState);
    for (int step = 0; step < 3; ++step) {
      kernel(operands.data(), list.scalars(update), nullptr, kElements,
             step == 1 ? ranges.to_find() : nullptr);
      if (step == 1) ranges.check(&operands[kFirstState]);
    }
    uint64_t checksum = 14695981039346656037u;
    for (const auto& array : arrays) checksum = checksum_of(checksum, array);
    std::printf("%s %u %zu %016" PRIx64 "\n", Rule::kName, variant, sizeof(T), checksum);
  }
}

// Kernels that decode and encode by themselves, with remainders of any bits, and random bits.
template <class Rule>
void print_rule_as_stored(unsigned index, size_t usual) {
  const auto& table = cpu::FUSEDOPT_ISA::kernel_table;
  const FormatMix mix = cpu::kUsualFormats[usual];
  for (unsigned variant = 0; variant < kVariantCount<Rule>; ++variant) {
    FixedOptions options{variant % 2 == 1};
    const HyperparametersOf<Rule> hyper(Rule::read(options));
    UpdateList list;
    list.clear(index);
    Update update;
    update.scalars = hyper.add_scalars(list, 7, false);
    std::vector<std::vector<uint32_t>> arrays;
    for (size_t k = 0; k < operand_count<Rule>(variant); ++k) {
      const std::vector<float> wide = inputs<float>(k + 1, k >= kFirstState);
      const Format format = plain_format(mix.of(k));
      const auto encode = table.encode[0][static_cast<size_t>(format)];
      encode(wide.data(), {.elements = arrays.emplace_back(kElements).data()}, kElements);
    }
    if (mix.param == Format::kMasterBFloat16) {
      auto& remainders = arrays.emplace_back(kElements);
      for (uint32_t i = 0; i < kElements; ++i) remainders[i] = i * 2654435761u;
    }
    std::vector<void*> addresses;
    for (auto& array : arrays) addresses.push_back(array.data());
    const auto kernel = table.find_kernel(index, variant, mix);
    Ranges ranges(mix.states, operand_count<Rule>(variant) - kFirstState);
    for (uint32_t step = 0; step < 3; ++step) {
      const Draws draws{.seed = 3, .param = 1, .step = step, .first = 100};
      kernel(addresses.data(), list.scalars(update), &draws, kElements,
             step == 1 ? ranges.to_find() : nullptr);
      if (step == 1) ranges.check(&addresses[kFirstState]);
    }
    uint64_t checksum = 14695981039346656037u;
    for (size_t k = 0; k < arrays.size(); ++k) {
      const bool is_operand = k < operand_count<Rule>(variant);
      for (uint32_t& bits : arrays[k]) {  // any NaN will do
        const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
        if (is_operand && is_nan && mix.of(k) == Format::kFloat32) bits = 0x7fffffff;
      }
      checksum = add_to_checksum(checksum, arrays[k].data(), kElements * sizeof(uint32_t));
    }
    std::printf("%s %u %s, %s, %s %016" PRIx64 "\n", Rule::kName, variant, name_of(mix.param),
                name_of(mix.grad), name_of(mix.states), checksum);
  }
}

// Every stored pattern of 16 bits, or every code, in blocks: decoded, moved a little, and encoded.
// What lies beside them (remainders, a scale, random bits) differs from block to block.
template <class T>
void print_blocks(Format format) {
  const auto& table = cpu::FUSEDOPT_ISA::kernel_table;
  constexpr bool in_double = sizeof(T) == sizeof(double);
  constexpr int64_t n = kScaledBlock;
  uint64_t checksum = 0;
  for (int64_t block = 0; block < 256; ++block) {
    uint16_t stored[n], bits_of_groups[2 * kDrawGroup];
    uint8_t codes[n];
    int16_t remainders[n];
    // In one group, or in two.
    const Draws draws{.seed = 3, .param = 1, .step = 2, .first = block * n + block % 3};
    const uint16_t* const random_bits = table.draw(draws, kFirstState, n, bits_of_groups);
    for (int64_t i = 0; i < n; ++i) {
      stored[i] = static_cast<uint16_t>(block << 8 | i);
      codes[i] = static_cast<uint8_t>(i);
      remainders[i] = static_cast<int16_t>(random_bits[i]);
    }
    float scale = std::bit_cast<float>(static_cast<uint32_t>(block) << 23);
    cpu::StoredBlock place = {.elements = is_scaled(format) ? static_cast<void*>(codes) : stored,
                              .remainders = remainders,
                              .scales = &scale,
                              .random_bits = random_bits};
    T numbers[n];
    table.decode[in_double][static_cast<size_t>(format)](place, numbers, n);
    for (T& number : numbers) number = number * T(1.0009765) + T(1e-7);
    cpu::PartRange range;
    table.find_ranges[in_double](numbers, n, &range);
    place.ranges = &range;
    table.encode[in_double][static_cast<size_t>(format)](numbers, place, n);
    for (T& number : numbers) number = number != number ? T(0) : number;  // any NaN will do
    checksum = add_to_checksum(checksum, numbers, sizeof numbers);
    checksum = add_to_checksum(checksum, place.elements, n * size_of(format));
    checksum = add_to_checksum(checksum, remainders, sizeof remainders);
    checksum = add_to_checksum(checksum, &scale, sizeof scale);
    checksum = add_to_checksum(checksum, random_bits, n * sizeof *random_bits);
  }
  std::printf("%s %zu %016" PRIx64 "\n", name_of(format), sizeof(T), checksum);
}

template <class T>
void print_conversions(Format format) {
  const auto& table = cpu::FUSEDOPT_ISA::kernel_table;
  constexpr bool in_double = sizeof(T) == sizeof(double);
  const auto decode = table.decode[in_double][static_cast<size_t>(format)];
  const auto encode = table.encode[in_double][static_cast<size_t>(format)];
  std::vector<uint16_t> all(65536), back(65536);
  std::vector<T> wide(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  decode({.elements = all.data()}, wide.data(), 65536);
  for (T& value : wide) value = value * T(1.0009765) + T(1e-7);
  encode(wide.data(), {.elements = back.data()}, 65536);
  for (T& value : wide) value = value != value ? T(0) : value;  // any NaN will do
  uint64_t checksum = add_to_checksum(0, wide.data(), 65536 * sizeof(T));
  checksum = add_to_checksum(checksum, back.data(), 65536 * sizeof(uint16_t));
  std::printf("%s %zu %016" PRIx64 "\n", name_of(format), sizeof(T), checksum);
}

// The lanes of sums of squares, of as many elements as rows and registers end at, or do not.
template <class Stored>
void print_squares(Format format) {
  const auto& table = cpu::FUSEDOPT_ISA::kernel_table;
  const std::vector<float> floats = inputs<float>(5, false);
  const std::vector<double> doubles = inputs<double>(6, false);
  uint64_t checksum = 0;
  for (const int64_t n : {int64_t{1}, int64_t{63}, int64_t{64}, int64_t{300}, kElements}) {
    std::vector<Stored> stored(kElements);
    for (int64_t i = 0; i < kElements; ++i) {
      with_codec(format, [&]<class Codec>() {
        stored[i] = static_cast<Stored>(Codec::encode(
            std::is_same_v<Stored, double> ? doubles[i] : static_cast<double>(floats[i])));
      });
    }
    double lanes[kSquareLanes] = {};
    table.add_squares[static_cast<size_t>(format)](stored.data(), n, lanes);
    for (double& lane : lanes) lane = lane != lane ? -1.0 : lane;  // any NaN will do
    checksum = add_to_checksum(checksum, lanes, sizeof lanes);
  }
  std::printf("squares of %s %016" PRIx64 "\n", name_of(format), checksum);
}

// What follows a step: a penalty, and averages from either end.
template <class T>
void print_epilogue() {
  const auto& table = cpu::FUSEDOPT_ISA::kernel_table;
  constexpr bool in_double = sizeof(T) == sizeof(double);
  std::vector<T> params = inputs<T>(7, false), averages = inputs<T>(8, false);
  table.shrink[in_double](params.data(), 0.3, kElements);
  for (const double weight : {0.001, 0.7}) {
    table.average[in_double](averages.data(), params.data(), weight, kElements);
  }
  const uint64_t checksum = checksum_of(checksum_of(0, params), averages);
  std::printf("epilogue %zu %016" PRIx64 "\n", sizeof(T), checksum);
}

}  // namespace
}  // namespace fusedopt

int main() {
  unsigned index = 0;
  fusedopt::AllRules::map([&]<class Rule>() {
    fusedopt::print_rule<Rule, float>(index);
    fusedopt::print_rule<Rule, double>(index);
    for (size_t usual = 2; usual < fusedopt::cpu::kUsualFormats.size(); ++usual) {
      fusedopt::print_rule_as_stored<Rule>(index, usual);
    }
    return index++;
  });
  for (auto format : {fusedopt::Format::kBFloat16, fusedopt::Format::kFloat16}) {
    fusedopt::print_conversions<float>(format);
    fusedopt::print_conversions<double>(format);
  }
  for (auto format : {fusedopt::Format::kStochasticBFloat16, fusedopt::Format::kMasterBFloat16,
                      fusedopt::Format::kSigned8, fusedopt::Format::kUnsigned8}) {
    fusedopt::print_blocks<float>(format);
    fusedopt::print_blocks<double>(format);
  }
  fusedopt::print_epilogue<float>();
  fusedopt::print_epilogue<double>();
  fusedopt::print_squares<float>(fusedopt::Format::kFloat32);
  fusedopt::print_squares<double>(fusedopt::Format::kFloat64);
  fusedopt::print_squares<uint16_t>(fusedopt::Format::kBFloat16);
  fusedopt::print_squares<uint16_t>(fusedopt::Format::kFloat16);
}
