// What every rule shares, written once and applied ahead of it: the sign for `maximize` and both
// kinds of weight decay.
#pragma once

#include "rules/math.h"

namespace fusedopt {

// A state of a rule: its key in checkpoints, and whether its numbers may be negative. Codes of few
// bits need none for the sign of those that are not.
struct StateInfo {
  const char* name;
  bool is_signed;
};
constexpr bool kSigned = true, kUnsigned = false;

// Hyperparameters that every parameter group has.
struct SharedHyper {
  double lr = 0;
  double weight_decay = 0;
  bool maximize = false;
  bool decoupled_weight_decay = false;

  template <class Options>
  FUSEDOPT_FN void read_shared(Options& options) {
    lr = options.rate("lr");
    weight_decay = options.rate("weight_decay");
    maximize = options.flag("maximize");
  }

  // Weight decay as a term of the gradient. Decided outside the element loop, because adding
  // 0 * param is not free of effect: it turns an infinite parameter into a NaN gradient. NaN, a
  // decay that only the device knows, is one.
  bool has_l2_penalty() const { return weight_decay != 0 && !decoupled_weight_decay; }
};

template <class T>
struct SharedScalars {
  T grad_factor;   // +1, or -1 to maximize: a product with either is exact. See clip()
  T weight_decay;  // factor of the L2 penalty
  T param_scale;   // decoupled weight decay, 1 without it: a product with 1 is exact
};

template <class T>
FUSEDOPT_FN SharedScalars<T> derive_shared(const SharedHyper& hyper) {
  return {
      .grad_factor = T(hyper.maximize ? -1.0 : 1.0),
      .weight_decay = T(hyper.weight_decay),
      .param_scale = T(hyper.decoupled_weight_decay ? 1.0 - hyper.lr * hyper.weight_decay : 1.0),
  };
}

// Has gradients multiplied by a factor that is not negative, ahead of everything else. It joins the
// sign: one product has the bits of two, of which one is exact.
template <class T>
FUSEDOPT_FN void clip(SharedScalars<T>& scalars, T factor) {
  scalars.grad_factor = with_sign(factor, scalars.grad_factor);
}

template <class T>
FUSEDOPT_FN void apply_shared(T& param, T& grad, bool has_l2_penalty,
                              const SharedScalars<T>& scalars) {
  grad = scalars.grad_factor * grad;
  if (has_l2_penalty) grad = grad + scalars.weight_decay * param;
  param = scalars.param_scale * param;
}

}  // namespace fusedopt
