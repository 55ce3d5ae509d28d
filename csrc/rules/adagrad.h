// Duchi, Hazan, Singer: Adaptive Subgradient Methods for Online Learning and Stochastic
// Optimization, JMLR 2011, figure 1 with a diagonal matrix; learning-rate decay as in
// torch.optim.Adagrad.
#pragma once

#include <array>

#include "rules/shared.h"

namespace fusedopt {

struct Adagrad {
  static constexpr const char* kName = "adagrad";
  static constexpr bool kCountsSteps = true;
  static constexpr std::array<StateInfo, 1> kStates = {{{"sum", kUnsigned}}};

  enum : unsigned { kVariants = 1 };

  struct Hyper : SharedHyper {
    double lr_decay = 0, eps = 0;
  };

  template <class Options>
  FUSEDOPT_FN static Hyper read(Options& options) {
    Hyper hyper;
    hyper.read_shared(options);
    hyper.lr_decay = options.non_negative("lr_decay");
    hyper.eps = options.non_negative("eps");
    return hyper;
  }

  static unsigned variant(const Hyper&, bool) { return 0; }
  static constexpr bool uses(unsigned, unsigned) { return true; }

  template <class T>
  struct Scalars {
    T decayed_lr, eps;
  };

  template <class T>
  FUSEDOPT_FN static Scalars<T> derive(const Hyper& hyper, int64_t step) {
    return {T(hyper.lr / (1.0 + static_cast<double>(step - 1) * hyper.lr_decay)), T(hyper.eps)};
  }

  template <unsigned variant, class T>
  FUSEDOPT_FN static T update(T, T grad, T& state_sum, const Scalars<T>& s) {
    state_sum = state_sum + grad * grad;
    const T denom = square_root(state_sum) + s.eps;
    return s.decayed_lr * grad / denom;
  }
};

}  // namespace fusedopt
