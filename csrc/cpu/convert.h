// Conversions between 16-bit floats and float, a register's worth at a time where the instruction
// set has them. The only code in the project that is specific to an instruction set.
#pragma once

#include <bit>
#include <cstdint>

#include "rules/math.h"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace fusedopt::cpu {

// Branch-free, so that compilers vectorise the loops over them.

FUSEDOPT_FN float widen_bfloat16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

FUSEDOPT_FN uint16_t narrow_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  return static_cast<uint16_t>(is_nan ? (bits >> 16 | 0x40) : rounded);
}

FUSEDOPT_FN float widen_float16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = bits & 0x7fff;
  // Shifted into place the exponent is 112 too small; a product with 2^112 is exact and makes
  // subnormals right as well. Infinity and NaN keep their exponent of all ones.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude << 13 | 0x7f800000;
  const uint32_t finite = std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(sign | (magnitude >= 0x7c00 ? special : finite));
}

FUSEDOPT_FN uint16_t narrow_float16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Normal: rebias, round at bit 13; a carry into the exponent is right, up to infinity.
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Subnormal: adding 0.5 lets the addition round at 2^-24; what it leaves below 0.5 is the result.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) -
                             std::bit_cast<uint32_t>(0.5f);
  const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  const uint32_t overflowed = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  return static_cast<uint16_t>(sign | (magnitude >= 0x477ff000 ? overflowed : finite));
}

// How many float16 one register converts; widen and narrow exactly that many.
#if defined(__AVX512F__)
constexpr int64_t kFloat16Lanes = 16;
FUSEDOPT_FN void widen_float16_register(const uint16_t* from, float* to) {
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
FUSEDOPT_FN void narrow_float16_register(const float* from, uint16_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
constexpr int64_t kFloat16Lanes = 8;
FUSEDOPT_FN void widen_float16_register(const uint16_t* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
FUSEDOPT_FN void narrow_float16_register(const float* from, uint16_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__ARM_NEON)
constexpr int64_t kFloat16Lanes = 4;
FUSEDOPT_FN void widen_float16_register(const uint16_t* from, float* to) {
  vst1q_f32(to, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
}
FUSEDOPT_FN void narrow_float16_register(const float* from, uint16_t* to) {
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(from))));
}
#else
constexpr int64_t kFloat16Lanes = 1;
FUSEDOPT_FN void widen_float16_register(const uint16_t* from, float* to) {
  *to = widen_float16(*from);
}
FUSEDOPT_FN void narrow_float16_register(const float* from, uint16_t* to) {
  *to = narrow_float16(*from);
}
#endif

}  // namespace fusedopt::cpu
