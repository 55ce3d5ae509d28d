// The list of all rules. A new optimizer is entered here and nowhere else in csrc/.
#pragma once

#include <array>
#include <cstddef>

#include "rules/adadelta.h"
#include "rules/adagrad.h"
#include "rules/adam.h"
#include "rules/momentum.h"
#include "rules/nesterov.h"
#include "rules/rmsprop.h"
#include "rules/sgd.h"
#include "rules/touch.h"

namespace fusedopt {

template <class... Rules>
struct RuleList {
  static constexpr size_t kCount = sizeof...(Rules);

  // Calls f.template operator()<Rule>() for every rule and collects the results, in order.
  template <class F>
  static constexpr auto map(F f) {
    return std::array{f.template operator()<Rules>()...};
  }
};

using AllRules = RuleList<Sgd, Momentum, Nesterov, Adagrad, Rmsprop, Adadelta, Adam, Touch>;

}  // namespace fusedopt
