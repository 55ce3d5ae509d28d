// Not an optimizer: reads and writes the memory that a rule with as many states would, and computes
// next to nothing. Its time is the floor that the benchmark measures the rules against. With a rate
// of 0 all values stay what they were, so that it may take the states of others.
#pragma once

#include <array>

#include "rules/shared.h"

namespace fusedopt {

struct Touch {
  static constexpr const char* kName = "touch";
  static constexpr bool kCountsSteps = false;
  static constexpr std::array<StateInfo, 3> kStates = {
      {{"first", kSigned}, {"second", kSigned}, {"third", kSigned}}};

  enum : unsigned { kVariants = 4 };  // the number of states

  struct Hyper : SharedHyper {
    unsigned states = 0;
  };

  template <class Options>
  FUSEDOPT_FN static Hyper read(Options& options) {
    Hyper hyper;
    hyper.read_shared(options);
    const double states = options.non_negative("states");
    hyper.states = states < 3 ? static_cast<unsigned>(states) : 3;
    return hyper;
  }

  static unsigned variant(const Hyper& hyper, bool) { return hyper.states; }
  static constexpr bool uses(unsigned variant, unsigned state) { return state < variant; }

  template <class T>
  struct Scalars {
    T lr;
  };

  template <class T>
  FUSEDOPT_FN static Scalars<T> derive(const Hyper& hyper, int64_t) {
    return {T(hyper.lr)};
  }

  template <unsigned variant, class T>
  FUSEDOPT_FN static T update(T, T grad, T& first, T& second, T& third, const Scalars<T>& s) {
    const T added = grad * s.lr;
    if constexpr (uses(variant, 0)) first = first + added;
    if constexpr (uses(variant, 1)) second = second + added;
    if constexpr (uses(variant, 2)) third = third + added;
    return -added;
  }
};

}  // namespace fusedopt
