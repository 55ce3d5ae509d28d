// What happens to a parameter after the rule's step, as numbers that the host has derived.
#pragma once

#include <cstdint>

#include "core/operand.h"

namespace fusedopt {

struct Epilogue {
  double l1_threshold = 0;    // see shrink() in rules/element.h; 0: nothing is shrunk
  double average_weight = 0;  // of the parameter in its average; 1: a copy
  uint32_t average = kParam;  // the operand that is the average; the parameter: there is none
};

}  // namespace fusedopt
