// What a step reads of torch's parameter groups and makes of it, in memory that one step leaves to
// the next, so that steps do not allocate.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "bindings/epilogue_options.h"
#include "bindings/group_options.h"
#include "bindings/storage_options.h"
#include "bindings/torch_tensors.h"
#include "core/plan.h"

namespace fusedopt {

// A rule and what the bindings keep for it.
struct BoundRule {
  RuleInfo info;
  std::unique_ptr<Hyperparameters> (*read)(GroupOptions&);
  OptionNames option_names;
  std::vector<PyObject*> state_names, scale_names;
};

// A parameter group, as one step reads it.
struct GroupPlan {
  PyObject* group = nullptr;
  std::unique_ptr<Hyperparameters> hyper;
  unsigned variant = 0;
  unsigned used_states = 0;
  unsigned required_states = 0;  // used whatever the options are
  bool counts_steps = false;
  bool capturable = false;
  bool has_left_options = false;  // options that only a device knows
  size_t first_option = 0, option_count = 0;
  StorageOptions storage;
  EpilogueOptions epilogue;
  GroupScalars scalars;
};

// The tensors of one parameter that has a gradient.
struct ParamPlan {
  static constexpr uint32_t kNone = UINT32_MAX;

  Py_ssize_t group_index, param_index;
  PyObject* param = nullptr;
  PyObject* states = nullptr;    // a mapping; null if there is none yet
  PyObject* step = nullptr;      // null where none are counted
  PyObject* averaged = nullptr;  // how many the average is of; null where that does not matter
  uint32_t first_operand = 0;    // position in StepMemory::tensors and operands
  uint32_t new_states = kNone;   // position in StepMemory::new_states
  uint32_t touched = 0;          // the first of its own in StepMemory::touched
  uint32_t number = 0;           // in the order of the groups, counting those without a gradient
  uint32_t sum = 0;              // that its gradient's squares belong to, if they are measured
  uint8_t operand_count = 0;     // of the update
  uint8_t tensor_count = 0;      // scales included, which come last
  bool is_fresh = false;         // a state of the rule did not exist
  bool begins_average = false;   // of which this step is the first
  Part part = {};                // of a DTensor, where it matters for how it is stored
  DeviceUpdates* list = nullptr;

  bool has_new_states() const { return new_states != kNone; }
};

// An object that is no plain tensor: what it stands for is found by Python code.
struct Unresolved {
  static constexpr int kStep = -1, kAveraged = -2;  // counts

  uint32_t param;  // position in StepMemory::params
  int operand;     // among those of its update, or a count
};

// Where in the parameter groups a step is, for errors.
struct Location {
  Py_ssize_t group = -1, param = -1;
};

struct StepMemory {
  StepPlan plan;
  KeepAlive keep;
  Location location;
  std::vector<GroupPlan> groups;
  std::vector<GroupOption> options;
  std::vector<ParamPlan> params;
  std::vector<PyObject*> tensors;  // of all updates; once resolved, plain ones
  std::vector<Operand> operands;   // what is known of them before they are described
  std::vector<std::pair<PyObject*, Operand>> scales;  // of the parameter that is being collected
  std::vector<TensorView> views;                      // of the update that is being described
  std::vector<const char*> operand_names;             // theirs
  std::vector<PyObject*> new_states;  // a dict for each parameter that gets some in this step
  std::vector<Unresolved> unresolved;
  std::vector<PyObject*> touched;  // tensors whose versions the step counts up

  void clear() {
    keep.clear();
    forget_descriptions();
    location = {};
    groups.clear();
    options.clear();
    params.clear();
    tensors.clear();
    operands.clear();
    new_states.clear();
    unresolved.clear();
    touched.clear();
  }

  // Those of one update, scales included.
  std::span<PyObject*> tensors_of(const ParamPlan& plan) {
    return std::span(tensors).subspan(plan.first_operand, plan.tensor_count);
  }
  std::span<Operand> operands_of(const ParamPlan& plan) {
    return std::span(operands).subspan(plan.first_operand, plan.tensor_count);
  }

  // Leaves what has been collected, so that it can be described anew.
  void forget_descriptions() {
    plan.clear();
    for (GroupPlan& group : groups) group.scalars = {};
  }
};

// "parameter group 0, parameter 3 ('bias')", or nothing.
std::string describe(const Location& location, const StepMemory& memory);

}  // namespace fusedopt
