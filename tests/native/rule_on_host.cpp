// A step of one rule with two states as a plain loop: what a page of the documentation shows,
// before it is part of any engine. RULE and RULE_HEADER are given by the compiler's command line.
#include <cstdint>

#include RULE_HEADER
#include "fixed_options.h"

extern "C" void step(int64_t step, int64_t count, float* param, const float* grad, float* first,
                     float* second) {
  using fusedopt::RULE;
  fusedopt::FixedOptions options{false};
  const RULE::Hyper hyper = RULE::read(options);
  const auto shared = fusedopt::derive_shared<float>(hyper);
  const auto scalars = RULE::derive<float>(hyper, step);
  for (int64_t i = 0; i < count; ++i) {
    float g = grad[i];
    fusedopt::apply_shared<true>(param[i], g, shared);
    RULE::update<0>(param[i], g, first[i], second[i], scalars);
  }
}
