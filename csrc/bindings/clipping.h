// What an optimizer asks of all its gradients together: to measure them, to clip their norm, to
// skip the step.
#pragma once

#include <span>
#include <vector>

#include "bindings/python.h"
#include "core/reduction.h"

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

  bool skips(const ExactSum& total) const { return skip_nonfinite_ && !total.is_finite(); }
  double factor(double norm) const { return clips_ ? clip_factor(max_norm_, norm) : 1; }

  void tell(double norm, bool is_skipped) const;

 private:
  PyObject* measurement_;
  bool clips_ = false, skip_nonfinite_ = false;
  double max_norm_ = 0;
  uint32_t sums_ = 1;
};

// ExactSum::numbers() as a list of integers, and back.
py::list to_list(const ExactSum& sum);
ExactSum to_sum(const py::handle& numbers);

}  // namespace fusedopt
