// Zeiler: ADADELTA: An Adaptive Learning Rate Method, 2012, algorithm 1; epsilon inside the roots.
#pragma once

#include <array>

#include "rules/shared.h"

namespace fusedopt {

struct Adadelta {
  static constexpr const char* kName = "adadelta";
  static constexpr bool kCountsSteps = true;
  static constexpr std::array<StateInfo, 2> kStates = {
      {{"square_avg", kUnsigned}, {"acc_delta", kUnsigned}}};

  enum : unsigned { kVariants = 1 };

  struct Hyper : SharedHyper {
    double rho = 0, eps = 0;
  };

  template <class Options>
  FUSEDOPT_FN static Hyper read(Options& options) {
    Hyper hyper;
    hyper.read_shared(options);
    hyper.rho = options.non_negative("rho");
    hyper.eps = options.non_negative("eps");
    return hyper;
  }

  static unsigned variant(const Hyper&, bool) { return 0; }
  static constexpr bool uses(unsigned, unsigned) { return true; }

  template <class T>
  struct Scalars {
    T lr, rho, one_minus_rho, eps;
  };

  template <class T>
  FUSEDOPT_FN static Scalars<T> derive(const Hyper& hyper, int64_t) {
    return {T(hyper.lr), T(hyper.rho), T(1.0 - hyper.rho), T(hyper.eps)};
  }

  template <unsigned variant, class T>
  FUSEDOPT_FN static T update(T, T grad, T& square_avg, T& acc_delta, const Scalars<T>& s) {
    square_avg = s.rho * square_avg + s.one_minus_rho * grad * grad;
    const T delta = square_root(acc_delta + s.eps) / square_root(square_avg + s.eps) * grad;
    acc_delta = s.rho * acc_delta + s.one_minus_rho * delta * delta;
    return s.lr * delta;
  }
};

}  // namespace fusedopt
