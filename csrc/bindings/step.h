// One optimizer step: reads the parameter groups, validates everything, then has it carried out.
#pragma once

#include <memory>
#include <vector>

#include "bindings/group_options.h"
#include "bindings/torch_tensors.h"
#include "core/rule_info.h"

namespace fusedopt {

// A rule and what the bindings keep for it.
struct BoundRule {
  RuleInfo info;
  std::unique_ptr<Hyperparameters> (*read)(GroupOptions&);
  OptionNames option_names;
  std::vector<PyObject*> state_names;
};

// Memory that one step leaves to the next on the same thread, so that steps do not allocate.
struct StepMemory {
  UpdateList updates;
  KeepAlive keep;
};

class Step {
 public:
  // create_state(name, param, group) returns a new tensor for a state that does not exist yet.
  Step(BoundRule& rule, const TorchTensors& torch, PyObject* state, PyObject* create_state,
       StepMemory& memory);

  // Reads and validates; writes nothing. Throws Refusal; location() says where.
  void gather(PyObject* param_groups);
  // Publishes new states, runs the engines without the GIL, counts the steps, tells autograd.
  void run();

  std::string location() const;

 private:
  struct NewState {
    PyObject* param;
    PyObject* states;  // the parameter's dictionary, or null if it is new as well
    PyObject* name;
    PyObject* tensor;
  };
  struct StepCount {
    void* data;
    DLDataType dtype;
    int64_t value;
  };
  struct StateCursor {
    Py_ssize_t position = 0;
    PyObject* key = nullptr;
    PyObject* value = nullptr;
  };
  struct LatestScalars {
    int64_t step = -1;
    uint32_t position = 0;
  };
  // The parameter group that is being gathered.
  struct Options {
    std::unique_ptr<Hyperparameters> hyper;
    unsigned variant = 0;
    unsigned used_states = 0;
    unsigned required_states = 0;  // used whatever the options are
    bool capturable = false;
    LatestScalars latest_scalars[2];  // by in_double: most parameters of a group share them
  };

  void gather_group(PyObject* group);
  void read_options(PyObject* group);
  void gather_param(PyObject* param, PyObject* grad);
  void check_device(PyObject* param, const Device& device) const;
  TensorView view(PyObject* tensor, const char* what);
  PyObject* resolve_negation(PyObject* grad);
  void peek_states();
  PyObject* states_of(PyObject* param);
  void pass_states_of(PyObject* param);
  PyObject* state_tensor(PyObject* param, PyObject* states, PyObject* name, bool optional);
  PyObject* new_state(PyObject* param, PyObject* states, PyObject* name);
  StepCount read_step_count(PyObject* tensor);
  uint32_t scalars_for(int64_t step, bool in_double);
  void publish_new_states();
  void count_steps();

  BoundRule& rule_;
  const TorchTensors& torch_;
  PyObject* state_;
  PyObject* create_state_;
  StepMemory& memory_;

  StateCursor cursor_;
  PyObject* group_ = nullptr;
  Py_ssize_t group_index_ = -1, param_index_ = -1;
  Options options_;

  std::vector<NewState> new_states_;
  std::vector<StepCount> step_counts_;
  py::list updated_;
};

}  // namespace fusedopt
