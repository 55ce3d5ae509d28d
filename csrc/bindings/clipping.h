// What an optimizer asks of all its gradients together: to measure them, to clip their norm, to
// skip the step.
#pragma once

#include <span>
#include <vector>

#include "bindings/torch_tensors.h"
#include "core/decision.h"

namespace fusedopt {

// A Measurement of fusedopt/optimizers/clipping.py, or None. It is asked for its options, and told
// what was found.
class Clipping {
 public:
  explicit Clipping(PyObject* measurement);

  bool is_asked_for() const { return measurement_ != Py_None; }

  // Which sum the squares of a parameter's gradient belong to: the first, or that of the ranks
  // which have the other parts of the parameter. Runs Python code.
  uint32_t sum_of(PyObject* param);

  // A sum of zero for each of those that parameters belong to.
  std::vector<ExactSum> new_sums() const { return std::vector<ExactSum>(sums_); }

  // The first sum with all others, which are added up over ranks: a collective.
  ExactSum total(std::span<const ExactSum> sums) const;

  const ClipOptions& options() const { return options_; }

  // Where a device finds what is decided: memory on that of a parameter, which is plain. Made by
  // torch, once for each device; the second says that it was made now.
  std::pair<Decision*, bool> decision_on(const Device& device, PyObject* param,
                                         const TorchTensors& torch);

  // What the host has decided, for Python and for the devices. Whether torch had to copy it.
  bool tell(const Decision& decision) const;
  // That a device decides.
  void leave() const;

 private:
  PyObject* measurement_;
  ClipOptions options_;
  uint32_t sums_ = 1;
  std::vector<std::pair<Device, Decision*>> decisions_;
};

// Where a tensor has room for a decision: three numbers of dtype float64. Throws Refusal.
Decision* to_decision(PyObject* tensor, const Device& device, const TorchTensors& torch);

// ExactSum::numbers() as a list of integers, and back.
py::list to_list(const ExactSum& sum);
ExactSum to_sum(const py::handle& numbers);

}  // namespace fusedopt
