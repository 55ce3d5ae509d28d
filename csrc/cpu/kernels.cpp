// Compiled once for each instruction set, with FUSEDOPT_ISA naming it. Everything here is local to
// the translation unit or always inlined: code built for one instruction set must never stand in
// for another's at link time.
#include "cpu/kernels.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/rule_info.h"
#include "cpu/convert.h"
#include "cpu/passes.h"
#include "cpu/squares.h"

namespace fusedopt::cpu {
namespace {

// What one kernel takes, and the type that it computes in.
template <size_t formats>
struct Formats {
  static constexpr FormatMix kMix = kUsualFormats[formats];
  static constexpr bool kInDouble = kMix.param == Format::kFloat64;
  using T = std::conditional_t<kInDouble, double, float>;

  static constexpr bool are_all(auto property) {
    return property(kMix.param) && property(kMix.grad) && property(kMix.states);
  }
  // Arrays of T itself: there is nothing to decode.
  static constexpr bool kAreNumbers =
      are_all([](Format format) { return format == arithmetic_format(kInDouble); });
  static constexpr bool kInPairs =
      are_all([](Format format) { return plain_format(format) == Format::kBFloat16; });
  // Of states that are to be encoded to codes.
  static constexpr bool kFindsRanges = kMix.states == Format::kFloat32;
};

// Decode, rule, encode: `lanes` elements that lie side by side, either one or kLanes.
template <class Rule, unsigned variant, class Formats, int64_t lanes>
class Elements {
 public:
  using T = typename Formats::T;
  using Scalars = KernelScalars<Rule, T>;
  static constexpr unsigned kUsed = used_states<Rule>(rule_variant(variant));
  static constexpr unsigned kOperands = kFirstState + std::popcount(kUsed);
  static constexpr bool kHasL2Penalty = (variant & kL2Penalty) != 0;
  static constexpr bool kHasRemainder = Formats::kMix.param == Format::kMasterBFloat16;

  static constexpr Format format(unsigned operand) { return Formats::kMix.of(operand); }
  static constexpr unsigned kDrawing = [] {
    unsigned drawing = 0;
    for (unsigned k = 0; k < kOperands; ++k) drawing += draws_random_bits(format(k));
    return drawing;
  }();

  // The operands from an element on.
  using Blocks = std::array<StoredBlock, kOperands>;
  FUSEDOPT_FN static Blocks blocks(void* const* addresses, int64_t first) {
    Blocks blocks;
    for (unsigned k = 0; k < kOperands; ++k) {
      const auto offset = static_cast<size_t>(first) * size_of(format(k));
      blocks[k].elements = static_cast<std::byte*>(addresses[k]) + offset;
    }
    if constexpr (kHasRemainder) {
      blocks[kParam].remainders = static_cast<int16_t*>(addresses[kOperands]) + first;
    }
    return blocks;
  }

  // The random bits of a group of them, or of fewer elements.
  struct RandomBits {
    alignas(64) uint16_t of_operand[kDrawing + 1][2 * kDrawGroup];
  };
  FUSEDOPT_FN static void draw(const Draws& draws, int64_t n, RandomBits& bits, Blocks& blocks) {
    unsigned drawn = 0;
    for (unsigned k = 0; k < kOperands; ++k) {
      if (!draws_random_bits(format(k))) continue;
      blocks[k].random_bits = draw_random_bits(draws, kRoles[k], n, bits.of_operand[drawn++]);
    }
  }

  // The largest magnitudes of states, while they are in registers.
  class Maxima {
   public:
    FUSEDOPT_FN void take(unsigned state, const float (&numbers)[lanes]) {
      for (int64_t l = 0; l < lanes; l += kRegister) {
        const auto some = load_lanes<OneRegister::Floats>(numbers + l);
        of_[state] = OneRegister::max(of_[state], OneRegister::as_ints(some) & kMagnitude);
      }
    }
    FUSEDOPT_FN int32_t of(unsigned state) const { return OneRegister::largest(of_[state]); }

   private:
    OneRegister::Ints of_[kOperands - kFirstState + 1] = {};
  };

  FUSEDOPT_FN static void update(const Blocks& blocks, const Scalars& scalars, int64_t i,
                                 Maxima* maxima = nullptr) {
    update(blocks, scalars, i, maxima, std::make_index_sequence<Rule::kStates.size()>{});
  }

  FUSEDOPT_FN static void prefetch(const Blocks& blocks, int64_t i) {
    for (unsigned k = 0; k < kOperands; ++k) {
      const auto offset = static_cast<size_t>(i) * size_of(format(k));
      prefetch_lines(static_cast<const std::byte*>(blocks[k].elements) + offset,
                     lanes * size_of(format(k)));
    }
    if constexpr (kHasRemainder) {
      prefetch_lines(blocks[kParam].remainders + i, lanes * sizeof(int16_t));
    }
  }

 private:
  static constexpr bool is_used(size_t state) { return kUsed >> state & 1; }
  static constexpr unsigned operand_of(size_t state) {
    return kFirstState + static_cast<unsigned>(std::popcount(kUsed & ((1u << state) - 1)));
  }
  static constexpr std::array<unsigned, kOperands> kRoles = [] {
    std::array<unsigned, kOperands> roles = {kParam, kGrad};
    for (unsigned state = 0; state < Rule::kStates.size(); ++state) {
      if (is_used(state)) roles[operand_of(state)] = kFirstState + state;
    }
    return roles;
  }();

  template <unsigned k>
  FUSEDOPT_FN static void load(const Blocks& blocks, int64_t i, T (&to)[lanes]) {
    if constexpr (Formats::kInPairs) {
      decode_pairs<format(k)>(blocks[k], i, to);
    } else {
      decode_elements<format(k), lanes>(blocks[k], i, to);
    }
  }

  template <unsigned k>
  FUSEDOPT_FN static void store(const T (&from)[lanes], const Blocks& blocks, int64_t i) {
    if constexpr (Formats::kInPairs) {
      encode_pairs<format(k)>(from, blocks[k], i);
    } else {
      encode_elements<format(k), lanes>(from, blocks[k], i);
    }
  }

  // Nobody reads a state that the variant does not use.
  template <size_t state>
  FUSEDOPT_FN static void load_state(const Blocks& blocks, int64_t i, T (&to)[lanes]) {
    if constexpr (is_used(state)) {
      load<operand_of(state)>(blocks, i, to);
    } else {
      FUSEDOPT_SHORT_LOOP
      for (int64_t l = 0; l < lanes; ++l) to[l] = 0;
    }
  }

  template <size_t state>
  FUSEDOPT_FN static void store_state(const T (&from)[lanes], const Blocks& blocks, int64_t i) {
    if constexpr (is_used(state)) store<operand_of(state)>(from, blocks, i);
  }

  template <size_t state>
  FUSEDOPT_FN static void take_state(const T (&numbers)[lanes], Maxima& maxima) {
    if constexpr (is_used(state)) maxima.take(operand_of(state) - kFirstState, numbers);
  }

  template <size_t... state>
  FUSEDOPT_FN static void update(const Blocks& blocks, const Scalars& scalars, int64_t i,
                                 [[maybe_unused]] Maxima* maxima, std::index_sequence<state...>) {
    T param[lanes], grad[lanes], states[sizeof...(state) + 1][lanes];
    load<kParam>(blocks, i, param);
    load<kGrad>(blocks, i, grad);
    (load_state<state>(blocks, i, states[state]), ...);
    FUSEDOPT_SHORT_LOOP
    for (int64_t l = 0; l < lanes; ++l) {
      update_element<Rule, rule_variant(variant)>(param[l], grad[l], kHasL2Penalty, scalars,
                                                  states[state][l]...);
    }
    store<kParam>(param, blocks, i);
    (store_state<state>(states[state], blocks, i), ...);
    if constexpr (Formats::kFindsRanges && lanes % kRegister == 0) {
      if (maxima != nullptr) (take_state<state>(states[state], *maxima), ...);
    }
  }
};

// Fewer elements than are computed together: copied, updated and copied back. Not inlined: beside
// it in one function, what a loop computes does not stay in registers.
template <unsigned operand_count>
__attribute__((noinline)) void update_tail(Kernel kernel, const FormatMix& formats,
                                           void* const* operands, const void* scalars,
                                           const Draws* draws, int64_t first, int64_t count) {
  constexpr unsigned kMostArrays = operand_count + 1;
  alignas(64) std::byte copies[kMostArrays][kLanes * sizeof(double)] = {};
  void* addresses[kMostArrays];
  const bool has_remainder = formats.param == Format::kMasterBFloat16;
  const auto for_each = [&](auto copy) {
    for (unsigned k = 0; k < operand_count + has_remainder; ++k) {
      const Format format = k < operand_count ? formats.of(k) : Format::kRemainder;
      const size_t size = size_of(format);
      copy(k, static_cast<std::byte*>(operands[k]) + static_cast<size_t>(first) * size,
           static_cast<size_t>(count) * size);
      addresses[k] = copies[k];
    }
  };
  for_each([&](unsigned k, const void* from, size_t size) { std::memcpy(copies[k], from, size); });
  const Draws of_tail = draws == nullptr ? Draws{} : draws->from(first);
  kernel(addresses, scalars, &of_tail, kLanes, nullptr);
  for_each([&](unsigned k, void* to, size_t size) {
    if (k != kGrad) std::memcpy(to, copies[k], size);
  });
}

// Updates whole parts of codes to be, and finds the ranges of their states. Returns how many
// elements that are.
template <class Rule, unsigned variant, class Formats>
__attribute__((noinline)) int64_t update_parts(void* const* operands, const void* packed_scalars,
                                               const Draws* draws, int64_t n,
                                               PartRange (*ranges)[kBlockParts]) {
  using Lanes = Elements<Rule, variant, Formats, kLanes>;
  const auto scalars = *static_cast<const typename Lanes::Scalars*>(packed_scalars);
  [[maybe_unused]] typename Lanes::RandomBits bits;
  const int64_t whole = n - n % kScaledBlock;
  static_assert(kDrawGroup == kScaledBlock);
  for (int64_t first = 0, part = 0; first < whole; first += kScaledBlock, ++part) {
    auto blocks = Lanes::blocks(operands, first);
    if constexpr (Lanes::kDrawing > 0) {
      Lanes::draw(draws->from(first), kScaledBlock, bits, blocks);
    }
    typename Lanes::Maxima maxima;
    for (int64_t i = 0; i < kScaledBlock; i += kLanes) {
      Lanes::update(blocks, scalars, i, &maxima);
    }
    for (unsigned k = kFirstState; k < Lanes::kOperands; ++k) {
      const auto* const states = static_cast<const float*>(blocks[k].elements);
      ranges[k - kFirstState][part] = range_of(maxima.of(k - kFirstState), states, kScaledBlock);
    }
  }
  return whole;
}

// How far ahead memory is asked for where elements are decoded: every line of it, since asking for
// every other one is slower than asking for none. The hardware does so by itself, but not across
// pages; measured, numbers that need no decoding gain nothing by this.
constexpr int64_t kPrefetchAhead = 1024;

template <class Rule, unsigned variant, size_t formats>
void kernel(void* const* operands, const void* packed_scalars, const Draws* draws, int64_t n,
            PartRange (*ranges)[kBlockParts]) {
  using F = Formats<formats>;
  const auto scalars = *static_cast<const KernelScalars<Rule, typename F::T>*>(packed_scalars);
  int64_t begin = 0;
  if constexpr (F::kFindsRanges && used_states<Rule>(rule_variant(variant)) != 0) {
    if (ranges != nullptr) {
      begin = update_parts<Rule, variant, F>(operands, packed_scalars, draws, n, ranges);
    }
  }
  if constexpr (F::kAreNumbers) {
    using One = Elements<Rule, variant, F, 1>;
    const auto blocks = One::blocks(operands, 0);
    FUSEDOPT_INDEPENDENT_ITERATIONS
    for (int64_t i = begin; i < n; ++i) One::update(blocks, scalars, i);
  } else {
    using Lanes = Elements<Rule, variant, F, kLanes>;
    [[maybe_unused]] typename Lanes::RandomBits bits;
    const int64_t whole = n - n % kLanes;
    const int64_t run = Lanes::kDrawing > 0 ? kDrawGroup : whole;
    for (int64_t first = begin; first < whole; first += run) {
      auto blocks = Lanes::blocks(operands, first);
      const int64_t left = whole - first, count = std::min(run, left);
      if constexpr (Lanes::kDrawing > 0) Lanes::draw(draws->from(first), count, bits, blocks);
      for (int64_t i = 0; i < count; i += kLanes) {
        if (i + kPrefetchAhead < left) Lanes::prefetch(blocks, i + kPrefetchAhead);
        Lanes::update(blocks, scalars, i);
      }
    }
    if (whole == n) return;
    update_tail<Lanes::kOperands>(kernel<Rule, variant, formats>, F::kMix, operands, packed_scalars,
                                  draws, whole, n - whole);
  }
}

// The portable conversions of float16 are faster as loops of their own: beside a rule's they leave
// too few registers.
constexpr bool has_kernel(const FormatMix& formats) {
  return kConvertsFloat16 ||
         (formats.param != Format::kFloat16 && formats.grad != Format::kFloat16 &&
          formats.states != Format::kFloat16);
}

template <class Rule, size_t entry>
constexpr Kernel kernel_or_null() {
  constexpr size_t formats = entry % kUsualFormats.size();
  if constexpr (has_kernel(kUsualFormats[formats])) {
    return kernel<Rule, entry / kUsualFormats.size(), formats>;
  } else {
    return nullptr;
  }
}

template <class Rule, size_t... entry>
constexpr std::array<Kernel, sizeof...(entry)> kernels_of(std::index_sequence<entry...>) {
  return {kernel_or_null<Rule, entry>()...};
}

template <class Rule>
constexpr auto kKernels =
    kernels_of<Rule>(std::make_index_sequence<kVariantCount<Rule> * kUsualFormats.size()>{});

struct KernelsOf {
  template <class Rule>
  constexpr const Kernel* operator()() const {
    return &kKernels<Rule>[0];
  }
};

template <class T, size_t... format>
constexpr std::array<Decode, kFormats> decoders(std::index_sequence<format...>) {
  return {decode_block<Format{format}, T>...};
}

template <class T, size_t... format>
constexpr std::array<Encode, kFormats> encoders(std::index_sequence<format...>) {
  return {encode_block<Format{format}, T>...};
}

constexpr KernelTable table_of(const char* isa) {
  using AllFormats = std::make_index_sequence<kFormats>;
  return {
      .isa = isa,
      .kernels = AllRules::map(KernelsOf{}),
      .decode = {decoders<float>(AllFormats{}), decoders<double>(AllFormats{})},
      .encode = {encoders<float>(AllFormats{}), encoders<double>(AllFormats{})},
      .find_ranges = {find_ranges<float>, find_ranges<double>},
      .draw = draw_random_bits,
      .unscale = {unscale_block<float>, unscale_block<double>},
      .shrink = {shrink_block<float>, shrink_block<double>},
      .average = {average_block<float>, average_block<double>},
      .add_squares = {add_squares<Format::kFloat32>, add_squares<Format::kFloat64>,
                      add_squares<Format::kBFloat16>, add_squares<Format::kFloat16>},
  };
}

}  // namespace

#define FUSEDOPT_STRING_OF(x) #x
#define FUSEDOPT_STRING(x) FUSEDOPT_STRING_OF(x)

namespace FUSEDOPT_ISA {
extern const KernelTable kernel_table;
constinit const KernelTable kernel_table = table_of(FUSEDOPT_STRING(FUSEDOPT_ISA));
#if defined(FUSEDOPT_VBMI)
// The same but for how codes become numbers.
extern const KernelTable vbmi_kernel_table;
constinit const KernelTable vbmi_kernel_table = [] {
  KernelTable table = table_of(FUSEDOPT_STRING(FUSEDOPT_ISA) "vbmi");
  table.decode[false][static_cast<size_t>(Format::kSigned8)] = look_up_block<true>;
  table.decode[false][static_cast<size_t>(Format::kUnsigned8)] = look_up_block<false>;
  return table;
}();
#endif
}  // namespace FUSEDOPT_ISA

}  // namespace fusedopt::cpu
