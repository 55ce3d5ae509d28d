// What an update reads and writes.
#pragma once

#include "core/format.h"

namespace fusedopt {

enum class Access : uint8_t {
  kRead,
  kReadWrite,
  kWrite,  // its memory holds nothing yet: before the update its elements are `initial`
};

struct Operand {
  void* data = nullptr;
  float* scales = nullptr;  // where the format has them: one for each kScaledBlock of elements
  double initial = 0;
  Format format = Format::kFloat32;
  Access access = Access::kReadWrite;
  // Which of the rule's: kParam, kGrad, or kFirstState and the state's number. Behind the states
  // come their scales, which are no operands of an update, the remainder and the parameter's
  // average. In an update the average follows the states, and the remainder is the last one.
  uint8_t role = 0;

  bool is_read() const { return access != Access::kWrite; }
  bool is_written() const { return access != Access::kRead; }
};

// The operands of an update begin with its parameter, its gradient and the states that it uses, in
// this order. The same numbers are their roles, where states that are not used keep their place.
constexpr int kParam = 0, kGrad = 1, kFirstState = 2;

// A bit each for the states of a rule, and a byte for the operands of an update.
constexpr int kMostOperands = kFirstState + 32;

// The formats that select a kernel.
struct FormatMix {
  Format param = Format::kFloat32, grad = Format::kFloat32, states = Format::kFloat32;

  // That of an operand of the rule.
  constexpr Format of(size_t operand) const {
    return operand == kParam ? param : operand == kGrad ? grad : states;
  }

  bool operator==(const FormatMix&) const = default;
};

}  // namespace fusedopt
