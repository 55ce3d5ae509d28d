// An element as it lies in memory, and the number that it is computed as.
#pragma once

#include <bit>
#include <cstdint>

#include "rules/math.h"

namespace fusedopt {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// Widening is exact. Narrowing rounds to nearest, ties to even; of every NaN it makes the one of 16
// bits that a GPU makes, 0x7fff. The portable forms have no branches, so that compilers vectorise
// the loops over them.

constexpr uint16_t kNarrowNan = 0x7fff;

FUSEDOPT_FN float widen(float value) { return value; }
FUSEDOPT_FN double widen(double value) { return value; }

FUSEDOPT_FN float widen(BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

FUSEDOPT_FN float widen(Float16 value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t magnitude = value.bits & 0x7fff;
  // Shifted into place the exponent is 112 too small; a product with 2^112 is exact and makes
  // subnormals right as well. Infinity and NaN keep their exponent of all ones.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude << 13 | 0x7f800000;
  const uint32_t finite = std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(sign | (magnitude >= 0x7c00 ? special : finite));
#endif
}

template <class Element>
using Number = decltype(widen(Element{}));

template <class Element>
FUSEDOPT_FN Element narrow(Number<Element> value) {
  return value;
}

template <>
FUSEDOPT_FN BFloat16 narrow<BFloat16>(float value) {
#if defined(__CUDA_ARCH__)
  BFloat16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  return {static_cast<uint16_t>(is_nan ? kNarrowNan : rounded)};
#endif
}

template <>
FUSEDOPT_FN Float16 narrow<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  Float16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Normal: rebias, round at bit 13; a carry into the exponent is right, up to infinity.
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Subnormal: adding 0.5 lets the addition round at 2^-24; what it leaves below 0.5 is the result.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) -
                             std::bit_cast<uint32_t>(0.5f);
  const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  const uint32_t rounded = sign | (magnitude >= 0x477ff000 ? 0x7c00 : finite);
  const bool is_nan = magnitude > 0x7f800000;
  return {static_cast<uint16_t>(is_nan ? kNarrowNan : rounded)};
#endif
}

}  // namespace fusedopt
