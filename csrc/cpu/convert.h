// Conversions between formats and float, as many elements at a time as one register holds floats.
// Together with lanes.h the only code in the project that is specific to a CPU's instruction set.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/codec.h"
#include "cpu/kernels.h"

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

// As many elements of an operand, one or kLanes, from the i-th on.
template <Format format, int64_t lanes, class T>
FUSEDOPT_FN void decode_elements(const StoredBlock& from, int64_t i, T* to) {
  using Codec = CodecOf<format>;
  const auto* const stored = static_cast<const typename Codec::Stored*>(from.elements) + i;
  if constexpr (format == Format::kMasterBFloat16) {
    const int16_t* const remainders = from.remainders + i;
    FUSEDOPT_SHORT_LOOP
    for (int64_t l = 0; l < lanes; ++l) to[l] = Codec::decode(stored[l], remainders[l]);
  } else if constexpr (lanes == kLanes) {
    decode_lanes<Codec>(stored, to);
  } else {
    for (int64_t l = 0; l < lanes; ++l) to[l] = Codec::template decode<T>(stored[l]);
  }
}

template <Format format, int64_t lanes, class T>
FUSEDOPT_FN void encode_elements(const T* from, const StoredBlock& to, int64_t i) {
  using Codec = CodecOf<format>;
  auto* const stored = static_cast<typename Codec::Stored*>(to.elements) + i;
  if constexpr (format == Format::kMasterBFloat16) {
    int16_t* const remainders = to.remainders + i;
    FUSEDOPT_SHORT_LOOP
    for (int64_t l = 0; l < lanes; ++l) {
      const auto number = static_cast<float>(from[l]);
      stored[l] = Codec::encode(number);
      remainders[l] = Codec::remainder_of(number);
    }
  } else if constexpr (format == Format::kStochasticBFloat16) {
    const uint16_t* const random_bits = to.random_bits + i;
    FUSEDOPT_SHORT_LOOP
    for (int64_t l = 0; l < lanes; ++l) {
      stored[l] = Codec::encode(static_cast<float>(from[l]), random_bits[l]);
    }
  } else if constexpr (lanes == kLanes) {
    encode_lanes<Codec>(from, stored);
  } else {
    for (int64_t l = 0; l < lanes; ++l) stored[l] = Codec::encode(from[l]);
  }
}

// kLanes elements where all operands are bfloat16, and what belongs to them has 16 bits each, too.
// Then their order does not matter as long as it is the same everywhere: two elements in one word
// of 32 bits, of which the first goes to the first half of the numbers and the other one to the
// second. On registers this shuffles nothing.
constexpr uint32_t kUpperHalf = 0xffff0000;
static_assert(std::endian::native == std::endian::little);

FUSEDOPT_FN uint32_t load_pair(const void* from, int64_t i) {
  uint32_t word;
  std::memcpy(&word, static_cast<const uint16_t*>(from) + i, sizeof word);
  return word;
}
FUSEDOPT_FN void store_pair(uint32_t word, void* to, int64_t i) {
  std::memcpy(static_cast<uint16_t*>(to) + i, &word, sizeof word);
}

template <Format format>
FUSEDOPT_FN void decode_pairs(const StoredBlock& from, int64_t i, float* to) {
  FUSEDOPT_SHORT_LOOP
  for (int64_t l = 0; l < kRegister; ++l) {
    const uint32_t stored = load_pair(from.elements, i + 2 * l);
    const uint32_t first = stored << 16, second = stored & kUpperHalf;
    if constexpr (format == Format::kMasterBFloat16) {
      const uint32_t remainders = load_pair(from.remainders, i + 2 * l);
      to[l] = MasterBFloat16Codec::join(first, remainders & ~kUpperHalf);
      to[kRegister + l] = MasterBFloat16Codec::join(second, remainders >> 16);
    } else {
      to[l] = std::bit_cast<float>(first);
      to[kRegister + l] = std::bit_cast<float>(second);
    }
  }
}

template <Format format>
FUSEDOPT_FN void encode_pairs(const float* from, const StoredBlock& to, int64_t i) {
  using Codec = CodecOf<format>;
  FUSEDOPT_SHORT_LOOP
  for (int64_t l = 0; l < kRegister; ++l) {
    const float first = from[l], second = from[kRegister + l];
    uint32_t lower, upper;
    if constexpr (format == Format::kStochasticBFloat16) {
      const uint32_t random_bits = load_pair(to.random_bits, i + 2 * l);
      lower = Codec::encode_in_upper_half(first, random_bits & ~kUpperHalf);
      upper = Codec::encode_in_upper_half(second, random_bits >> 16);
    } else {
      lower = Codec::encode_in_upper_half(first);
      upper = Codec::encode_in_upper_half(second);
    }
    store_pair(lower >> 16 | (upper & kUpperHalf), to.elements, i + 2 * l);
    if constexpr (format == Format::kMasterBFloat16) {
      const auto of_first = static_cast<uint16_t>(Codec::remainder_of(first));
      const auto of_second = static_cast<uint16_t>(Codec::remainder_of(second));
      store_pair(of_first | uint32_t{of_second} << 16, to.remainders, i + 2 * l);
    }
  }
}

}  // namespace fusedopt::cpu
