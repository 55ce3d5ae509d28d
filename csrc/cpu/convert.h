// Conversions between formats and float, as many elements at a time as one register holds floats.
// Together with lanes.h the only code in the project that is specific to a CPU's instruction set.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/codec.h"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

// Ahead of a loop whose iterations are independent. A short one is one of kLanes iterations, which
// must not be unrolled before it is vectorised.
#if defined(__clang__)
#define FUSEDOPT_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#define FUSEDOPT_SHORT_LOOP FUSEDOPT_INDEPENDENT_ITERATIONS
#else
#define FUSEDOPT_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#define FUSEDOPT_SHORT_LOOP _Pragma("GCC ivdep") _Pragma("GCC unroll 1")
#endif

namespace fusedopt::cpu {

#if defined(__AVX512F__)
constexpr bool kConvertsFloat16 = true;
constexpr int64_t kRegister = 16;
FUSEDOPT_FN void decode_float16(const uint16_t* from, float* to) {
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
FUSEDOPT_FN void encode_float16(const float* from, uint16_t* to) {
  const __m512 wide = _mm512_loadu_ps(from);
  const __m256i narrow = _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(wide, wide, _CMP_UNORD_Q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_mask_mov_epi16(narrow, is_nan, _mm256_set1_epi16(kNarrowNan)));
}
#elif defined(__F16C__)
constexpr bool kConvertsFloat16 = true;
constexpr int64_t kRegister = 8;
FUSEDOPT_FN void decode_float16(const uint16_t* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
FUSEDOPT_FN void encode_float16(const float* from, uint16_t* to) {
  const __m256 wide = _mm256_loadu_ps(from);
  const __m256 is_nan = _mm256_cmp_ps(wide, wide, _CMP_UNORD_Q);
  // The conversion keeps sign and upper bits of a NaN, which makes of this one kNarrowNan.
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph(_mm256_blendv_ps(wide, nan, is_nan), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__ARM_NEON)
constexpr bool kConvertsFloat16 = true;
constexpr int64_t kRegister = 4;
FUSEDOPT_FN void decode_float16(const uint16_t* from, float* to) {
  vst1q_f32(to, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
}
FUSEDOPT_FN void encode_float16(const float* from, uint16_t* to) {
  const float32x4_t wide = vld1q_f32(from);
  const uint16x4_t is_number = vmovn_u32(vceqq_f32(wide, wide));
  const uint16x4_t narrow = vreinterpret_u16_f16(vcvt_f16_f32(wide));
  vst1_u16(to, vbsl_u16(is_number, narrow, vdup_n_u16(kNarrowNan)));
}
#else
// The portable forms, which compilers vectorise.
constexpr bool kConvertsFloat16 = false;
constexpr int64_t kRegister = 4;
FUSEDOPT_FN void decode_float16(const uint16_t*, float*) {}
FUSEDOPT_FN void encode_float16(const float*, uint16_t*) {}
#endif

// How many elements are decoded, computed and encoded together: as many in 16 bits as fill a
// register.
constexpr int64_t kLanes = 2 * kRegister;

template <class Codec, class T>
constexpr bool kIsConvertedByRegister =
    kConvertsFloat16 && std::is_base_of_v<Float16Codec, Codec> && std::is_same_v<T, float>;

template <class Codec, class T>
FUSEDOPT_FN void decode_lanes(const typename Codec::Stored* from, T* to) {
  if constexpr (kIsConvertedByRegister<Codec, T>) {
    for (int64_t i = 0; i < kLanes; i += kRegister) decode_float16(from + i, to + i);
  } else {
    FUSEDOPT_SHORT_LOOP
    for (int64_t i = 0; i < kLanes; ++i) to[i] = Codec::template decode<T>(from[i]);
  }
}

template <class Codec, class T>
FUSEDOPT_FN void encode_lanes(const T* from, typename Codec::Stored* to) {
  if constexpr (kIsConvertedByRegister<Codec, T>) {
    for (int64_t i = 0; i < kLanes; i += kRegister) encode_float16(from + i, to + i);
  } else {
    FUSEDOPT_SHORT_LOOP
    for (int64_t i = 0; i < kLanes; ++i) to[i] = Codec::encode(from[i]);
  }
}

// The same for bfloat16 where the order does not matter, as long as all operands have the same: two
// elements in one word of 32 bits, of which the first goes to the first half of the numbers and the
// other one to the second. On registers this shuffles nothing.
constexpr uint32_t kUpperHalf = 0xffff0000;
static_assert(std::endian::native == std::endian::little);

FUSEDOPT_FN void decode_pairs(const uint16_t* from, float* to) {
  FUSEDOPT_SHORT_LOOP
  for (int64_t i = 0; i < kRegister; ++i) {
    uint32_t word;
    std::memcpy(&word, from + 2 * i, sizeof word);
    to[i] = std::bit_cast<float>(word << 16);
    to[kRegister + i] = std::bit_cast<float>(word & kUpperHalf);
  }
}

FUSEDOPT_FN void encode_pairs(const float* from, uint16_t* to) {
  FUSEDOPT_SHORT_LOOP
  for (int64_t i = 0; i < kRegister; ++i) {
    const uint32_t word = BFloat16Codec::encode_in_upper_half(from[i]) >> 16 |
                          (BFloat16Codec::encode_in_upper_half(from[kRegister + i]) & kUpperHalf);
    std::memcpy(to + 2 * i, &word, sizeof word);
  }
}

}  // namespace fusedopt::cpu
