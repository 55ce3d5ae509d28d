// The heavy ball: the learning rate is inside the velocity, so a change of the rate acts on new
// gradients only and the ball keeps the speed it has.
// Polyak: Some methods of speeding up the convergence of iteration methods, 1964, equation 9;
// Sutskever et al., ICML 2013, equations 1 and 2.
#pragma once

#include <array>

#include "rules/shared.h"

namespace fusedopt {

struct Momentum {
  static constexpr const char* kName = "momentum";
  static constexpr bool kCountsSteps = false;
  static constexpr std::array<StateInfo, 1> kStates = {{{"velocity", kSigned}}};

  enum : unsigned { kVariants = 1 };

  struct Hyper : SharedHyper {
    double momentum = 0;
  };

  template <class Options>
  FUSEDOPT_FN static Hyper read(Options& options) {
    Hyper hyper;
    hyper.read_shared(options);
    hyper.momentum = options.non_negative("momentum");
    return hyper;
  }

  static unsigned variant(const Hyper&, bool) { return 0; }
  static constexpr bool uses(unsigned, unsigned) { return true; }

  template <class T>
  struct Scalars {
    T lr, momentum;
  };

  template <class T>
  FUSEDOPT_FN static Scalars<T> derive(const Hyper& hyper, int64_t) {
    return {T(hyper.lr), T(hyper.momentum)};
  }

  template <unsigned variant, class T>
  FUSEDOPT_FN static T update(T, T grad, T& velocity, const Scalars<T>& s) {
    velocity = s.momentum * velocity - s.lr * grad;
    return -velocity;
  }
};

}  // namespace fusedopt
