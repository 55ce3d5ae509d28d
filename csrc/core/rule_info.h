// A rule as the layers see it that must not know its name: its type erased into a table entry.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "core/update_list.h"
#include "rules/registry.h"

namespace fusedopt {

// One parameter group's hyperparameters, read and checked, for any rule.
class Hyperparameters {
 public:
  virtual ~Hyperparameters() = default;

  // Options as a number that selects the kernel. `fresh`: the states do not exist yet.
  virtual unsigned variant(bool fresh) const = 0;
  // Derives the scalars for a step count, in double and rounded once, and adds them to the list.
  virtual uint32_t add_scalars(UpdateList& list, int64_t step, bool in_double) const = 0;
};

struct RuleInfo {
  const char* name;
  unsigned index;  // in AllRules
  bool counts_steps;
  std::span<const char* const> states;
  OperandNames operand_names;
  unsigned (*used_states)(unsigned variant);  // bit s: state s
};

// Bit 0 of a variant is shared by all rules; a rule's own bits are above it.
constexpr unsigned kNoOptions = 0;
constexpr unsigned kL2Penalty = 1;
constexpr unsigned rule_variant(unsigned variant) { return variant >> 1; }
template <class Rule>
constexpr unsigned kVariantCount = unsigned{Rule::kVariants} << 1;

// What a kernel gets: the scalars of the shared part and of the rule.
template <class Rule, class T>
struct KernelScalars {
  SharedScalars<T> shared;
  typename Rule::template Scalars<T> rule;
};

template <class Rule>
class HyperparametersOf final : public Hyperparameters {
 public:
  explicit HyperparametersOf(const typename Rule::Hyper& hyper) : hyper_(hyper) {}

  unsigned variant(bool fresh) const override {
    return Rule::variant(hyper_, fresh) << 1 | (hyper_.has_l2_penalty() ? kL2Penalty : 0u);
  }

  uint32_t add_scalars(UpdateList& list, int64_t step, bool in_double) const override {
    return in_double ? list.add_scalars(derive<double>(step))
                     : list.add_scalars(derive<float>(step));
  }

 private:
  template <class T>
  KernelScalars<Rule, T> derive(int64_t step) const {
    return {derive_shared<T>(hyper_), Rule::template derive<T>(hyper_, step)};
  }

  typename Rule::Hyper hyper_;
};

template <class Rule>
unsigned used_states(unsigned variant) {
  unsigned used = 0;
  for (unsigned s = 0; s < Rule::kStates.size(); ++s) {
    if (Rule::uses(rule_variant(variant), s)) used |= 1u << s;
  }
  return used;
}

template <class Rule>
RuleInfo rule_info(unsigned index) {
  OperandNames names = {"the parameter", "the gradient"};
  std::copy(Rule::kStates.begin(), Rule::kStates.end(), names.begin() + kFirstState);
  return {
      .name = Rule::kName,
      .index = index,
      .counts_steps = Rule::kCountsSteps,
      .states = Rule::kStates,
      .operand_names = names,
      .used_states = used_states<Rule>,
  };
}

}  // namespace fusedopt
