// Conversions between float16 and float, a register's worth at a time where the instruction set has
// them. The only code in the project that is specific to a CPU's instruction set.
#pragma once

#include <cstdint>

#include "core/element.h"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace fusedopt::cpu {

// How many float16 one register converts; widen and narrow exactly that many.
#if defined(__AVX512F__)
constexpr int64_t kFloat16Lanes = 16;
FUSEDOPT_FN void widen_float16_register(const uint16_t* from, float* to) {
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
FUSEDOPT_FN void narrow_float16_register(const float* from, uint16_t* to) {
  const __m512 wide = _mm512_loadu_ps(from);
  const __m256i narrow = _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(wide, wide, _CMP_UNORD_Q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_mask_mov_epi16(narrow, is_nan, _mm256_set1_epi16(kNarrowNan)));
}
#elif defined(__F16C__)
constexpr int64_t kFloat16Lanes = 8;
FUSEDOPT_FN void widen_float16_register(const uint16_t* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
FUSEDOPT_FN void narrow_float16_register(const float* from, uint16_t* to) {
  const __m256 wide = _mm256_loadu_ps(from);
  const __m256 is_nan = _mm256_cmp_ps(wide, wide, _CMP_UNORD_Q);
  // The conversion keeps sign and upper bits of a NaN, which makes of this one kNarrowNan.
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph(_mm256_blendv_ps(wide, nan, is_nan), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__ARM_NEON)
constexpr int64_t kFloat16Lanes = 4;
FUSEDOPT_FN void widen_float16_register(const uint16_t* from, float* to) {
  vst1q_f32(to, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
}
FUSEDOPT_FN void narrow_float16_register(const float* from, uint16_t* to) {
  const float32x4_t wide = vld1q_f32(from);
  const uint16x4_t is_number = vmovn_u32(vceqq_f32(wide, wide));
  const uint16x4_t narrow = vreinterpret_u16_f16(vcvt_f16_f32(wide));
  vst1_u16(to, vbsl_u16(is_number, narrow, vdup_n_u16(kNarrowNan)));
}
#else
constexpr int64_t kFloat16Lanes = 1;
FUSEDOPT_FN void widen_float16_register(const uint16_t* from, float* to) {
  *to = widen(Float16{*from});
}
FUSEDOPT_FN void narrow_float16_register(const float* from, uint16_t* to) {
  *to = narrow<Float16>(*from).bits;
}
#endif

}  // namespace fusedopt::cpu
