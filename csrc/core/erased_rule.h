// A rule as seen by the layers that must not know its name: its type erased into a table entry.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/update_list.h"
#include "rules/shared.h"

namespace fusedopt {

// One parameter group's hyperparameters, read and checked, for any rule.
class Hyperparameters {
 public:
  virtual ~Hyperparameters() = default;

  // What multiplies a step, and the threshold of an L1 penalty.
  virtual double lr() const = 0;
  // Options as a number that selects the kernel. `fresh`: the states do not exist yet.
  virtual unsigned variant(bool fresh) const = 0;
  // Derives the scalars for a step count, in double and rounded once, and adds them to the list.
  virtual uint32_t add_scalars(UpdateList& list, int64_t step, bool in_double) const = 0;
};

struct RuleInfo {
  const char* name;
  unsigned index;  // in AllRules
  bool counts_steps;
  std::span<const StateInfo> states;
  std::vector<std::string> operand_names;     // by role, also of what is no state of the rule
  unsigned (*used_states)(unsigned variant);  // bit s: state s

  // Roles behind those of the states: of their scales, in the same order, of the remainder, and of
  // the parameter's average.
  int role_of_scales(unsigned state) const {
    return kFirstState + static_cast<int>(states.size() + state);
  }
  int role_of_remainder() const { return role_of_scales(static_cast<unsigned>(states.size())); }
  int role_of_average() const { return role_of_remainder() + 1; }
};

}  // namespace fusedopt
