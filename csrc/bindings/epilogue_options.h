// The options of a parameter group that say what follows a step.
#pragma once

#include "bindings/python.h"

namespace fusedopt {

struct EpilogueOptions {
  double l1 = 0;
  bool averages = false;
  double ema_decay = 0;  // if it averages; 1: all parameters so far count alike

  bool is_asked_for() const { return l1 != 0 || averages; }
  bool counts_averaged() const { return averages && ema_decay == 1; }

  // Of the parameter in its average, of which `averaged` have been counted before.
  double average_weight(int64_t averaged) const {
    return counts_averaged() ? 1.0 / static_cast<double>(averaged + 1) : 1.0 - ema_decay;
  }
};

// Throws Refusal if an option is out of bounds.
EpilogueOptions read_epilogue_options(PyObject* group, KeepAlive& keep);

}  // namespace fusedopt
