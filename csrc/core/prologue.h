// What happens to gradients ahead of the rule, as numbers that lie in the device's memory: a kernel
// reads them, so that the host need not wait for whoever computes them.
#pragma once

namespace fusedopt {

// Of all gradients together, whoever has measured them.
struct Decision {
  double norm;        // before clipping
  double factor;      // that they are multiplied by
  double is_skipped;  // not 0: nothing may be changed
};

struct Prologue {
  const float* grad_scale = nullptr;  // of a gradient scaler: divides the gradients, or null
  const float* found_inf = nullptr;   // not 0: nothing may be changed; or null
  Decision* decision = nullptr;       // of Engine::decide(), or of the host; or null
};

}  // namespace fusedopt
