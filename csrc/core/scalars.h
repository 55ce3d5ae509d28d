// From a parameter group's options and a step count to the scalars of a kernel. It is done on the
// host, or by a kernel where the device holds the step count or an option.
#pragma once

#include "core/option.h"
#include "rules/element.h"

namespace fusedopt {

template <class Rule>
constexpr unsigned kVariantCount = unsigned{Rule::kVariants} << 1;

// Which states a rule's own variant reads and writes. Bit s: state s.
template <class Rule>
constexpr unsigned used_states(unsigned variant) {
  unsigned used = 0;
  for (unsigned s = 0; s < Rule::kStates.size(); ++s) {
    if (Rule::uses(variant, s)) used |= 1u << s;
  }
  return used;
}

template <class T, class Rule>
FUSEDOPT_FN KernelScalars<Rule, T> derive_scalars(const typename Rule::Hyper& hyper, int64_t step) {
  return {derive_shared<T>(hyper), Rule::template derive<T>(hyper, step)};
}

}  // namespace fusedopt
