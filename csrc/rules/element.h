// The order of everything that happens to one element, for every engine. An engine that works on
// blocks calls the parts as passes over a block, in this order.
#pragma once

#include "rules/shared.h"

namespace fusedopt {

// What a kernel gets: the scalars of the shared part and of the rule.
template <class Rule, class T>
struct KernelScalars {
  SharedScalars<T> shared;
  typename Rule::template Scalars<T> rule;
};

// First: the gradient of the loss itself, from that of the loss times the scale of a gradient
// scaler.
template <class T>
FUSEDOPT_FN T unscale(T grad, T scale) {
  return grad / scale;
}

// Then: the factor that clips, if there is one, as a part of what all rules share (clip() in
// shared.h); the rule, and the step that it makes of the gradient. States that the variant does not
// use are values that nobody reads.
template <class Rule, unsigned variant, class T, class... States>
FUSEDOPT_FN void update_element(T& param, T grad, bool has_l2_penalty,
                                const KernelScalars<Rule, T>& scalars, States&... states) {
  apply_shared(param, grad, has_l2_penalty, scalars.shared);
  param = param - Rule::template update<variant>(param, grad, states..., scalars.rule);
}

// Then, where the group has an L1 penalty: the proximal operator of threshold * |param|, which
// makes small parameters exactly zero. Parikh, Boyd: Proximal Algorithms, 2014, section 6.5.2.
template <class T>
FUSEDOPT_FN T shrink(T param, T threshold) {
  return with_sign(maximum(absolute(param) - threshold, T(0)), param);
}

// Last, where the group keeps averages: that of a parameter as it is stored by now. Polyak,
// Juditsky: Acceleration of Stochastic Approximation by Averaging, 1992, for the weight 1 / count.
template <class T>
FUSEDOPT_FN T average(T average, T param, T weight) {
  return lerp(average, param, weight);
}

}  // namespace fusedopt
