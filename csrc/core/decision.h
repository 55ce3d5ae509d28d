// What a step makes of the norm of all its gradients.
#pragma once

#include "core/prologue.h"
#include "core/reduction.h"

namespace fusedopt {

struct ClipOptions {
  double max_norm = HUGE_VAL;
  bool skips_nonfinite = false;
};

// Of a sum that carry() has been called for, in a step that may be skipped for another reason.
FUSEDOPT_FN Decision decide(const ExactSum& total, const ClipOptions& options, bool is_skipped) {
  const double norm = square_root(total.rounded());
  is_skipped = is_skipped || (options.skips_nonfinite && !total.is_finite());
  return {norm, clip_factor(options.max_norm, norm), is_skipped ? 1.0 : 0.0};
}

}  // namespace fusedopt
