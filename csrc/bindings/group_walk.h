// Collects the objects of a step from torch's parameter groups: options, parameters, gradients,
// states. All Python code that a step has to run runs here, before the first address of memory is
// read, because that code may free or replace the memory of any tensor.
#pragma once

#include "bindings/amp_tensors.h"
#include "bindings/optimizer_state.h"

namespace fusedopt {

class GroupWalk {
 public:
  GroupWalk(BoundRule& rule, const TorchTensors& torch, OptimizerState& state,
            const AmpTensors& amp, StepMemory& memory)
      : rule_(rule), torch_(torch), state_(state), amp_(amp), memory_(memory) {}

  // Fills memory.groups and memory.params: with all parameters that have a gradient, or with the
  // one at the place `only`, if that names any. Throws Refusal; memory.location says where.
  void collect(PyObject* param_groups, const Location& only);

  // Reads a group's options once more, now those on a device as well, which waits for it.
  void fetch_options(GroupPlan& plan) { read_options(plan, GroupOptions::kFetch); }

 private:
  void collect_group(PyObject* group, const Location& only);
  GroupPlan read_group(PyObject* group);
  void read_options(GroupPlan& plan, GroupOptions::OnDevice on_device);
  void collect_param(PyObject* param, PyObject* grad);
  void collect_states(ParamPlan& plan, const GroupPlan& group);
  void add_operand(const ParamPlan& plan, PyObject* tensor, const Operand& operand);
  void note_unresolved(const ParamPlan& plan, PyObject* tensor, int operand);
  PyObject* resolve_gradient(PyObject* grad);
  void resolve(const Unresolved& unresolved);
  void prefetch(PyObject* params, Py_ssize_t index) const;

  BoundRule& rule_;
  const TorchTensors& torch_;
  OptimizerState& state_;
  const AmpTensors& amp_;
  StepMemory& memory_;
  uint32_t number_ = 0;  // parameters that came before
};

}  // namespace fusedopt
