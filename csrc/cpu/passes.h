// The passes over one block of an operand: from how it is stored to numbers of the arithmetic, and
// back. Included by each instruction set's translation unit alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "core/codes.h"
#include "core/random.h"
#include "cpu/convert.h"
#include "cpu/kernels.h"
#include "cpu/lanes.h"
#include "rules/element.h"

namespace fusedopt::cpu {
namespace {

// Calls f with the number of each part of a block and the elements that it begins and ends with.
template <class F>
FUSEDOPT_FN void for_each_part(int64_t n, F f) {
  for (int64_t first = 0, part = 0; first < n; first += kScaledBlock, ++part) {
    f(part, first, std::min(first + kScaledBlock, n));
  }
}

// The same, asking for a piece of the memory ahead with each part.
template <class F>
FUSEDOPT_FN void for_each_part(const StoredBlock& block, int64_t n, F f) {
  for_each_part(n, [&](int64_t part, int64_t begin, int64_t end) {
    block.ask_ahead();
    f(part, begin, end);
  });
}

template <Format format, class T>
void decode_numbers(const StoredBlock& from, T* numbers, int64_t n) {
  for_each_part(from, n, [&](int64_t, int64_t i, int64_t end) {
    for (; i + kLanes <= end; i += kLanes) decode_elements<format, kLanes>(from, i, numbers + i);
    for (; i < end; ++i) decode_elements<format, 1>(from, i, numbers + i);
  });
}

template <Format format, class T>
void encode_numbers(const T* numbers, const StoredBlock& to, int64_t n) {
  for_each_part(to, n, [&](int64_t, int64_t i, int64_t end) {
    for (; i + kLanes <= end; i += kLanes) encode_elements<format, kLanes>(numbers + i, to, i);
    for (; i < end; ++i) encode_elements<format, 1>(numbers + i, to, i);
  });
}

// A block's numbers as floats: themselves, or copies.
template <class T>
const float* as_floats(const T* numbers, float (&floats)[kBlock], int64_t n) {
  if constexpr (std::is_same_v<T, float>) {
    return numbers;
  } else {
    for (int64_t i = 0; i < n; ++i) floats[i] = static_cast<float>(numbers[i]);
    return floats;
  }
}

// Calls f with where so many codes may be read or written, whichever Byte allows, and the number of
// the first one, for all of them. Of the last ones those behind the end mean nothing.
template <int64_t count, class Byte, class F>
FUSEDOPT_FN void for_each_few(Byte* codes, int64_t begin, int64_t end, F f) {
  int64_t i = begin;
  for (; i + count <= end; i += count) f(codes + i, i);
  if (i == end) return;
  const auto rest = static_cast<size_t>(end - i);
  uint8_t copies[count] = {};
  if constexpr (std::is_const_v<Byte>) std::memcpy(copies, codes + i, rest);
  f(copies, i);
  if constexpr (!std::is_const_v<Byte>) std::memcpy(codes + i, copies, rest);
}

// Whole registers: behind the n-th number there has to be room for what means nothing.
template <bool is_signed, class T>
void decode_codes(const StoredBlock& from, T* numbers, int64_t n) {
  const auto* const codes = static_cast<const uint8_t*>(from.elements);
  for_each_part(from, n, [&](int64_t part, int64_t begin, int64_t end) {
    const float scale = from.scales[part];
    for_each_few<kRegister>(codes, begin, end, [&](const uint8_t* some, int64_t i) {
      const auto decoded = Code<is_signed, OneRegister>::decode(load_codes(some)) * scale;
      if constexpr (std::is_same_v<T, float>) {
        store_lanes(decoded, numbers + i);
      } else {
        for (int64_t l = 0; l < kRegister; ++l) numbers[i + l] = decoded[l];
      }
    });
  });
}

#if defined(FUSEDOPT_VBMI)
// The same by look-ups, which is faster.
template <bool is_signed>
FUSEDOPT_VBMI void look_up_block(const StoredBlock& from, void* to, int64_t n) {
  const auto* const codes = static_cast<const uint8_t*>(from.elements);
  auto* const numbers = static_cast<float*>(to);
  static_assert(kScaledBlock % kCodesLookedUp == 0);
  for (int64_t i = 0; i < n; i += kCodesLookedUp) {
    if (i % kScaledBlock == 0) from.ask_ahead();
    const float scale = from.scales[i / kScaledBlock];
    if (n - i >= kCodesLookedUp) {
      look_up_codes<is_signed>(codes + i, scale, numbers + i);
    } else {
      uint8_t copies[kCodesLookedUp] = {};
      std::memcpy(copies, codes + i, static_cast<size_t>(n - i));
      look_up_codes<is_signed>(copies, scale, numbers + i);
    }
  }
}
#endif

// The largest of the bits of magnitudes, which a function takes of each number.
template <class Magnitude>
FUSEDOPT_FN int32_t largest(const float* begin, const float* end, Magnitude magnitude) {
  int32_t found = 0;
  for (; begin != end; ++begin) found = std::max(found, magnitude(*begin));
  return found;
}

// That of a part's n numbers, of which the largest magnitude is known.
FUSEDOPT_FN PartRange range_of(int32_t largest_magnitude, const float* numbers, int64_t n) {
  const bool is_finite = largest_magnitude < kInfinity;
  if (!is_finite) largest_magnitude = largest(numbers, numbers + n, finite_magnitude_bits);
  return {.scale = std::bit_cast<float>(largest_magnitude), .is_finite = is_finite};
}

template <class T>
void find_ranges(const void* numbers, int64_t n, PartRange* ranges) {
  float copies[kBlock];
  const float* const floats = as_floats(static_cast<const T*>(numbers), copies, n);
  for_each_part(n, [&](int64_t part, int64_t begin, int64_t end) {
    const int32_t of_all = largest(floats + begin, floats + end, magnitude_bits);
    ranges[part] = range_of(of_all, floats + begin, end - begin);
  });
}

template <bool is_signed, class T>
void encode_codes(const T* numbers, const StoredBlock& to, int64_t n) {
  float copies[kBlock], inverses[kBlockParts];
  const float* floats = as_floats(numbers, copies, n);
  bool is_usual = true;
  for_each_part(n, [&](int64_t part, int64_t, int64_t) {
    const ScaleFactors factors(to.ranges[part].scale);
    inverses[part] = factors.inverse;
    to.scales[part] = to.ranges[part].scale;
    is_usual = is_usual && to.ranges[part].is_finite && factors.shift == 1.0f;
  });
  if (!is_usual) {
    for_each_part(n, [&](int64_t part, int64_t begin, int64_t end) {
      const float scale = to.ranges[part].scale, shift = ScaleFactors(scale).shift;
      for (int64_t i = begin; i < end; ++i) copies[i] = within_scale(floats[i], scale) * shift;
    });
    floats = copies;
  }
  using Of = Code<is_signed, OneRegister>;
  auto* const codes = static_cast<uint8_t*>(to.elements);
  for_each_part(to, n, [&](int64_t part, int64_t begin, int64_t end) {
    for_each_few<kCodesStored>(codes, begin, end, [&](uint8_t* some, int64_t i) {
      OneRegister::Ints places[kCodesStored / kRegister];
      for (OneRegister::Ints& of_register : places) {
        of_register = Of::place(load_lanes<OneRegister::Floats>(floats + i), inverses[part]);
        i += kRegister;
      }
      store_codes(places, Of::kCodeOfPlaceZero, some);
    });
  });
}

template <Format format, class T>
void decode_block(const StoredBlock& from, void* to, int64_t n) {
  T* const numbers = static_cast<T*>(to);
  if constexpr (is_scaled(format)) {
    decode_codes<format == Format::kSigned8>(from, numbers, n);
  } else {
    decode_numbers<format>(from, numbers, n);
  }
}

template <Format format, class T>
void encode_block(const void* from, const StoredBlock& to, int64_t n) {
  const T* const numbers = static_cast<const T*>(from);
  if constexpr (is_scaled(format)) {
    encode_codes<format == Format::kSigned8>(numbers, to, n);
  } else {
    encode_numbers<format>(numbers, to, n);
  }
}

template <class T>
void unscale_block(void* grads, double scale, int64_t n) {
  T* const grad = static_cast<T*>(grads);
  FUSEDOPT_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) grad[i] = unscale(grad[i], static_cast<T>(scale));
}

template <class T>
void shrink_block(void* params, double threshold, int64_t n) {
  T* const param = static_cast<T*>(params);
  const T by = static_cast<T>(threshold);
  FUSEDOPT_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) param[i] = shrink(param[i], by);
}

template <class T>
void average_block(void* averages, const void* params, double weight, int64_t n) {
  T* const numbers = static_cast<T*>(averages);
  const T* const param = static_cast<const T*>(params);
  const T of_param = static_cast<T>(weight);
  FUSEDOPT_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) numbers[i] = average(numbers[i], param[i], of_param);
}

// The counters of a group, as many as registers hold, a few registers at a time: one after the
// other they would wait for their products.
void draw_group(const Draws& draws, uint32_t operand, int64_t group, uint16_t* random_bits) {
  constexpr int64_t kHalf = kDrawGroup / 2;
  constexpr int64_t kTogether = std::min<int64_t>(4, kDrawCalls / kWordLanes);
  const DrawCounter counter(draws, operand, group);
  uint64_t numbers[kWordLanes];
  for (int64_t lane = 0; lane < kWordLanes; ++lane) numbers[lane] = static_cast<uint64_t>(lane);
  const auto first_calls = load_lanes<WordLanes>(numbers);
  for (int64_t call = 0; call < kDrawCalls; call += kTogether * kWordLanes) {
    WordLanes words[4][kTogether];
    for (int64_t t = 0; t < kTogether; ++t) {
      for (int w = 0; w < 4; ++w) words[w][t] = WordLanes{} + uint64_t{counter.words[w]};
      words[0][t] += first_calls + static_cast<uint64_t>(call + t * kWordLanes);
    }
    philox(words, draws.seed, MultiplyWords{});
    for (int64_t pair = 0; pair < 2; ++pair) {
      for (int64_t t = 0; t < kTogether; ++t) {
        const WordLanes lower = words[2 * pair][t] & uint64_t{0xffffffff};
        const WordLanes bits = lower | words[2 * pair + 1][t] << 32;
        store_lanes(bits, random_bits + pair * kHalf + 4 * (call + t * kWordLanes));
      }
    }
  }
}

const uint16_t* draw_random_bits(const Draws& draws, uint32_t operand, int64_t n,
                                 uint16_t* random_bits) {
  const int64_t offset = draws.first % kDrawGroup;
  int64_t group = draws.first / kDrawGroup;
  for (int64_t drawn = 0; drawn < offset + n; drawn += kDrawGroup) {
    draw_group(draws, operand, group++, random_bits + drawn);
  }
  return random_bits + offset;
}

}  // namespace
}  // namespace fusedopt::cpu
