// A step of one rule with two states as a plain loop: what a page of the documentation shows,
// before it is part of any engine. RULE and RULE_HEADER are given by the compiler's command line.
#include <cstdint>

#include RULE_HEADER
#include "core/scalars.h"
#include "fixed_options.h"

extern "C" void step(int64_t step, int64_t count, float* param, const float* grad, float* first,
                     float* second) {
  using fusedopt::RULE;
  fusedopt::FixedOptions options{false};
  const RULE::Hyper hyper = RULE::read(options);
  const auto scalars = fusedopt::derive_scalars<float, RULE>(hyper, step);
  for (int64_t i = 0; i < count; ++i) {
    fusedopt::update_element<RULE, 0>(param[i], grad[i], true, scalars, first[i], second[i]);
  }
}
