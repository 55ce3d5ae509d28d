// Updates of operands in any formats. Each warp of a block takes groups of 256 elements, which is
// how many share a scale or the calls of a generator. It fetches, decodes, computes, encodes and
// leaves each of them as a whole.
#pragma once

#include <bit>
#include <utility>

#include "core/codec.h"
#include "core/codes.h"
#include "core/scalars.h"
#include "cuda/group_memory.h"

namespace fusedopt::cuda {

// Calls f.template operator()<index>() for each index below a count.
template <class F, size_t... index>
FUSEDOPT_GROUP_FN void for_each_index(std::index_sequence<index...>, F f) {
  (f.template operator()<index>(), ...);
}

// One group of one update.
template <class Rule, class T, class TableOf>
class Group {
 public:
  using Scalars = KernelScalars<Rule, T>;

  FUSEDOPT_GROUP_FN Group(const GroupContext<TableOf>& context, unsigned thread, int64_t first)
      : grad_scale_(context.table.header.grad_scale), memory_(context, thread, first) {}

  FUSEDOPT_GROUP_FN void update(const Scalars& scalars) {
    for_each_role([&]<size_t role>() { decode<role>(); });
    compute(scalars, std::make_index_sequence<Rule::kVariants>{});
    // All lanes have read a scale before one of them writes it.
    memory_.warp().synchronize();
    for_each_role([&]<size_t role>() {
      if (role != kGrad || grad_scale_ != nullptr) encode<role>();
    });
    if (memory_.format(kAveragePlace) != kNoFormat) average();
  }

 private:
  static constexpr unsigned kOperands = kOperandsOf<Rule>;
  using Memory = GroupMemory<kOperands, TableOf>;
  static constexpr unsigned kAveragePlace = Memory::kExtra.average;

  struct Numbers {
    T of[kOperands][kLaneElements];
  };

  template <class F>
  FUSEDOPT_GROUP_FN static void for_each_role(F f) {
    for_each_index(std::make_index_sequence<kOperands>{}, f);
  }

  // ---- from how it is stored to numbers ----
  // Calls set(lane, element) for all of them, to be the numbers of a role.
  template <unsigned role, class Set>
  FUSEDOPT_GROUP_FN void set_numbers(Set set) {
    memory_.warp().run([&](unsigned lane) {
      for (unsigned e = 0; e < kLaneElements; ++e) numbers_.of(lane).of[role][e] = set(lane, e);
    });
  }

  template <unsigned role>
  FUSEDOPT_GROUP_FN void decode() {
    const Format format = memory_.format(role);
    // Also where the compiler cannot know that a format does not occur.
    set_numbers<role>([](unsigned, unsigned) { return T(0); });
    if (format == kNoFormat) return;
    const auto size = static_cast<unsigned>(size_of(format));
    const bool is_staged = !memory_.has_packs(role, size);
    if (is_staged) memory_.bring(role, size);
    switch (format) {
      case Format::kFloat32: return decode_plain<role, Format::kFloat32>(is_staged);
      case Format::kFloat64: return decode_plain<role, Format::kFloat64>(is_staged);
      case Format::kFloat16: return decode_plain<role, Format::kFloat16>(is_staged);
      case Format::kBFloat16:
      case Format::kStochasticBFloat16: return decode_plain<role, Format::kBFloat16>(is_staged);
      case Format::kMasterBFloat16: return decode_master<role>(is_staged);
      case Format::kSigned8:
      case Format::kUnsigned8: return decode_codes<role>(is_staged);
      default: return;
    }
  }

  // No operand is wider than the numbers of the arithmetic.
  template <Format format>
  static constexpr bool kOccurs = size_of(format) <= sizeof(T);

  template <unsigned role, Format format>
  FUSEDOPT_GROUP_FN void decode_plain(bool is_staged) {
    if constexpr (kOccurs<format>) {
      using Codec = CodecOf<format>;
      PerLane<Elements<typename Codec::Stored>> stored;
      memory_.load(role, is_staged, stored);
      set_numbers<role>([&](unsigned lane, unsigned e) {
        return Codec::template decode<T>(stored.of(lane).of[e]);
      });
    }
  }

  template <unsigned role>
  FUSEDOPT_GROUP_FN void decode_master(bool is_staged) {
    if constexpr (role == kParam) {
      PerLane<Elements<uint16_t>> stored;
      PerLane<Elements<int16_t>> remainders;
      memory_.load(role, is_staged, stored);
      load_remainders(remainders);
      set_numbers<role>([&](unsigned lane, unsigned e) {
        return T(MasterBFloat16Codec::decode(stored.of(lane).of[e], remainders.of(lane).of[e]));
      });
    }
  }

  FUSEDOPT_GROUP_FN void load_remainders(PerLane<Elements<int16_t>>& to) const {
    constexpr unsigned place = Memory::kExtra.remainder;
    const bool is_staged = !memory_.has_packs(place, sizeof(int16_t));
    if (is_staged) memory_.bring(place, sizeof(int16_t));
    memory_.load(place, is_staged, to);
  }

  template <unsigned role>
  using CodeOf = Code<Rule::kStates[role - kFirstState].is_signed, OneNumber>;

  template <unsigned role>
  FUSEDOPT_GROUP_FN void decode_codes(bool is_staged) {
    if constexpr (role >= kFirstState) {
      PerLane<Elements<uint8_t>> codes;
      memory_.load(role, is_staged, codes);
      const float of_group = *memory_.scale(role);
      set_numbers<role>([&](unsigned lane, unsigned e) {
        return T(CodeOf<role>::decode(codes.of(lane).of[e]) * of_group);
      });
    }
  }

  // ---- the rule ----
  template <size_t... variant>
  FUSEDOPT_GROUP_FN void compute(const Scalars& scalars, std::index_sequence<variant...>) {
    (void)((rule_variant(memory_.kind().variant) == variant &&
            (compute_variant<variant>(scalars, std::make_index_sequence<Rule::kStates.size()>{}),
             true)) ||
           ...);
  }

  template <size_t variant, size_t... state>
  FUSEDOPT_GROUP_FN void compute_variant(const Scalars& scalars, std::index_sequence<state...>) {
    const bool has_l2_penalty = (memory_.kind().variant & kL2Penalty) != 0;
    const T divisor = grad_scale_ != nullptr ? static_cast<T>(*grad_scale_) : T(1);
    const double l1_threshold = memory_.epilogue().l1_threshold;
    memory_.warp().run([&](unsigned lane) {
      auto& of = numbers_.of(lane).of;
      for (unsigned e = 0; e < kLaneElements; ++e) {
        if (grad_scale_ != nullptr) of[kGrad][e] = unscale(of[kGrad][e], divisor);
        update_element<Rule, variant>(of[kParam][e], of[kGrad][e], has_l2_penalty, scalars,
                                      of[kFirstState + state][e]...);
        if (l1_threshold != 0) {
          of[kParam][e] = shrink(of[kParam][e], static_cast<T>(l1_threshold));
        }
      }
    });
  }

  // ---- from numbers to how they are stored ----
  template <unsigned role>
  FUSEDOPT_GROUP_FN void encode() const {
    const Format format = memory_.format(role);
    if (format == kNoFormat) return;
    if (format == Format::kMasterBFloat16) encode_remainders<role>();
    const auto size = static_cast<unsigned>(size_of(format));
    const bool is_staged = !memory_.has_packs(role, size);
    if (is_staged) memory_.begin_staging();
    switch (format) {
      case Format::kFloat32: encode_plain<role, Format::kFloat32>(is_staged); break;
      case Format::kFloat64: encode_plain<role, Format::kFloat64>(is_staged); break;
      case Format::kFloat16: encode_plain<role, Format::kFloat16>(is_staged); break;
      case Format::kBFloat16: encode_plain<role, Format::kBFloat16>(is_staged); break;
      case Format::kStochasticBFloat16: encode_stochastically<role>(is_staged); break;
      case Format::kMasterBFloat16: encode_master<role>(is_staged); break;
      case Format::kSigned8:
      case Format::kUnsigned8: encode_codes<role>(is_staged); break;
      default: break;
    }
    if (is_staged) memory_.take_away(role, size);
  }

  // Calls encode(number, lane, element) for all numbers of a role, and stores what it returns.
  template <unsigned role, class Stored, class Encode>
  FUSEDOPT_GROUP_FN void store_numbers(unsigned place, bool is_staged, Encode encode) const {
    PerLane<Elements<Stored>> elements;
    memory_.warp().run([&](unsigned lane) {
      for (unsigned e = 0; e < kLaneElements; ++e) {
        elements.of(lane).of[e] = encode(numbers_.of(lane).of[role][e], lane, e);
      }
    });
    memory_.store(place, is_staged, elements);
  }

  template <unsigned role, Format format>
  FUSEDOPT_GROUP_FN void encode_plain(bool is_staged) const {
    if constexpr (kOccurs<format>) {
      using Codec = CodecOf<format>;
      store_numbers<role, typename Codec::Stored>(
          role, is_staged, [](T number, unsigned, unsigned) { return Codec::encode(number); });
    }
  }

  template <unsigned role>
  FUSEDOPT_GROUP_FN void encode_stochastically(bool is_staged) const {
    if constexpr (role != kGrad) {
      PerLane<Elements<uint16_t>> random_bits;
      memory_.draw(role, random_bits);
      store_numbers<role, uint16_t>(role, is_staged, [&](T number, unsigned lane, unsigned e) {
        return StochasticBFloat16Codec::encode(static_cast<float>(number),
                                               random_bits.of(lane).of[e]);
      });
    }
  }

  template <unsigned role>
  FUSEDOPT_GROUP_FN void encode_master(bool is_staged) const {
    if constexpr (role == kParam) {
      store_numbers<role, uint16_t>(role, is_staged, [](T number, unsigned, unsigned) {
        return MasterBFloat16Codec::encode(static_cast<float>(number));
      });
    }
  }

  template <unsigned role>
  FUSEDOPT_GROUP_FN void encode_remainders() const {
    if constexpr (role == kParam) {
      constexpr unsigned place = Memory::kExtra.remainder;
      const bool is_staged = !memory_.has_packs(place, sizeof(int16_t));
      if (is_staged) memory_.begin_staging();
      store_numbers<role, int16_t>(place, is_staged, [](T number, unsigned, unsigned) {
        return MasterBFloat16Codec::remainder_of(static_cast<float>(number));
      });
      if (is_staged) memory_.take_away(place, sizeof(int16_t));
    }
  }

  template <unsigned role>
  FUSEDOPT_GROUP_FN void encode_codes(bool is_staged) const {
    if constexpr (role >= kFirstState) {
      PerLane<int32_t> largest;
      memory_.warp().run([&](unsigned lane) {
        int32_t of_lane = 0;
        for (unsigned e = 0; e < kLaneElements; ++e) {
          const int32_t magnitude =
              finite_magnitude_bits(static_cast<float>(numbers_.of(lane).of[role][e]));
          if (place_of(lane, e) < memory_.size() && magnitude > of_lane) of_lane = magnitude;
        }
        largest.of(lane) = of_lane;
      });
      const auto of_group = std::bit_cast<float>(memory_.warp().largest(largest));
      memory_.warp().run([&](unsigned lane) {
        if (lane == 0) *memory_.scale(role) = of_group;
      });
      const ScaleFactors factors(of_group);
      store_numbers<role, uint8_t>(role, is_staged, [&](T number, unsigned, unsigned) {
        const float within = within_scale(static_cast<float>(number), of_group);
        return static_cast<uint8_t>(CodeOf<role>::encode(within * factors.shift, factors.inverse));
      });
    }
  }

  // ---- what follows ----
  // Of the parameter as it is stored by now, which takes decoding it once more where that rounds.
  // Every lane reads what it has written itself.
  FUSEDOPT_GROUP_FN void average() {
    constexpr Format of_numbers = sizeof(T) == sizeof(double) ? Format::kFloat64 : Format::kFloat32;
    if (memory_.format(kParam) != of_numbers) decode<kParam>();
    if (memory_.format(kAveragePlace) == Format::kFloat64) return average_in<Format::kFloat64>();
    average_in<Format::kFloat32>();
  }

  template <Format format>
  FUSEDOPT_GROUP_FN void average_in() {
    if constexpr (kOccurs<format>) {
      using Codec = CodecOf<format>;
      constexpr auto size = static_cast<unsigned>(size_of(format));
      const bool is_staged = !memory_.has_packs(kAveragePlace, size);
      if (is_staged) memory_.bring(kAveragePlace, size);
      PerLane<Elements<typename Codec::Stored>> averages;
      memory_.load(kAveragePlace, is_staged, averages);
      const double weight = memory_.epilogue().average_weight;
      memory_.warp().run([&](unsigned lane) {
        for (unsigned e = 0; e < kLaneElements; ++e) {
          auto& stored = averages.of(lane).of[e];
          const T param = numbers_.of(lane).of[kParam][e];
          const T before = Codec::template decode<T>(stored);
          stored = Codec::encode(
              weight == 1 ? param : fusedopt::average(before, param, static_cast<T>(weight)));
        }
      });
      if (is_staged) memory_.begin_staging();
      memory_.store(kAveragePlace, is_staged, averages);
      if (is_staged) memory_.take_away(kAveragePlace, size);
    }
  }

  const float* grad_scale_;  // null: the gradients are not scaled
  Memory memory_;
  PerLane<Numbers> numbers_;
};

}  // namespace fusedopt::cuda
