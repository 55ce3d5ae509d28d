// From a rule's type to what the layers see that must not know its name.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/erased_rule.h"
#include "core/scalars.h"
#include "rules/registry.h"

namespace fusedopt {

// Whether a field of this type can hold the variants of all rules.
template <class Field, class Rules = AllRules>
constexpr bool kHoldsEveryVariant = [] {
  constexpr auto counts = Rules::map([]<class Rule>() { return kVariantCount<Rule>; });
  return *std::max_element(counts.begin(), counts.end()) - 1 <= std::numeric_limits<Field>::max();
}();
static_assert(kHoldsEveryVariant<decltype(Update::variant)>);

template <class Rule>
class HyperparametersOf final : public Hyperparameters {
 public:
  explicit HyperparametersOf(const typename Rule::Hyper& hyper) : hyper_(hyper) {}

  double lr() const override { return hyper_.lr; }

  unsigned variant(bool fresh) const override {
    const unsigned of_rule = Rule::variant(hyper_, fresh);
    // There is no kernel for another: the CPU would read behind its table, a GPU do nothing.
    if (of_rule >= Rule::kVariants) {
      throw std::logic_error("rule '" + std::string(Rule::kName) + "' has variants below " +
                             std::to_string(unsigned{Rule::kVariants}) + ", not " +
                             std::to_string(of_rule));
    }
    return of_rule << 1 | (hyper_.has_l2_penalty() ? kL2Penalty : 0u);
  }

  uint32_t add_scalars(UpdateList& list, int64_t step, bool in_double) const override {
    return in_double ? list.add(derive_scalars<double, Rule>(hyper_, step))
                     : list.add(derive_scalars<float, Rule>(hyper_, step));
  }

 private:
  typename Rule::Hyper hyper_;
};

template <class Rule>
RuleInfo rule_info(unsigned index) {
  static_assert(kFirstState + Rule::kStates.size() < kMostOperands);
  std::vector<std::string> names = {"the parameter", "the gradient"};
  for (const StateInfo& state : Rule::kStates) names.emplace_back(state.name);
  for (const StateInfo& state : Rule::kStates) names.push_back(state.name + std::string("_scale"));
  names.emplace_back("param_remainder");
  names.emplace_back("ema");
  return {
      .name = Rule::kName,
      .index = index,
      .counts_steps = Rule::kCountsSteps,
      .states = Rule::kStates,
      .operand_names = names,
      .used_states = [](unsigned variant) { return used_states<Rule>(rule_variant(variant)); },
  };
}

}  // namespace fusedopt
