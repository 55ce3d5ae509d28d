// Registers of numbers, for what compilers do not vectorise by themselves: look-ups in a short
// table, products of 32 bits with 64, and sums of squares in double.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "core/codes.h"
#include "core/one_number.h"
#include "cpu/convert.h"

#if defined(__SSE2__) && !defined(__AVX2__)
#include <emmintrin.h>
#endif

namespace fusedopt::cpu {

template <class Lanes, class Number>
FUSEDOPT_FN Lanes load_lanes(const Number* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <class Lanes, class Number>
FUSEDOPT_FN void store_lanes(Lanes lanes, Number* to) {
  std::memcpy(to, &lanes, sizeof lanes);
}

// Ascending ends, of which every power of two has one at most between itself and the next, by the
// exponents of numbers from 2^-31 to 2, modulo 32: what added to the bits of a number makes their
// upper part how many of the ends are below it, plus a constant.
struct EndsByExponent {
  static constexpr uint32_t kOneExponent = 1 << 23;

  uint32_t addend[32] = {};

  template <size_t count>
  constexpr EndsByExponent(const std::array<float, count>& ends, uint32_t constant) {
    float power = 0x1p-31f;
    for (uint32_t exponent = 127 - 31; exponent < 128; ++exponent, power *= 2) {
      uint32_t& of_exponent = addend[exponent % 32];
      of_exponent = (constant - exponent) * kOneExponent;
      for (const float end : ends) {
        if (end < power) of_exponent += kOneExponent;
        // A number above the end carries.
        if (end >= power && end < 2 * power) of_exponent += kOneExponent - 1 - mantissa_of(end);
      }
    }
  }

 private:
  static constexpr uint32_t mantissa_of(float number) {
    return std::bit_cast<uint32_t>(number) % kOneExponent;
  }
};

// Eight ascending ends at most, nearly as far from one another as decades. The first bits of a
// number grow about as its logarithm does, so that their product with a factor guesses how many of
// the ends are below it, plus a constant: right, or one too few.
struct EndsByGuess {
  static constexpr int kBits = 16;

  int32_t addend, factor;
  // What a number is above where the guess is one too few, by the guess modulo 8. Where there are
  // fewer ends than eight it may be for numbers below the first, too.
  float end[8] = {};

  template <size_t count>
  constexpr EndsByGuess(const std::array<float, count>& ends, int32_t constant) {
    const int32_t first = first_bits(ends[0]), last = first_bits(ends[count - 1]);
    factor = (static_cast<int32_t>(count - 1) << kBits) / (last - first);
    addend = ((2 * constant + 1) << (kBits - 1)) / factor - first;
    for (int32_t i = 0; const float each : ends) end[(constant + i++) % 8] = each;
  }

  // Whether that holds for the least number, and at each end and just above: then it does between.
  template <size_t count>
  constexpr bool is_right(const std::array<float, count>& ends, int32_t constant) const {
    for (int32_t guessed = constant; const float each : ends) {
      const float above = std::bit_cast<float>(std::bit_cast<int32_t>(each) + 1);
      if (guess(each) != guessed || guess(above) != guessed) return false;
      ++guessed;
    }
    return guess(0x1p-23f) >= constant - (count < 8) && guess(2.0f) < constant + int32_t{count};
  }

 private:
  static constexpr int32_t first_bits(float number) {
    return std::bit_cast<int32_t>(number) >> kBits;
  }
  constexpr int32_t guess(float number) const {
    return (first_bits(number) + addend) * factor >> kBits;
  }
};

// The operations of core/codes.h on as many floats as fill a register.
struct OneRegister {
  using Floats __attribute__((vector_size(kRegister * sizeof(float)))) = float;
  using Ints __attribute__((vector_size(kRegister * sizeof(int32_t)))) = int32_t;

  FUSEDOPT_FN static Floats as_floats(Ints bits) { return Floats(bits); }
  FUSEDOPT_FN static Ints as_ints(Floats numbers) { return Ints(numbers); }
  FUSEDOPT_FN static Floats to_floats(Ints numbers) {
    return __builtin_convertvector(numbers, Floats);
  }
  FUSEDOPT_FN static Ints to_ints(Floats numbers) { return __builtin_convertvector(numbers, Ints); }

#if defined(__AVX512F__)
  FUSEDOPT_FN static Floats max(Floats numbers, float other) {
    return Floats(_mm512_max_ps(__m512(numbers), _mm512_set1_ps(other)));
  }
  FUSEDOPT_FN static Floats min(Floats numbers, float other) {
    return Floats(_mm512_min_ps(__m512(numbers), _mm512_set1_ps(other)));
  }
  FUSEDOPT_FN static Ints max(Ints numbers, Ints others) {
    return Ints(_mm512_max_epi32(__m512i(numbers), __m512i(others)));
  }
  FUSEDOPT_FN static Floats max_magnitude(Floats numbers, float other) {
    constexpr int kLargerMagnitude = 0b11, kWithoutSign = 0b10 << 2;
    return Floats(
        _mm512_range_ps(__m512(numbers), _mm512_set1_ps(other), kLargerMagnitude | kWithoutSign));
  }
  template <const auto& ends, int32_t exponent>
  FUSEDOPT_FN static Floats power_of_two(Floats numbers) {
    static constexpr EndsByExponent kTable(ends, 127 + exponent);
    const __m512i bits = __m512i(numbers);
    const __m512i addends =
        _mm512_permutex2var_epi32(_mm512_loadu_si512(kTable.addend), _mm512_srli_epi32(bits, 23),
                                  _mm512_loadu_si512(kTable.addend + 16));
    return as_floats(Ints(_mm512_add_epi32(bits, addends)) & 0x7f800000);
  }
#else
#if defined(__AVX2__)
  FUSEDOPT_FN static Floats max(Floats numbers, float other) {
    return Floats(_mm256_max_ps(__m256(numbers), _mm256_set1_ps(other)));
  }
  FUSEDOPT_FN static Floats min(Floats numbers, float other) {
    return Floats(_mm256_min_ps(__m256(numbers), _mm256_set1_ps(other)));
  }
  FUSEDOPT_FN static Ints max(Ints numbers, Ints others) {
    return Ints(_mm256_max_epi32(__m256i(numbers), __m256i(others)));
  }
#else
  FUSEDOPT_FN static Floats max(Floats numbers, float other) {
    return numbers > other ? numbers : Floats{} + other;
  }
  FUSEDOPT_FN static Floats min(Floats numbers, float other) {
    return numbers < other ? numbers : Floats{} + other;
  }
  FUSEDOPT_FN static Ints max(Ints numbers, Ints others) {
    return numbers > others ? numbers : others;
  }
#endif
  FUSEDOPT_FN static Floats max_magnitude(Floats numbers, float other) {
    return max(as_floats(as_ints(numbers) & kMagnitude), other);
  }
  template <const auto& ends, int32_t exponent>
  FUSEDOPT_FN static Floats power_of_two(Floats numbers) {
#if defined(__AVX2__)
    static constexpr EndsByGuess kTable(ends, 127 + exponent);
    static_assert(kTable.is_right(ends, 127 + exponent));
    const Ints moved = (as_ints(numbers) >> kTable.kBits) + kTable.addend;
    const __m256i guess = _mm256_mulhi_epu16(__m256i(moved), _mm256_set1_epi32(kTable.factor));
    Ints found = Ints(guess);
    found -= numbers > look_up<kTable.end>(found);
#else
    Ints found = Ints{} + (127 + exponent);
    for (const float end : ends) found -= numbers > end;
#endif
    return as_floats(found << 23);
  }
#endif

  FUSEDOPT_FN static int32_t largest(Ints numbers) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_epi32(__m512i(numbers));
#else
    int32_t found = numbers[0];
    for (int64_t i = 1; i < kRegister; ++i) found = found > numbers[i] ? found : numbers[i];
    return found;
#endif
  }

  template <const float (&table)[8]>
  FUSEDOPT_FN static Floats look_up(Ints index) {
#if defined(__AVX512F__)
    const __m512 twice = _mm512_broadcast_f32x8(_mm256_loadu_ps(table));
    return Floats(_mm512_permutexvar_ps(__m512i(index), twice));
#elif defined(__AVX2__)
    return Floats(_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), __m256i(index)));
#else
    Floats found = Floats{} + table[7];
    for (int32_t i = 0; i < 7; ++i) found = (index & 7) == i ? Floats{} + table[i] : found;
    return found;
#endif
  }
};

// As many codes of 8 bits.
FUSEDOPT_FN OneRegister::Ints load_codes(const uint8_t* from) {
#if defined(__AVX512F__)
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return OneRegister::Ints(_mm512_cvtepu8_epi32(codes));
#elif defined(__AVX2__)
  return OneRegister::Ints(_mm256_cvtepu8_epi32(_mm_loadu_si64(from)));
#else
  int32_t codes[kRegister];
  for (int64_t i = 0; i < kRegister; ++i) codes[i] = from[i];
  return load_lanes<OneRegister::Ints>(codes);
#endif
}

#if defined(__AVX512F__)
// What works quarter by quarter takes its words from the four quarters, or leaves them there: the
// first of each, the second, and so on, which is the same order the other way round.
FUSEDOPT_FN __m512i by_quarters(__m512i words) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, words);
}
#endif

// Four registers of integers plus a number, saturated to 8 bits. Wide registers are packed quarter
// by quarter, or half by half, which puts them out of order.
constexpr int64_t kCodesStored = 4 * kRegister;
FUSEDOPT_FN void store_codes(const OneRegister::Ints (&places)[4], int16_t offset, uint8_t* to) {
#if defined(__AVX512F__)
  const auto pack = [&](int i) {
    return _mm512_add_epi16(_mm512_packs_epi32(__m512i(places[i]), __m512i(places[i + 1])),
                            _mm512_set1_epi16(offset));
  };
  store_lanes(by_quarters(_mm512_packus_epi16(pack(0), pack(2))), to);
#elif defined(__AVX2__)
  const auto pack = [&](int i) {
    return _mm256_add_epi16(_mm256_packs_epi32(__m256i(places[i]), __m256i(places[i + 1])),
                            _mm256_set1_epi16(offset));
  };
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i codes = _mm256_packus_epi16(pack(0), pack(2));
  store_lanes(_mm256_permutevar8x32_epi32(codes, order), to);
#elif defined(__SSE2__)
  const auto pack = [&](int i) {
    return _mm_add_epi16(_mm_packs_epi32(__m128i(places[i]), __m128i(places[i + 1])),
                         _mm_set1_epi16(offset));
  };
  store_lanes(_mm_packus_epi16(pack(0), pack(2)), to);
#elif defined(__ARM_NEON)
  const auto pack = [&](int i) {
    const int16x4_t lower = vqmovn_s32(int32x4_t(places[i]));
    const int16x4_t upper = vqmovn_s32(int32x4_t(places[i + 1]));
    return vaddq_s16(vcombine_s16(lower, upper), vdupq_n_s16(offset));
  };
  store_lanes(vcombine_u8(vqmovun_s16(pack(0)), vqmovun_s16(pack(2))), to);
#else
  for (int64_t i = 0; i < kCodesStored; ++i) {
    const int32_t code = places[i / kRegister][i % kRegister] + offset;
    to[i] = static_cast<uint8_t>(code < 0 ? 0 : code > 255 ? 255 : code);
  }
#endif
}

#if defined(__AVX512F__)
// For the function that it stands ahead of: what needs AVX-512 VBMI, which the others do without.
#define FUSEDOPT_VBMI __attribute__((target("avx512vbmi")))

// The values of all codes, relative to their scale: the first byte of each, the second, and so on.
template <bool is_signed>
struct ValuesOfCodes {
  alignas(64) uint8_t bytes[sizeof(float)][256];

  constexpr ValuesOfCodes() {
    for (int32_t code = 0; code < 256; ++code) {
      const auto bits = std::bit_cast<uint32_t>(Code<is_signed, OneNumber>::decode(code));
      for (uint32_t i = 0; i < sizeof bits; ++i) {
        bytes[i][code] = static_cast<uint8_t>(bits >> 8 * i);
      }
    }
  }
};

FUSEDOPT_VBMI FUSEDOPT_FN __m512i look_up_bytes(const uint8_t (&table)[256], __m512i index) {
  const __m512i lower =
      _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
  const __m512i upper = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), index,
                                                 _mm512_load_si512(table + 192));
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), lower, upper);
}

// The numbers of 64 codes: each byte looked up, and the four of a number put side by side.
constexpr int64_t kCodesLookedUp = 64;
template <bool is_signed>
FUSEDOPT_VBMI FUSEDOPT_FN void look_up_codes(const uint8_t* codes, float scale, float* numbers) {
  static constexpr ValuesOfCodes<is_signed> kValues;
  const __m512i some = by_quarters(_mm512_loadu_si512(codes));
  const __m512i bytes[] = {
      look_up_bytes(kValues.bytes[0], some), look_up_bytes(kValues.bytes[1], some),
      look_up_bytes(kValues.bytes[2], some), look_up_bytes(kValues.bytes[3], some)};
  const __m512i lower[] = {_mm512_unpacklo_epi8(bytes[0], bytes[1]),
                           _mm512_unpackhi_epi8(bytes[0], bytes[1])};
  const __m512i upper[] = {_mm512_unpacklo_epi8(bytes[2], bytes[3]),
                           _mm512_unpackhi_epi8(bytes[2], bytes[3])};
  for (int64_t i = 0; i < 2; ++i) {
    const __m512i first = _mm512_unpacklo_epi16(lower[i], upper[i]);
    const __m512i second = _mm512_unpackhi_epi16(lower[i], upper[i]);
    store_lanes(OneRegister::Floats(first) * scale, numbers + 2 * i * kRegister);
    store_lanes(OneRegister::Floats(second) * scale, numbers + (2 * i + 1) * kRegister);
  }
}
#endif

// Integers of 64 bits that fill a register.
constexpr int64_t kWordLanes = kRegister / 2;
using WordLanes __attribute__((vector_size(kWordLanes * sizeof(uint64_t)))) = uint64_t;

// The products of their lower halves with a factor, of 64 bits.
struct MultiplyWords {
  FUSEDOPT_FN WordLanes operator()(WordLanes words, uint32_t factor) const {
    const WordLanes factors = WordLanes{} + uint64_t{factor};
#if defined(__AVX512F__)
    return WordLanes(_mm512_mul_epu32(__m512i(words), __m512i(factors)));
#elif defined(__AVX2__)
    return WordLanes(_mm256_mul_epu32(__m256i(words), __m256i(factors)));
#elif defined(__SSE2__)
    return WordLanes(_mm_mul_epu32(__m128i(words), __m128i(factors)));
#elif defined(__ARM_NEON)
    return WordLanes(vmull_u32(vmovn_u64(uint64x2_t(words)), vmovn_u64(uint64x2_t(factors))));
#else
    return (words & uint64_t{0xffffffff}) * factors;
#endif
  }
};

// Doubles that fill a register, and as many numbers of another type.
constexpr int64_t kDoubles = kRegister / 2;
template <class T>
using OfDoubles __attribute__((vector_size(kDoubles * sizeof(T)))) = T;
using Doubles = OfDoubles<double>;

// As many elements of 16 bits, where that is faster than to decode them to floats in memory first.
#if defined(__AVX512F__)
constexpr bool kDecodesToDoubles = true;
FUSEDOPT_FN Doubles decode_to_doubles(BFloat16Codec, const uint16_t* from) {
  const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(stored), 16);
  return Doubles(_mm512_cvtps_pd(_mm256_castsi256_ps(bits)));
}
FUSEDOPT_FN Doubles decode_to_doubles(Float16Codec, const uint16_t* from) {
  const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return Doubles(_mm512_cvtps_pd(_mm256_cvtph_ps(stored)));
}
#else
constexpr bool kDecodesToDoubles = false;
#endif

// sum + x * x, where the product is exact: then it has the same bits if it is fused.
FUSEDOPT_FN Doubles add_exact_square(Doubles sum, Doubles x) {
#if defined(__AVX512F__)
  return Doubles(_mm512_fmadd_pd(__m512d(x), __m512d(x), __m512d(sum)));
#else
  return sum + x * x;
#endif
}

}  // namespace fusedopt::cpu
