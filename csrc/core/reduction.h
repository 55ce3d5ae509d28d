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

// Ahead of a loop that one thread of a GPU runs: its turns together would take all registers.
#if defined(__CUDACC__)
#define FUSEDOPT_TURN_BY_TURN _Pragma("unroll 1")
#else
#define FUSEDOPT_TURN_BY_TURN
#endif

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

  // Calls add(position, number) for the integers that a double is.
  template <class Add>
  FUSEDOPT_FN static void split(double number, Add add) {
    const auto bits = std::bit_cast<uint64_t>(number);
    const int exponent = static_cast<int>(bits >> 52 & 0x7ff);
    uint64_t mantissa = bits & ((uint64_t{1} << 52) - 1);
    if (exponent == 0x7ff) {
      return add(mantissa != 0 ? kNans : number > 0 ? kInfinities : kOverflows, int64_t{1});
    }
    if (exponent != 0) mantissa |= uint64_t{1} << 52;
    const int position = exponent == 0 ? 0 : exponent - 1;
    const int limb = position / kLimbBits, shift = position % kLimbBits;
    const uint64_t lower = (mantissa & kMask) << shift;
    const uint64_t upper = (mantissa >> kLimbBits) << shift;
    add(limb, static_cast<int64_t>(lower & kMask));
    add(limb + 1, static_cast<int64_t>((lower >> kLimbBits) + (upper & kMask)));
    add(limb + 2, static_cast<int64_t>(upper >> kLimbBits));
  }

  void add(double number) {
    split(number, [&](int position, int64_t n) { numbers_[position] += n; });
  }

  void add(const ExactSum& other) {
    for (int i = 0; i < kNumbers; ++i) numbers_[i] += other.numbers_[i];
  }

  // Leaves less than 2^32 in every limb.
  FUSEDOPT_FN void carry() {
    int64_t carried = 0;
    FUSEDOPT_TURN_BY_TURN
    for (int i = 0; i + 1 < kLimbs; ++i) {
      const int64_t number = numbers_[i] + carried;
      numbers_[i] = number & kMask;
      carried = number >> kLimbBits;
    }
    numbers_[kLimbs - 1] += carried;
  }

  // Whether all that was squared was finite. The sum may still be none.
  FUSEDOPT_FN bool is_finite() const { return numbers_[kInfinities] == 0 && numbers_[kNans] == 0; }

  // The double nearest to the sum, ties to even, when carry() has been called for it.
  FUSEDOPT_FN double rounded() const {
    if (numbers_[kNans] != 0) return std::bit_cast<double>(uint64_t{0x7ff8} << 48);
    if (numbers_[kInfinities] + numbers_[kOverflows] != 0) return HUGE_VAL;
    int top = kLimbs - 1;
    FUSEDOPT_TURN_BY_TURN
    while (top > 0 && numbers_[top] == 0) --top;
    return rounded_from(top);
  }

  FUSEDOPT_FN std::array<int64_t, kNumbers>& numbers() { return numbers_; }
  FUSEDOPT_FN const std::array<int64_t, kNumbers>& numbers() const { return numbers_; }

 private:
  static constexpr int64_t kMask = 0xffffffff;

  FUSEDOPT_FN uint64_t digit(int limb) const {
    return limb < 0 ? 0 : static_cast<uint64_t>(numbers_[limb]);
  }

  // Where `top` is the highest limb that is not zero: its 64 upper bits, rounded to the 53 of a
  // double. Of a sum below the normal numbers nothing is cut off.
  FUSEDOPT_FN double rounded_from(int top) const {
    if (digit(top) == 0) return 0;
    int zeros = 0;
    FUSEDOPT_TURN_BY_TURN
    while ((digit(top) << zeros >> (kLimbBits - 1)) == 0) ++zeros;
    uint64_t upper = digit(top) << kLimbBits | digit(top - 1);
    bool is_more = false;  // below them
    if (zeros > 0) upper = upper << zeros | digit(top - 2) >> (kLimbBits - zeros);
    if ((digit(top - 2) << zeros & kMask) != 0) is_more = true;
    FUSEDOPT_TURN_BY_TURN
    for (int i = 0; i < top - 2; ++i) is_more = is_more || numbers_[i] != 0;
    constexpr int kCut = 64 - 53;
    const uint64_t rest = upper & ((1 << kCut) - 1), half = 1 << (kCut - 1);
    upper >>= kCut;
    if (rest > half || (rest == half && (is_more || (upper & 1) != 0))) ++upper;
    // In two factors, because one alone may be no double.
    const int exponent = kLimbBits * (top - 1) - zeros + kSmallest + kCut, part = exponent / 2;
    const auto number = static_cast<double>(static_cast<int64_t>(upper));
    return number * power_of_two(part) * power_of_two(exponent - part);
  }

  FUSEDOPT_FN static double power_of_two(int exponent) {
    return std::bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
  }

  std::array<int64_t, kNumbers> numbers_;  // zeros only by ExactSum{}: it may be shared by a block
};

// The 2-norm of everything whose squares a sum has.
inline double norm_of(ExactSum sum) {
  sum.carry();
  return square_root(sum.rounded());
}

// What gradients of a norm are multiplied by, so that it becomes at most `max_norm`: as
// torch.nn.utils.clip_grad_norm_ has it, but 1 where nothing can be too much. NaN if the norm is.
FUSEDOPT_FN double clip_factor(double max_norm, double norm) {
  if (max_norm == HUGE_VAL) return 1;
  const double factor = max_norm / (norm + 1e-6);
  return factor > 1 ? 1 : factor;
}

}  // namespace fusedopt
