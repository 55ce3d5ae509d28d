// What happens to gradients ahead of the rule, as numbers that lie in the device's memory: a kernel
// reads them, so that the host need not wait for whoever computes them.
#pragma once

namespace fusedopt {

struct Prologue {
  const float* grad_scale = nullptr;  // of a gradient scaler: divides the gradients, or null
  const float* found_inf = nullptr;   // not 0: nothing may be changed; or null
};

}  // namespace fusedopt
