#include "bindings/optimizer_state.h"

#include "core/refusal.h"

namespace fusedopt {
namespace {

PyObject* const kRemainderKey = intern("param_remainder");
PyObject* const kStepKey = intern("step");

bool contains(PyObject* states, PyObject* name) {
  const int found = PyDict_Contains(states, name);
  if (found < 0) throw py::error_already_set();
  return found == 1;
}

// A master may be there before the first step, with a step count.
bool has_none_but_a_master(PyObject* states) {
  if (states == nullptr || PyDict_GET_SIZE(states) == 0) return true;
  if (PyDict_GET_SIZE(states) > 2 || !contains(states, kRemainderKey)) return false;
  return PyDict_GET_SIZE(states) == 1 || contains(states, kStepKey);
}

}  // namespace

OptimizerState::OptimizerState(PyObject* state, PyObject* create, const TorchTensors& torch,
                               StepMemory& memory)
    : state_(state),
      create_(create),
      torch_(torch),
      memory_(memory),
      is_plain_(is_plain_dict(state)) {
  if (!PyMapping_Check(state)) throw Refusal(Refusal::kType, "optimizer.state must be a dict");
}

PyObject* OptimizerState::of(PyObject* param) {
  // The dictionary is nearly always in the order of the parameters, and walking it is cheaper than
  // a lookup, which calls Tensor.__hash__ in Python.
  PyObject* states = next_if_of(param);
  states = states != nullptr ? memory_.keep.share(states) : find_item(state_, param, memory_.keep);
  if (states != nullptr && !PyDict_Check(states)) {
    throw Refusal(Refusal::kType, "its state must be a dict");
  }
  return states;
}

PyObject* OptimizerState::next_if_of(PyObject* param) {
  Py_ssize_t position = next_;
  PyObject *key, *value;
  if (!is_plain_ || !PyDict_Next(state_, &position, &key, &value) || key != param) return nullptr;
  next_ = position;
  return value;
}

PyObject* OptimizerState::find(const ParamPlan& plan, PyObject* name) {
  if (plan.states == nullptr || PyDict_GET_SIZE(plan.states) == 0) return nullptr;
  PyObject* const tensor = find_item(plan.states, name, memory_.keep);
  if (tensor == nullptr || tensor == Py_None) return nullptr;
  if (!torch_.is_tensor(tensor)) {
    throw Refusal(Refusal::kType, "state '" + to_string(name) + "' must be a tensor");
  }
  return tensor;
}

OptimizerState::Found OptimizerState::tensor(ParamPlan& plan, PyObject* group, PyObject* name,
                                             bool is_optional, Operand* operand) {
  if (PyObject* const tensor = find(plan, name)) return {tensor, false};
  const bool has_none = has_none_but_a_master(plan.states);
  if (!has_none && !is_optional) {
    throw Refusal(Refusal::kKey, "its state has no '" + to_string(name) +
                                     "'; does the checkpoint come from another optimizer?");
  }
  return {create(plan, group, name, operand, false), true};
}

PyObject* OptimizerState::scales(ParamPlan& plan, PyObject* group, PyObject* name,
                                 const Found& state, Operand* operand) {
  return state.is_new ? create(plan, group, name, operand, true) : find(plan, name);
}

PyObject* OptimizerState::averaged(ParamPlan& plan, PyObject* group, PyObject* name,
                                   bool begins_average) {
  if (begins_average) return create(plan, group, name, nullptr, false);
  return tensor(plan, group, name, true, nullptr).tensor;
}

PyObject* OptimizerState::create(ParamPlan& plan, PyObject* group, PyObject* name, Operand* operand,
                                 bool may_be_none) {
  PyObject* tensor = memory_.keep.steal(
      take(PyObject_CallFunctionObjArgs(create_, name, plan.param, group, nullptr))
          .release()
          .ptr());
  if (operand != nullptr && PyTuple_Check(tensor) && PyTuple_GET_SIZE(tensor) == 2) {
    const double initial = PyFloat_AsDouble(PyTuple_GET_ITEM(tensor, 1));
    if (initial == -1.0 && PyErr_Occurred()) throw py::error_already_set();
    operand->access = Access::kWrite;
    operand->initial = initial;
    tensor = PyTuple_GET_ITEM(tensor, 0);
  }
  if (tensor == Py_None && may_be_none) return nullptr;
  torch_.require_tensor(tensor, ("new state '" + to_string(name) + "'").c_str());
  replace(plan, name, tensor);
  return tensor;
}

PyObject* OptimizerState::new_states_of(ParamPlan& plan) {
  if (!plan.has_new_states()) {
    plan.new_states = static_cast<uint32_t>(memory_.new_states.size());
    memory_.new_states.push_back(memory_.keep.steal(take(PyDict_New()).release().ptr()));
  }
  return memory_.new_states[plan.new_states];
}

void OptimizerState::replace(ParamPlan& plan, PyObject* name, PyObject* tensor) {
  if (PyDict_SetItem(new_states_of(plan), name, tensor) != 0) {
    throw py::error_already_set();
  }
}

// Entering a parameter calls Tensor.__hash__, a Python function.
void OptimizerState::publish(const ParamPlan& plan) const {
  PyObject* const by_name = memory_.new_states[plan.new_states];
  if (plan.states == nullptr) {
    if (PyObject_SetItem(state_, plan.param, by_name) != 0) throw py::error_already_set();
    return;
  }
  PyObject *name, *tensor;
  for (Py_ssize_t position = 0; PyDict_Next(by_name, &position, &name, &tensor);) {
    if (PyObject_SetItem(plan.states, name, tensor) != 0) throw py::error_already_set();
  }
}

}  // namespace fusedopt
