// Numbers in 8 bits: blocks of elements that share a scale, each as one of 256 values.
//
// The code is that of Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise
// Quantization, ICLR 2022. The magnitudes relative to the scale lie in seven decades, from 0.1 p to
// p for p = 10^-6, ..., 1. The e-th decade is cut into 2^e equal parts where a code has a sign, and
// into 2^(e+1) where it has none; a code is the middle of a part. So with m = 2^e + j for part j
// the exponent of m names the decade and its mantissa the part: both ways are arithmetic, not
// tables.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <limits>

#include "core/format.h"
#include "rules/math.h"

namespace fusedopt {

// Operations has the types Floats and Ints, of one or several numbers, and of these conversions,
// the reading of one's bits as the other, the larger and the smaller of two numbers, the larger of
// a magnitude and a number, two to the power of how many of some ascending ends are below a number
// from 2^-23 to 2 (plus a constant), and the look-up in a table of eight by an index modulo 8. Ends
// and tables are arguments of templates, because code for a GPU may use the values of such
// constants, but not their addresses.
template <bool is_signed, class Operations>
class Code {
 public:
  using Floats = typename Operations::Floats;
  using Ints = typename Operations::Ints;

  // Codes are named by their places, which count from zero in both directions where there is a
  // sign, and from one before the code of zero where there is none: its magnitude is m.
  static constexpr int32_t kCodeOfPlaceZero = is_signed ? 127 : -1;

  // The number that a code stands for, relative to its scale.
  FUSEDOPT_FN static constexpr Floats decode(Ints code) {
    const Ints place = code - kCodeOfPlaceZero;
    Ints m = place;
    if constexpr (is_signed) m = place < 0 ? -place : place;
    // (m + 0.5) / 2^e is in [1, 2): the part's middle between the ends of its decade, plus 1.
    const Ints bits = Operations::as_ints(Operations::to_floats(m) + 0.5f);
    const Floats middle = Operations::as_floats((bits & 0x7fffff) | 0x3f800000) - 1.0f;
    const Floats part = value_at(Operations::template look_up<kPowers>(bits >> 23), middle);
    const Floats magnitude = m == kOne ? Floats{} + 1.0f : part;
    return is_signed ? with_sign(magnitude, place) : magnitude;
  }

  // The place of the code of the part that a number lies in, so of the nearest value but for
  // rounding; beyond the ends of a decade of the value that is nearer. Where the code has no sign a
  // negative number becomes zero, and one above zero never does: what is divided by its root would
  // leave all bounds. Numbers are finite and no larger than their block's scale. One place, where
  // -1 would be, has no code: what saturates in 8 bits takes the next.
  FUSEDOPT_FN static Ints place(Floats number, float inverse_scale) {
    const Floats relative = is_signed ? Operations::max_magnitude(number * inverse_scale, kLeast)
                                      : Operations::max(number * inverse_scale, kLeast);
    // As many as its decade has: below the first of a code with a sign half a part, which makes m
    // zero.
    const Floats parts = Operations::template power_of_two<kEnds, kLeastExponent>(relative);
    // Between 1 and 2 as the number is between the ends of its decade: the first bits name the
    // part. No number is below its decade: where two of them meet, the lower one's part is nearer.
    const Ints decade = Operations::as_ints(parts) >> 23;
    const Floats within = relative * Operations::template look_up<kInverses>(decade) + 8.0f / 9.0f;
    const Floats m = Operations::min(within, kBelowTwo) * parts;
    if constexpr (is_signed) {
      return Operations::to_ints(with_sign(m, Operations::as_ints(number)));
    } else {
      return number > 0.0f ? Operations::to_ints(m) : Ints{};
    }
  }

  // The code of that place.
  FUSEDOPT_FN static Ints encode(Floats number, float inverse_scale) {
    return Operations::max(place(number, inverse_scale) + kCodeOfPlaceZero, 0);
  }

 private:
  static constexpr int32_t kSign = std::numeric_limits<int32_t>::min();
  FUSEDOPT_FN static constexpr Floats with_sign(Floats magnitude, Ints sign) {
    return Operations::as_floats(Operations::as_ints(magnitude) | (sign & kSign));
  }

  // Of m: that of 1, which is behind the last part of the last decade.
  static constexpr int32_t kOne = is_signed ? 128 : 256;
  static constexpr int kFirstExponent = is_signed ? 0 : 1;
  static constexpr int kDecades = 7;
  static constexpr float kBelowTwo = 2.0f - 0x1p-23f;

  // Behind the last decade, at 7, there is nothing but 1, so every number has to be in its first
  // part; below the first, at -1, nothing but zero. Both tables go by a decade's exponent with its
  // bias, and the two have the same entry.
  static constexpr float kPowerOf[kDecades] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  static constexpr float kInverseOfOne = 1.0f / 9.0f + 0x1p-10f;
  static constexpr int decade_of(int index) { return (index - 127 - kFirstExponent) & 7; }
  static constexpr float power_of(int index) {
    const int decade = decade_of(index);
    return decade < kDecades ? kPowerOf[decade] : 0.0f;
  }
  static constexpr float inverse_of(int index) {
    const int decade = decade_of(index);
    return decade < kDecades ? 1.0f / (0.9f * kPowerOf[decade]) : kInverseOfOne;
  }
  static constexpr float kPowers[8] = {power_of(0), power_of(1), power_of(2), power_of(3),
                                       power_of(4), power_of(5), power_of(6), power_of(7)};
  static constexpr float kInverses[8] = {inverse_of(0), inverse_of(1), inverse_of(2),
                                         inverse_of(3), inverse_of(4), inverse_of(5),
                                         inverse_of(6), inverse_of(7)};

  template <class Number>
  FUSEDOPT_FN static constexpr Number value_at(Number power, Number place) {
    return power * (0.1f + 0.9f * place);
  }

  static constexpr float middle_of(float low, float high) {
    return static_cast<float>((static_cast<double>(low) + static_cast<double>(high)) / 2);
  }
  static constexpr float parts_of(int decade) {
    return static_cast<float>(1 << (decade + kFirstExponent));
  }
  static constexpr float first_value(int decade) {
    return decade < kDecades ? value_at(kPowerOf[decade], 0.5f / parts_of(decade)) : 1.0f;
  }
  static constexpr float last_value(int decade) {
    return decade < 0 ? 0.0f
                      : value_at(kPowerOf[decade], (parts_of(decade) - 0.5f) / parts_of(decade));
  }

  // Where the first value of the next decade becomes the nearer one. Without a sign there is no end
  // of what is below the first.
  static constexpr int kLeastDecade = is_signed ? -1 : 0;
  static constexpr int kLeastExponent = kLeastDecade + kFirstExponent;
  static constexpr auto kEnds = [] {
    std::array<float, kDecades - kLeastDecade> ends;
    for (int decade = kLeastDecade; decade < kDecades; ++decade) {
      ends[decade - kLeastDecade] = middle_of(last_value(decade), first_value(decade + 1));
    }
    return ends;
  }();

  // Numbers below it have its code. It is below the first end, or else within the first part.
  static constexpr float kLeast = 0x1p-23f;
  static_assert(is_signed ? kLeast < kEnds[0]
                          : kLeast > 0.1f * kPowerOf[0] && kLeast < first_value(0));
};

// What a block's numbers are multiplied with, one after the other, to be relative to its scale. The
// first is 1 unless the reciprocal of the scale needs a power of two to be in range. A block of
// zeros stays one.
struct ScaleFactors {
  float shift, inverse;

  FUSEDOPT_FN explicit ScaleFactors(float scale)
      : shift(scale < 0x1p-126f  ? 0x1p64f
              : scale > 0x1p126f ? 0.25f
                                 : 1.0f),
        inverse(scale > 0.0f ? 1.0f / (scale * shift) : 0.0f) {}
};

// The code of 1, so of any number under a scale that is that number.
constexpr int kCodeOfOne = 255;

// The bits of infinity, which those of NaN are above.
constexpr int32_t kInfinity = 0x7f800000;

// The bits of a number's magnitude, and of those that are finite, or else 0. Of these the largest
// integer is the largest number, which is a block's scale.
constexpr int32_t kMagnitude = 0x7fffffff;
FUSEDOPT_FN int32_t magnitude_bits(float number) {
  return std::bit_cast<int32_t>(number) & kMagnitude;
}
FUSEDOPT_FN int32_t finite_magnitude_bits(float number) {
  const int32_t bits = magnitude_bits(number);
  return bits < kInfinity ? bits : 0;
}

// A number as a block with a scale stores it: zero for NaN, the scale with its sign for infinity.
FUSEDOPT_FN float within_scale(float number, float scale) {
  const float limit = number < 0.0f ? -scale : scale;
  const int32_t bits = magnitude_bits(number);
  return bits < kInfinity ? number : bits == kInfinity ? limit : 0.0f;
}

}  // namespace fusedopt
