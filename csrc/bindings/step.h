// One optimizer step: reads the parameter groups, validates everything, then has it carried out.
#pragma once

#include <memory>
#include <vector>

#include "bindings/amp_tensors.h"
#include "bindings/group_options.h"
#include "bindings/torch_tensors.h"
#include "core/engine.h"
#include "core/rule_info.h"

namespace fusedopt {

// A rule and what the bindings keep for it.
struct BoundRule {
  RuleInfo info;
  std::unique_ptr<Hyperparameters> (*read)(GroupOptions&);
  OptionNames option_names;
  std::vector<PyObject*> state_names;
};

// The updates of the parameters on one device.
struct DeviceUpdates {
  Engine* engine = nullptr;
  Execution execution;
  UpdateList updates;
  std::unique_ptr<EngineMemory> memory;
  bool is_active = false;       // in this step
  PyObject* example = nullptr;  // a parameter that is there
};

// A parameter group, as one step reads it.
struct GroupPlan {
  struct LatestScalars {
    const DeviceUpdates* list = nullptr;
    int64_t step = -1;
    uint32_t position = 0;
  };

  PyObject* group = nullptr;
  std::unique_ptr<Hyperparameters> hyper;
  unsigned variant = 0;
  unsigned used_states = 0;
  unsigned required_states = 0;  // used whatever the options are
  bool capturable = false;
  bool has_left_options = false;  // options that only a device knows
  size_t first_option = 0, option_count = 0;
  LatestScalars latest_scalars[2];  // by in_double: most parameters of a group share them
  LatestScalars latest_options;
};

// The tensors of one parameter that has a gradient.
struct ParamPlan {
  Py_ssize_t group_index, param_index;
  PyObject* states = nullptr;                      // null if there are none yet
  PyObject* step = nullptr;                        // null for a rule that counts none
  std::array<PyObject*, kMaxOperands> operands{};  // null: not used
  bool fresh = false;                              // a state is new
};

struct NewState {
  PyObject* param;
  PyObject* states;  // the parameter's dictionary, or null if it is new as well
  PyObject* name;
  PyObject* tensor;
};

struct StepCount {
  NumberPlace place;
  int64_t value;
};

// Memory that one step leaves to the next on the same thread, so that steps do not allocate.
struct StepMemory {
  std::vector<std::unique_ptr<DeviceUpdates>> lists;  // nearly always one
  KeepAlive keep;
  std::vector<GroupPlan> groups;
  std::vector<GroupOption> options;
  std::vector<ParamPlan> params;
  std::vector<NewState> new_states;
  std::vector<StepCount> step_counts;

  void clear() {
    keep.clear();
    for (const auto& list : lists) list->is_active = false;
    groups.clear();
    options.clear();
    params.clear();
    new_states.clear();
    step_counts.clear();
  }
};

class Step {
 public:
  // create_state(name, param, group) returns a new tensor for a state that does not exist yet.
  Step(BoundRule& rule, const TorchTensors& torch, PyObject* state, PyObject* create_state,
       const AmpTensors& amp, StepMemory& memory);

  // Reads and validates; writes nothing. Throws Refusal; location() says where.
  void gather(PyObject* param_groups);
  // Publishes new states, runs the engines without the GIL, counts the steps, tells autograd; or
  // does nothing, where the host knows that a gradient scaler wants this step skipped. What a
  // signal raises meanwhile is thrown when all of that is done.
  void run();

  std::string location() const;

 private:
  // First the objects are collected, then their tensors are described. In between their addresses
  // are known, so that memory which the last step's data drove out of the caches can be prefetched.
  void collect_group(PyObject* group);
  GroupPlan read_group(PyObject* group);
  void read_options(GroupPlan& plan, GroupOptions::OnDevice on_device);
  void collect_param(PyObject* param, PyObject* grad);
  void prefetch_param(PyObject* params, Py_ssize_t index) const;
  void prefetch_plan(size_t index) const;
  void add_update(const ParamPlan& plan);
  void plan_scalars(const ParamPlan& plan, DeviceUpdates& list, Update& update);
  void plan_step_count(const ParamPlan& plan, const DeviceUpdates& list, Update& update,
                       int64_t& step);
  NumberPlace widen_step_count(const ParamPlan& plan);
  void check_overlap(DeviceUpdates& list);
  void finish_list(DeviceUpdates& list);

  DeviceUpdates& unused_list(const Engine& engine, const Device& device);
  DeviceUpdates& list_for(PyObject* param, const Device& device);
  void check_capture(const ParamPlan& plan) const;
  PyObject* memory_of(const ParamPlan& plan, int operand, PyObject* param_memory);
  PyObject* resolve_negation(PyObject* grad);
  PyObject* next_states_if_of(PyObject* param);
  PyObject* states_of(PyObject* param);
  PyObject* state_tensor(PyObject* param, PyObject* states, PyObject* name, bool optional);
  PyObject* new_state(PyObject* param, PyObject* states, PyObject* name);
  NumberPlace find_step_count(PyObject* tensor);
  int64_t read_step_count(PyObject* tensor, const NumberPlace& place) const;
  uint32_t scalars_for(GroupPlan& group, DeviceUpdates& list, int64_t step, bool in_double);
  uint32_t options_for(GroupPlan& group, DeviceUpdates& list);
  GroupPlan& current_group() { return memory_.groups[static_cast<size_t>(group_index_)]; }
  void publish(const NewState& state);
  void run_lists(bool asynchronous);
  void count_steps();

  BoundRule& rule_;
  const TorchTensors& torch_;
  PyObject* state_;
  PyObject* create_state_;
  const AmpTensors& amp_;
  StepMemory& memory_;

  Py_ssize_t next_state_ = 0;    // a walk over state_ beside that over the parameters
  bool host_must_know_ = false;  // whether the step is to be skipped
  bool is_skipped_ = false;
  Py_ssize_t group_index_ = -1, param_index_ = -1;  // for location()
};

}  // namespace fusedopt
