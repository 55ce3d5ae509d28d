// Sums of squares that have the same bits however the work is cut up, on every device.
//
// The squares of a tensor are taken in double, which is exact for numbers of 32 bits and fewer, and
// summed in blocks of its memory order, as rows of lanes. Sums of blocks are added without any
// rounding, so their order does not matter: not that of threads, of tensors, or of the ranks of an
// all-reduce. The total is rounded once.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

#include "rules/math.h"

namespace fusedopt {

constexpr int64_t kSquareBlock = 65536;  // elements of a tensor that are summed in double
constexpr int64_t kSquareLanes = 64;     // sums of a block: element i is in lane i % kSquareLanes

constexpr int64_t square_blocks_of(int64_t elements) {
  return (elements + kSquareBlock - 1) / kSquareBlock;
}

// The sum of a block of finite numbers whose squares are too large for a double.
constexpr double kOverflow = -HUGE_VAL;

// The sum of a block, of which half of the lanes are added to the other half until one is left.
FUSEDOPT_FN double sum_of_lanes(double (&lanes)[kSquareLanes]) {
  for (int64_t half = kSquareLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[half + lane];
  }
  return lanes[0];
}

// A sum of doubles of which none is negative but kOverflow: a number in fixed point, from the
// smallest double on, as integers that count steps of 2^32 each. They are added one by one, here,
// by atomics or by an all-reduce, and hold 2^30 doubles, or as many sums that carry() has been
// called for.
class ExactSum {
 public:
  static constexpr int kLimbBits = 32;
  static constexpr int kSmallest = -1074;  // the exponent of the lowest bit
  // Of the largest double the highest bit is the 2098th; the last limb takes what others carry.
  static constexpr int kLimbs = 67;
  static constexpr int kInfinities = kLimbs, kNans = kLimbs + 1, kOverflows = kLimbs + 2;
  static constexpr int kNumbers = kLimbs + 3;

  void add(double number) {
    const auto bits = std::bit_cast<uint64_t>(number);
    const int exponent = static_cast<int>(bits >> 52 & 0x7ff);
    uint64_t mantissa = bits & ((uint64_t{1} << 52) - 1);
    if (exponent == 0x7ff) {
      ++numbers_[mantissa != 0 ? kNans : number > 0 ? kInfinities : kOverflows];
      return;
    }
    if (exponent != 0) mantissa |= uint64_t{1} << 52;
    const int position = exponent == 0 ? 0 : exponent - 1;
    const int limb = position / kLimbBits, shift = position % kLimbBits;
    const uint64_t lower = (mantissa & kMask) << shift;
    const uint64_t upper = (mantissa >> kLimbBits) << shift;
    numbers_[limb] += static_cast<int64_t>(lower & kMask);
    numbers_[limb + 1] += static_cast<int64_t>((lower >> kLimbBits) + (upper & kMask));
    numbers_[limb + 2] += static_cast<int64_t>(upper >> kLimbBits);
  }

  void add(const ExactSum& other) {
    for (int i = 0; i < kNumbers; ++i) numbers_[i] += other.numbers_[i];
  }

  // Leaves less than 2^32 in every limb.
  void carry() {
    for (int i = 0; i + 1 < kLimbs; ++i) {
      numbers_[i + 1] += numbers_[i] >> kLimbBits;
      numbers_[i] &= kMask;
    }
  }

  // Whether all that was squared was finite. The sum may still be none.
  bool is_finite() const { return numbers_[kInfinities] == 0 && numbers_[kNans] == 0; }

  // The double nearest to the sum, ties to even.
  double rounded() const {
    if (numbers_[kNans] != 0) return std::bit_cast<double>(uint64_t{0x7ff8} << 48);
    if (numbers_[kInfinities] + numbers_[kOverflows] != 0) return HUGE_VAL;
    ExactSum sum = *this;
    sum.carry();
    int top = kLimbs - 1;
    while (top > 0 && sum.numbers_[top] == 0) --top;
    return sum.rounded_from(top);
  }

  std::array<int64_t, kNumbers>& numbers() { return numbers_; }
  const std::array<int64_t, kNumbers>& numbers() const { return numbers_; }

 private:
  static constexpr int64_t kMask = 0xffffffff;

  uint64_t digit(int limb) const { return limb < 0 ? 0 : static_cast<uint64_t>(numbers_[limb]); }

  // Where `top` is the highest limb that is not zero: its 64 upper bits, rounded to the 53 of a
  // double. Of a sum below the normal numbers nothing is cut off.
  double rounded_from(int top) const {
    if (digit(top) == 0) return 0;
    const int zeros = std::countl_zero(digit(top)) - kLimbBits;
    uint64_t upper = digit(top) << kLimbBits | digit(top - 1);
    bool is_more = false;  // below them
    if (zeros > 0) upper = upper << zeros | digit(top - 2) >> (kLimbBits - zeros);
    if ((digit(top - 2) << zeros & kMask) != 0) is_more = true;
    for (int i = 0; i < top - 2; ++i) is_more = is_more || numbers_[i] != 0;
    constexpr int kCut = 64 - 53;
    const uint64_t rest = upper & ((1 << kCut) - 1), half = 1 << (kCut - 1);
    upper >>= kCut;
    if (rest > half || (rest == half && (is_more || (upper & 1) != 0))) ++upper;
    return std::ldexp(static_cast<double>(upper), kLimbBits * (top - 1) - zeros + kSmallest + kCut);
  }

  std::array<int64_t, kNumbers> numbers_{};
};

// The 2-norm of everything whose squares a sum has.
inline double norm_of(const ExactSum& sum) { return square_root(sum.rounded()); }

// What gradients of a norm are multiplied by, so that it becomes at most `max_norm`: as
// torch.nn.utils.clip_grad_norm_ has it, but 1 where nothing can be too much. NaN if the norm is.
inline double clip_factor(double max_norm, double norm) {
  if (max_norm == HUGE_VAL) return 1;
  const double factor = max_norm / (norm + 1e-6);
  return factor > 1 ? 1 : factor;
}

}  // namespace fusedopt
