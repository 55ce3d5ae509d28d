// What happens to a parameter after the rule's step: the options of its group, and the numbers that
// the host derives.
#pragma once

#include <cstdint>

#include "core/operand.h"
#include "rules/math.h"

namespace fusedopt {

// Of a number in the mean of it and of as many as have been counted before.
FUSEDOPT_FN double weight_in_mean(int64_t averaged) {
  return 1.0 / static_cast<double>(averaged + 1);
}

struct EpilogueOptions {
  double l1 = 0;
  bool averages = false;
  double ema_decay = 0;  // if it averages; 1: all parameters so far count alike

  bool is_asked_for() const { return l1 != 0 || averages; }
  bool counts_averaged() const { return averages && ema_decay == 1; }

  double l1_threshold(double lr) const { return lr * l1; }
  // Of the parameter in its average, of which `averaged` have been counted before.
  double average_weight(int64_t averaged) const {
    return counts_averaged() ? weight_in_mean(averaged) : 1.0 - ema_decay;
  }
};

// Where the engine derives the scalars, the threshold is that of a learning rate of one, because
// only the engine knows it; and it derives the weight where it counts what has been averaged.
struct Epilogue {
  double l1_threshold = 0;    // see shrink() in rules/element.h; 0: nothing is shrunk
  double average_weight = 0;  // of the parameter in its average; 1: a copy, so also of the first
  uint32_t average = kParam;  // the operand that is the average; the parameter: there is none
};

}  // namespace fusedopt
