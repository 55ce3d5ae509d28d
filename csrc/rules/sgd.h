// SGD with momentum as torch.optim.SGD defines it: the learning rate multiplies the buffer when it
// is applied, so a change of the rate acts on the whole accumulated direction at once.
// Sutskever, Martens, Dahl, Hinton: On the importance of initialization and momentum in deep
// learning, ICML 2013, in the form of PyTorch's documentation.
#pragma once

#include <array>
#include <limits>

#include "rules/shared.h"

namespace fusedopt {

struct Sgd {
  static constexpr const char* kName = "sgd";
  static constexpr bool kCountsSteps = false;
  static constexpr std::array<StateInfo, 1> kStates = {{{"momentum_buffer", kSigned}}};

  // Fresh: the buffer is new and becomes a copy of the gradient, undampened. A new buffer holds -0,
  // from which the formula makes that copy by itself where nothing is dampened: momentum * -0 +
  // 1 * grad is grad, whatever its sign, unless momentum is infinite in the type of the arithmetic.
  enum : unsigned { kPlain, kMomentum, kNesterov, kFreshMomentum, kFreshNesterov, kVariants };

  struct Hyper : SharedHyper {
    double momentum = 0, dampening = 0;
    bool nesterov = false;
  };

  template <class Options>
  FUSEDOPT_FN static Hyper read(Options& options) {
    Hyper hyper;
    hyper.read_shared(options);
    hyper.momentum = options.non_negative("momentum");
    hyper.dampening = options.number("dampening");
    hyper.nesterov = options.flag("nesterov");
    return hyper;
  }

  static unsigned variant(const Hyper& hyper, bool fresh) {
    if (hyper.momentum == 0) return kPlain;
    const bool may_be_infinite = hyper.momentum > std::numeric_limits<float>::max();
    const bool copies = fresh && (hyper.dampening != 0 || may_be_infinite);
    if (hyper.nesterov) return copies ? kFreshNesterov : kNesterov;
    return copies ? kFreshMomentum : kMomentum;
  }

  static constexpr bool uses(unsigned variant, unsigned) { return variant != kPlain; }

  template <class T>
  struct Scalars {
    T lr, momentum, one_minus_dampening;
  };

  template <class T>
  FUSEDOPT_FN static Scalars<T> derive(const Hyper& hyper, int64_t) {
    return {T(hyper.lr), T(hyper.momentum), T(1.0 - hyper.dampening)};
  }

  template <unsigned variant, class T>
  FUSEDOPT_FN static T update(T, T grad, T& momentum_buffer, const Scalars<T>& s) {
    if constexpr (variant != kPlain) {
      constexpr bool is_fresh = variant == kFreshMomentum || variant == kFreshNesterov;
      constexpr bool is_nesterov = variant == kNesterov || variant == kFreshNesterov;
      momentum_buffer =
          is_fresh ? grad : s.momentum * momentum_buffer + s.one_minus_dampening * grad;
      grad = is_nesterov ? grad + s.momentum * momentum_buffer : momentum_buffer;
    }
    return s.lr * grad;
  }
};

}  // namespace fusedopt
