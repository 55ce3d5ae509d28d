// Nesterov's accelerated gradient. The parameter holds the lookahead point y = x + momentum * v,
// where the gradient has to be taken. With v' = momentum * v - lr * grad and x' = x + v',
//   y' = x' + momentum * v' = y + (momentum * v' - lr * grad),
// so neither x nor a second forward pass is needed.
// Nesterov: A method of solving a convex programming problem with convergence rate O(1/k^2), 1983;
// Sutskever et al., ICML 2013, equations 3 and 4; Bengio et al., ICASSP 2013, equation 7.
#pragma once

#include "rules/momentum.h"

namespace fusedopt {

struct Nesterov : Momentum {
  static constexpr const char* kName = "nesterov";

  template <unsigned variant, class T>
  FUSEDOPT_FN static T update(T, T grad, T& velocity, const Scalars<T>& s) {
    const T impulse = s.lr * grad;
    velocity = s.momentum * velocity - impulse;
    return -(s.momentum * velocity - impulse);  // not impulse - ..., whose zero has another sign
  }
};

}  // namespace fusedopt
