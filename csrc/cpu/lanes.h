// Registers of numbers, for what compilers do not vectorise by themselves: look-ups in a short
// table, products of 32 bits with 64, and sums of squares in double.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

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
// exponents of the numbers from 2^-31 to 2, modulo 32.
struct EndsByExponent {
  static constexpr float kLeast = 0x1p-31f;

  float end[32] = {};      // that between this power of two and the next, or infinity
  int32_t below[32] = {};  // how many are below this power of two

  template <size_t count>
  explicit constexpr EndsByExponent(const float (&ends)[count]) {
    float power = kLeast;
    for (uint32_t exponent = 127 - 31; exponent < 128; ++exponent, power *= 2) {
      const size_t i = exponent % 32;
      end[i] = __builtin_inff();
      for (const float one : ends) {
        below[i] += one < power;
        if (one >= power && one < 2 * power) end[i] = one;
      }
    }
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
  FUSEDOPT_FN static Ints min(Ints numbers, int32_t other) {
    return Ints(_mm512_min_epi32(__m512i(numbers), _mm512_set1_epi32(other)));
  }
  template <const auto& ends>
  FUSEDOPT_FN static Ints count_below(Floats numbers) {
    static constexpr EndsByExponent kTable(ends);
    const __m512 bounded = __m512(max(numbers, kTable.kLeast));
    const __m512i exponents = _mm512_srli_epi32(_mm512_castps_si512(bounded), 23);
    const __m512 end = _mm512_permutex2var_ps(_mm512_loadu_ps(kTable.end), exponents,
                                              _mm512_loadu_ps(kTable.end + 16));
    const __m512i below = _mm512_permutex2var_epi32(_mm512_loadu_si512(kTable.below), exponents,
                                                    _mm512_loadu_si512(kTable.below + 16));
    const __mmask16 is_above = _mm512_cmp_ps_mask(bounded, end, _CMP_GT_OQ);
    return Ints(_mm512_mask_add_epi32(below, is_above, below, _mm512_set1_epi32(1)));
  }
#else
  FUSEDOPT_FN static Floats max(Floats numbers, float other) {
    return numbers > other ? numbers : Floats{} + other;
  }
  FUSEDOPT_FN static Floats min(Floats numbers, float other) {
    return numbers < other ? numbers : Floats{} + other;
  }
  FUSEDOPT_FN static Ints min(Ints numbers, int32_t other) {
    return numbers < other ? numbers : Ints{} + other;
  }
  template <const auto& ends>
  FUSEDOPT_FN static Ints count_below(Floats numbers) {
    Ints below = {};
    for (const float end : ends) below -= numbers > end;
    return below;
  }
#endif

  template <const float (&table)[8]>
  FUSEDOPT_FN static Floats look_up(Ints index) {
#if defined(__AVX512F__)
    const __m512 twice = _mm512_broadcast_f32x8(_mm256_loadu_ps(table));
    return Floats(_mm512_permutexvar_ps(__m512i(index), twice));
#elif defined(__AVX2__)
    return Floats(_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), __m256i(index)));
#else
    Floats found = Floats{} + table[7];
    for (int32_t i = 0; i < 7; ++i) found = index == i ? Floats{} + table[i] : found;
    return found;
#endif
  }
};

// As many codes of 8 bits.
#if defined(__AVX512F__)
FUSEDOPT_FN OneRegister::Ints load_codes(const uint8_t* from) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return OneRegister::Ints(_mm512_cvtepu8_epi32(codes));
}
FUSEDOPT_FN void store_codes(OneRegister::Ints codes, uint8_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(__m512i(codes)));
}
#else
FUSEDOPT_FN OneRegister::Ints load_codes(const uint8_t* from) {
  int32_t codes[kRegister];
  for (int64_t i = 0; i < kRegister; ++i) codes[i] = from[i];
  return load_lanes<OneRegister::Ints>(codes);
}
FUSEDOPT_FN void store_codes(OneRegister::Ints codes, uint8_t* to) {
  for (int64_t i = 0; i < kRegister; ++i) to[i] = static_cast<uint8_t>(codes[i]);
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
