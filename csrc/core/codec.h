// From an element as it is stored to the number that is computed with, and back: one codec for each
// format. Decoding is exact wherever the arithmetic is as wide as the format, which engines see to;
// encoding rounds once, to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

#include "core/format.h"
#include "rules/math.h"

namespace fusedopt {

// The portable forms below have no branches, so that compilers vectorise the loops over them.

// Of every NaN, 16 bits keep the one that a GPU's conversions make.
constexpr uint16_t kNarrowNan = 0x7fff;

// The float nearest to a double on the side of zero or beyond, with an odd last bit unless it is
// exact: rounded again to at least two bits less it gives what one rounding would (Boldo,
// Melquiond: When double rounding is odd, 2005).
FUSEDOPT_FN float round_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  const uint32_t bits = std::bit_cast<uint32_t>(nearest);
  const double back = nearest;
  const double magnitude = value < 0 ? -value : value;
  const double magnitude_back = back < 0 ? -back : back;
  const bool is_even = (bits & 1) == 0;
  // An infinity that is not one is the even neighbour of the largest float.
  const uint32_t inward = bits - (is_even && magnitude_back > magnitude);
  const uint32_t odd = inward + (is_even && magnitude_back < magnitude);
  return std::bit_cast<float>(odd);
}

template <class T>
struct FloatCodec {
  using Stored = T;

  template <class Number>
  FUSEDOPT_FN static Number decode(Stored stored) {
    return static_cast<Number>(stored);
  }
  template <class Number>
  FUSEDOPT_FN static Stored encode(Number number) {
    return static_cast<Stored>(number);
  }
};

struct BFloat16Codec {
  using Stored = uint16_t;

  template <class Number>
  FUSEDOPT_FN static Number decode(Stored stored) {
    return std::bit_cast<float>(static_cast<uint32_t>(stored) << 16);
  }

  FUSEDOPT_FN static Stored encode(float number) {
#if defined(__CUDA_ARCH__)
    Stored stored;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(stored) : "f"(number));
    return stored;
#else
    return static_cast<Stored>(encode_in_upper_half(number) >> 16);
#endif
  }
  // What the lower half holds means nothing.
  FUSEDOPT_FN static uint32_t encode_in_upper_half(float number) {
    const uint32_t bits = std::bit_cast<uint32_t>(number);
    return unless_nan(number, bits + 0x7fff + (bits >> 16 & 1));
  }
  FUSEDOPT_FN static Stored encode(double number) { return encode(round_to_odd(number)); }

 protected:
  FUSEDOPT_FN static uint32_t unless_nan(float number, uint32_t rounded) {
    return number != number ? uint32_t{kNarrowNan} << 16 : rounded;
  }
};

// One of the two bfloat16 around a number, the nearer the likelier: 16 random bits decide.
// Infinities are what they are, as all numbers whose lower half is 0.
struct StochasticBFloat16Codec : BFloat16Codec {
  FUSEDOPT_FN static Stored encode(float number, uint16_t random_bits) {
    return static_cast<Stored>(encode_in_upper_half(number, random_bits) >> 16);
  }
  FUSEDOPT_FN static uint32_t encode_in_upper_half(float number, uint32_t random_bits) {
    return unless_nan(number, std::bit_cast<uint32_t>(number) + random_bits);
  }
};

// The nearest bfloat16, of two equally near ones that of the larger magnitude, and the lower half
// of the float, whose sign then says whether the upper half was rounded up: together they are that
// float, but for NaN, of which one is left.
struct MasterBFloat16Codec {
  using Stored = uint16_t;

  FUSEDOPT_FN static float decode(Stored stored, int16_t remainder) {
    return join(uint32_t{stored} << 16, static_cast<uint16_t>(remainder));
  }
  // Of the bfloat16 in the upper half of a word and the remainder in the lower half of another.
  FUSEDOPT_FN static float join(uint32_t stored, uint32_t remainder) {
    return std::bit_cast<float>((stored | remainder) - (remainder >> 15 << 16));
  }

  FUSEDOPT_FN static Stored encode(float number) {
    return static_cast<Stored>(encode_in_upper_half(number) >> 16);
  }
  FUSEDOPT_FN static uint32_t encode_in_upper_half(float number) {
    return bits_of(number) + 0x8000;
  }
  FUSEDOPT_FN static int16_t remainder_of(float number) {
    return static_cast<int16_t>(bits_of(number) & 0xffff);
  }

 private:
  FUSEDOPT_FN static uint32_t bits_of(float number) {
    return number != number ? 0x7fc00000 : std::bit_cast<uint32_t>(number);
  }
};

struct Float16Codec {
  using Stored = uint16_t;

  template <class Number>
  FUSEDOPT_FN static Number decode(Stored stored) {
#if defined(__CUDA_ARCH__)
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(stored));
    return wide;
#else
    const uint32_t sign = static_cast<uint32_t>(stored & 0x8000) << 16;
    const uint32_t magnitude = stored & 0x7fff;
    // Shifted into place the exponent is 112 too small; a product with 2^112 is exact and makes
    // subnormals right as well. Infinity and NaN keep their exponent of all ones.
    const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
    const uint32_t special = magnitude << 13 | 0x7f800000;
    const uint32_t finite = std::bit_cast<uint32_t>(scaled);
    return std::bit_cast<float>(sign | (magnitude >= 0x7c00 ? special : finite));
#endif
  }

  FUSEDOPT_FN static Stored encode(float number) {
#if defined(__CUDA_ARCH__)
    Stored stored;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored) : "f"(number));
    return stored;
#else
    const uint32_t bits = std::bit_cast<uint32_t>(number);
    const uint32_t sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    // Normal: rebias, round at bit 13; a carry into the exponent is right, up to infinity.
    const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    // Subnormal: adding 0.5 lets the addition round at 2^-24; what it leaves below 0.5 is the
    // result.
    const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) -
                               std::bit_cast<uint32_t>(0.5f);
    const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
    const uint32_t rounded = sign | (magnitude >= 0x477ff000 ? 0x7c00 : finite);
    const bool is_nan = magnitude > 0x7f800000;
    return static_cast<uint16_t>(is_nan ? kNarrowNan : rounded);
#endif
  }
  FUSEDOPT_FN static Stored encode(double number) { return encode(round_to_odd(number)); }
};

template <Format>
struct CodecOf;
template <>
struct CodecOf<Format::kFloat32> : FloatCodec<float> {};
template <>
struct CodecOf<Format::kFloat64> : FloatCodec<double> {};
template <>
struct CodecOf<Format::kBFloat16> : BFloat16Codec {};
template <>
struct CodecOf<Format::kFloat16> : Float16Codec {};
template <>
struct CodecOf<Format::kStochasticBFloat16> : StochasticBFloat16Codec {};
template <>
struct CodecOf<Format::kMasterBFloat16> : MasterBFloat16Codec {};

// Calls f.template operator()<Codec>() with the codec of a format that is known as the program
// runs.
template <class F>
FUSEDOPT_FN auto with_codec(Format format, F f) {
  switch (format) {
    case Format::kFloat64: return f.template operator()<CodecOf<Format::kFloat64>>();
    case Format::kBFloat16: return f.template operator()<CodecOf<Format::kBFloat16>>();
    case Format::kFloat16: return f.template operator()<CodecOf<Format::kFloat16>>();
    default: return f.template operator()<CodecOf<Format::kFloat32>>();
  }
}

}  // namespace fusedopt
