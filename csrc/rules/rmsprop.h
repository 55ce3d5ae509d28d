// Hinton, Srivastava, Swersky: Neural Networks for Machine Learning, lecture 6e, 2012; centered:
// Graves: Generating Sequences With Recurrent Neural Networks, 2013, equations 38 to 45, with
// epsilon outside the root as in torch.optim.RMSprop.
#pragma once

#include <array>

#include "rules/shared.h"

namespace fusedopt {

struct Rmsprop {
  static constexpr const char* kName = "rmsprop";
  static constexpr bool kCountsSteps = true;
  static constexpr std::array<StateInfo, 3> kStates = {
      {{"square_avg", kUnsigned}, {"momentum_buffer", kSigned}, {"grad_avg", kSigned}}};

  enum : unsigned { kMomentum = 1, kCentered = 2, kVariants = 4 };

  struct Hyper : SharedHyper {
    double alpha = 0, eps = 0, momentum = 0;
    bool centered = false;
  };

  template <class Options>
  FUSEDOPT_FN static Hyper read(Options& options) {
    Hyper hyper;
    hyper.read_shared(options);
    hyper.alpha = options.non_negative("alpha");
    hyper.eps = options.non_negative("eps");
    hyper.momentum = options.non_negative("momentum");
    hyper.centered = options.flag("centered");
    return hyper;
  }

  static unsigned variant(const Hyper& hyper, bool) {
    return (hyper.momentum > 0 ? kMomentum : 0u) | (hyper.centered ? kCentered : 0u);
  }

  static constexpr bool uses(unsigned variant, unsigned state) {
    constexpr unsigned needed[] = {0, kMomentum, kCentered};
    return (variant & needed[state]) == needed[state];
  }

  template <class T>
  struct Scalars {
    T lr, alpha, one_minus_alpha, eps, momentum;
  };

  template <class T>
  FUSEDOPT_FN static Scalars<T> derive(const Hyper& hyper, int64_t) {
    return {T(hyper.lr), T(hyper.alpha), T(1.0 - hyper.alpha), T(hyper.eps), T(hyper.momentum)};
  }

  template <unsigned variant, class T>
  FUSEDOPT_FN static T update(T, T grad, T& square_avg, T& momentum_buffer, T& grad_avg,
                              const Scalars<T>& s) {
    square_avg = s.alpha * square_avg + s.one_minus_alpha * grad * grad;
    T variance = square_avg;
    if constexpr (variant & kCentered) {
      grad_avg = lerp(grad_avg, grad, s.one_minus_alpha);
      variance = square_avg - grad_avg * grad_avg;
    }
    const T denom = square_root(variance) + s.eps;
    if constexpr (variant & kMomentum) {
      momentum_buffer = s.momentum * momentum_buffer + grad / denom;
      return s.lr * momentum_buffer;
    } else {
      return s.lr * grad / denom;
    }
  }
};

}  // namespace fusedopt
