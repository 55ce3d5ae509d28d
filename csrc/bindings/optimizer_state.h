// `optimizer.state`: what a parameter has, what it gets in this step, and when others see that.
#pragma once

#include "bindings/step_memory.h"

namespace fusedopt {

class OptimizerState {
 public:
  // create(name, param, group) returns a new tensor for a state that does not exist yet; or a tuple
  // of one whose memory holds nothing yet and the number that all of its elements are.
  OptimizerState(PyObject* state, PyObject* create, const TorchTensors& torch, StepMemory& memory);

  // The next two are asked about one parameter after the other, in their order.

  // The mapping of a parameter's states; null if there is none.
  PyObject* of(PyObject* param);
  void skip(PyObject* param) { (void)next_if_of(param); }

  struct Found {
    PyObject* tensor;  // null where there is none, and need not be
    bool is_new;
  };

  // A state of the parameter that is being collected, new if it does not exist and may: if none of
  // its states does, or if it is optional. `operand` is told if its memory holds nothing yet; null
  // for a step count.
  Found tensor(ParamPlan& plan, PyObject* group, PyObject* name, bool is_optional,
               Operand* operand);
  // The scales of a state, which only codes have.
  PyObject* scales(ParamPlan& plan, PyObject* group, PyObject* name, const Found& state,
                   Operand* operand);

  // How many an average is of: none if it begins.
  PyObject* averaged(ParamPlan& plan, PyObject* group, PyObject* name, bool begins_average);

  // Has a state replaced by another tensor, with the others that are new.
  void replace(ParamPlan& plan, PyObject* name, PyObject* tensor);

  // Enters the new states of a parameter. May be called again after an exception.
  void publish(const ParamPlan& plan) const;

  PyObject* creator() const { return create_; }

 private:
  PyObject* next_if_of(PyObject* param);
  PyObject* find(const ParamPlan& plan, PyObject* name);
  PyObject* create(ParamPlan& plan, PyObject* group, PyObject* name, Operand* operand,
                   bool may_be_none);
  PyObject* new_states_of(ParamPlan& plan);

  PyObject* state_;
  PyObject* create_;
  const TorchTensors& torch_;
  StepMemory& memory_;
  bool is_plain_;
  Py_ssize_t next_ = 0;  // a walk over state_ beside that over the parameters
};

}  // namespace fusedopt
