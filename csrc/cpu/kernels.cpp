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

constexpr Format format_of(const FormatMix& formats, unsigned operand) {
  return operand == kParam ? formats.param : operand == kGrad ? formats.grad : formats.states;
}

// The formats of one kernel, and the type that it computes in.
template <size_t formats>
struct Codecs {
  static constexpr FormatMix kFormats = kUsualFormats[formats];
  using Param = CodecOf<kFormats.param>;
  using Grad = CodecOf<kFormats.grad>;
  using State = CodecOf<kFormats.states>;
  static constexpr bool kInDouble = kFormats.param == Format::kFloat64 ||
                                    kFormats.grad == Format::kFloat64 ||
                                    kFormats.states == Format::kFloat64;
  using T = std::conditional_t<kInDouble, double, float>;
  static constexpr bool kInPairs =
      kFormats == FormatMix{Format::kBFloat16, Format::kBFloat16, Format::kBFloat16};
  // Arrays of T itself: there is nothing to decode.
  static constexpr bool kAreNumbers = std::is_same_v<typename Param::Stored, T> &&
                                      std::is_same_v<typename Grad::Stored, T> &&
                                      std::is_same_v<typename State::Stored, T>;
};

// Decode, rule, encode: `lanes` elements that lie side by side, either one or kLanes.
template <class Rule, unsigned variant, class Codecs, int64_t lanes>
class Elements {
 public:
  using T = typename Codecs::T;
  using Scalars = KernelScalars<Rule, T>;
  static constexpr unsigned kUsed = used_states<Rule>(rule_variant(variant));
  static constexpr unsigned kOperands = kFirstState + std::popcount(kUsed);
  static constexpr bool kHasL2Penalty = (variant & kL2Penalty) != 0;

  FUSEDOPT_FN static void update(void* const* operands, const Scalars& scalars, int64_t i) {
    update(operands, scalars, i, std::make_index_sequence<Rule::kStates.size()>{});
  }

  FUSEDOPT_FN static void prefetch(void* const* operands, int64_t i) {
    for (unsigned k = 0; k < kOperands; ++k) {
      const size_t size = size_of(format_of(Codecs::kFormats, k));
      __builtin_prefetch(static_cast<const char*>(operands[k]) + static_cast<size_t>(i) * size, 1);
    }
  }

 private:
  static constexpr bool is_used(size_t state) { return kUsed >> state & 1; }
  static constexpr size_t operand_of(size_t state) {
    return kFirstState + static_cast<size_t>(std::popcount(kUsed & ((1u << state) - 1)));
  }

  template <class Codec>
  FUSEDOPT_FN static void load(const void* operand, int64_t i, T (&to)[lanes]) {
    const auto* const from = static_cast<const typename Codec::Stored*>(operand) + i;
    if constexpr (Codecs::kInPairs) {
      decode_pairs(from, to);
    } else if constexpr (lanes == kLanes) {
      decode_lanes<Codec>(from, to);
    } else {
      to[0] = Codec::template decode<T>(*from);
    }
  }

  template <class Codec>
  FUSEDOPT_FN static void store(const T (&from)[lanes], void* operand, int64_t i) {
    auto* const to = static_cast<typename Codec::Stored*>(operand) + i;
    if constexpr (Codecs::kInPairs) {
      encode_pairs(from, to);
    } else if constexpr (lanes == kLanes) {
      encode_lanes<Codec>(from, to);
    } else {
      *to = Codec::encode(from[0]);
    }
  }

  template <size_t... state>
  FUSEDOPT_FN static void update(void* const* operands, const Scalars& scalars, int64_t i,
                                 std::index_sequence<state...>) {
    T param[lanes], grad[lanes], states[sizeof...(state) + 1][lanes] = {};
    load<typename Codecs::Param>(operands[kParam], i, param);
    load<typename Codecs::Grad>(operands[kGrad], i, grad);
    (void)((is_used(state) &&
            (load<typename Codecs::State>(operands[operand_of(state)], i, states[state]), true)),
           ...);
    FUSEDOPT_SHORT_LOOP
    for (int64_t l = 0; l < lanes; ++l) {
      update_element<Rule, rule_variant(variant)>(param[l], grad[l], kHasL2Penalty, scalars,
                                                  states[state][l]...);
    }
    store<typename Codecs::Param>(param, operands[kParam], i);
    (void)((is_used(state) &&
            (store<typename Codecs::State>(states[state], operands[operand_of(state)], i), true)),
           ...);
  }
};

// Fewer elements than are computed together: copied, updated and copied back.
template <unsigned operand_count>
void update_tail(Kernel kernel, const FormatMix& formats, void* const* operands,
                 const void* scalars, int64_t first, int64_t count) {
  alignas(64) std::byte copies[operand_count][kLanes * sizeof(double)] = {};
  void* addresses[operand_count];
  const auto for_each = [&](auto copy) {
    for (unsigned k = 0; k < operand_count; ++k) {
      const size_t size = size_of(format_of(formats, k));
      copy(k, static_cast<std::byte*>(operands[k]) + static_cast<size_t>(first) * size,
           static_cast<size_t>(count) * size);
      addresses[k] = copies[k];
    }
  };
  for_each([&](unsigned k, const void* from, size_t size) { std::memcpy(copies[k], from, size); });
  kernel(addresses, scalars, kLanes);
  for_each([&](unsigned k, void* to, size_t size) {
    if (k != kGrad) std::memcpy(to, copies[k], size);
  });
}

// How far ahead memory is asked for where elements are decoded. The hardware does so by itself, but
// not across pages; measured, numbers that need no decoding gain nothing by this.
constexpr int64_t kPrefetchAhead = 1024;

template <class Rule, unsigned variant, size_t formats>
void kernel(void* const* operands, const void* packed_scalars, int64_t n) {
  using C = Codecs<formats>;
  const auto scalars = *static_cast<const KernelScalars<Rule, typename C::T>*>(packed_scalars);
  if constexpr (C::kAreNumbers) {
    FUSEDOPT_INDEPENDENT_ITERATIONS
    for (int64_t i = 0; i < n; ++i) {
      Elements<Rule, variant, C, 1>::update(operands, scalars, i);
    }
  } else {
    using Lanes = Elements<Rule, variant, C, kLanes>;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      Lanes::prefetch(operands, std::min(i + kPrefetchAhead, n - kLanes));
      Lanes::update(operands, scalars, i);
    }
    if (i == n) return;
    update_tail<Lanes::kOperands>(kernel<Rule, variant, formats>, C::kFormats, operands,
                                  packed_scalars, i, n - i);
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

using AllFormats = std::make_index_sequence<kFormats>;

}  // namespace

#define FUSEDOPT_STRING_OF(x) #x
#define FUSEDOPT_STRING(x) FUSEDOPT_STRING_OF(x)

namespace FUSEDOPT_ISA {
extern const KernelTable kernel_table;
constinit const KernelTable kernel_table = {
    .isa = FUSEDOPT_STRING(FUSEDOPT_ISA),
    .kernels = AllRules::map(KernelsOf{}),
    .decode = {decoders<float>(AllFormats{}), decoders<double>(AllFormats{})},
    .encode = {encoders<float>(AllFormats{}), encoders<double>(AllFormats{})},
    .find_range = {find_range<float>, find_range<double>},
    .draw = draw_random_bits,
    .unscale = {unscale_block<float>, unscale_block<double>},
    .shrink = {shrink_block<float>, shrink_block<double>},
    .average = {average_block<float>, average_block<double>},
    .add_squares = {add_squares<Format::kFloat32>, add_squares<Format::kFloat64>,
                    add_squares<Format::kBFloat16>, add_squares<Format::kFloat16>},
};
}  // namespace FUSEDOPT_ISA

}  // namespace fusedopt::cpu
