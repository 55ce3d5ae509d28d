// One optimizer step: collects what torch's parameter groups hold, describes and validates
// everything, then has it carried out.
#pragma once

#include <exception>

#include "bindings/clipping.h"
#include "bindings/group_walk.h"
#include "core/address_space.h"

namespace fusedopt {

class Step {
 public:
  // create_state: see OptimizerState.
  Step(BoundRule& rule, const TorchTensors& torch, PyObject* state, PyObject* create_state,
       AmpTensors& amp, Clipping& clipping, StepMemory& memory);

  // Reads and validates all parameters that have a gradient, or the one at the place `only`; writes
  // nothing. Throws Refusal; memory.location says where.
  void gather(PyObject* param_groups, const Location& only = {});
  // Measures the gradients, if that is asked for. Then runs the engines without the GIL, counts the
  // steps, enters new states and tells autograd; or does nothing, where the host knows that this
  // step is to be skipped. If an engine fails, what was done before it on other devices is
  // completed, and nothing else is. What a signal raises meanwhile is thrown when all of that is
  // done.
  void run();

 private:
  void find_sums();
  void make_decision();
  void lay_out();
  void describe_all();
  void prefetch(size_t index) const;
  void add_update(ParamPlan& plan);
  DLTensor describe_gradient(PyObject*& grad);
  TensorView view_of(const ParamPlan& plan, size_t operand);
  void choose_formats(const ParamPlan& plan);
  void describe_scales(const ParamPlan& plan);
  void plan_draws(const ParamPlan& plan, DeviceUpdates& list, Update& update, int64_t step);
  void plan_scalars(const ParamPlan& plan, DeviceUpdates& list, Update& update, int64_t step);
  void plan_step_count(ParamPlan& plan, DeviceUpdates& list, Update& update, int64_t& step);
  void plan_averaged_count(ParamPlan& plan, DeviceUpdates& list, Update& update, int64_t& averaged);
  void plan_epilogue(const ParamPlan& plan, DeviceUpdates& list, Update& update, int64_t averaged);
  void check_average(const ParamPlan& plan, size_t operand) const;
  void plan_new_states(const ParamPlan& plan, const DeviceUpdates& list);
  void finish_list(DeviceUpdates& list);
  void check_sharing();
  [[noreturn]] void refuse(const PlanConflict& conflict);
  bool wants_skip();
  void measure();

  DeviceUpdates& list_for(const Device& device);
  void check_capture(const ParamPlan& plan);
  // A state that counts: one number.
  struct Count {
    PyObject* key;
    const char* name;
    PyObject*& tensor;  // of the plan
    NumberPlace place = {};
  };
  NumberPlace find_count(PyObject* tensor, const char* name) const;
  void require_count(const Count& count) const;
  void replace(ParamPlan& plan, Count& count, py::object tensor);
  bool leaves(const ParamPlan& plan, const DeviceUpdates& list, const NumberPlace& count);
  void place_count(ParamPlan& plan, const DeviceUpdates& list, Count& count, bool is_left);
  int64_t count_on_host(ParamPlan& plan, DeviceUpdates& list, Count& count);
  uint32_t options_for(GroupPlan& group, DeviceUpdates& list);
  GroupPlan& group_of(const ParamPlan& plan) {
    return memory_.groups[static_cast<size_t>(plan.group_index)];
  }
  const char* name_of(const Operand& operand) const {
    return rule_.info.operand_names[operand.role].c_str();
  }
  uint32_t number_of(const ParamPlan& plan) const {
    return static_cast<uint32_t>(&plan - memory_.params.data());
  }
  void locate(const ParamPlan& plan) { memory_.location = {plan.group_index, plan.param_index}; }

  void publish_states(Interruption& interruption);
  void count_versions(Interruption& interruption);

  BoundRule& rule_;
  const TorchTensors& torch_;
  AmpTensors& amp_;
  Clipping& clipping_;
  StepMemory& memory_;
  OptimizerState state_;
  GroupWalk walk_;

  // Python code, or an operation of torch's, has run while tensors were described: they may have
  // other memory now.
  bool is_stale_ = false;
  bool host_must_know_ = false;  // whether the step is to be skipped
  bool is_skipped_ = false;
  AddressSpace for_publishing_;
};

}  // namespace fusedopt
