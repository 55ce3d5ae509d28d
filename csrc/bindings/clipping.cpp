#include "bindings/clipping.h"

#include <algorithm>

#include "core/refusal.h"

namespace fusedopt {
namespace {

PyObject* const kMaxNormName = intern("max_norm");
PyObject* const kSkipNonfiniteName = intern("skip_nonfinite");
PyObject* const kSumOfName = intern("sum_of");
PyObject* const kTotalName = intern("total");
PyObject* const kNormName = intern("norm");
PyObject* const kSkippedName = intern("skipped");

void set_attribute(PyObject* object, PyObject* name, const py::object& value) {
  if (PyObject_SetAttr(object, name, value.ptr()) != 0) throw py::error_already_set();
}

}  // namespace

Clipping::Clipping(PyObject* measurement) : measurement_(measurement) {
  if (!is_asked_for()) return;
  const py::object max_norm = take(PyObject_GetAttr(measurement_, kMaxNormName));
  clips_ = !max_norm.is_none();
  if (clips_) max_norm_ = PyFloat_AsDouble(max_norm.ptr());
  if (PyErr_Occurred()) throw py::error_already_set();
  skip_nonfinite_ = is_true(take(PyObject_GetAttr(measurement_, kSkipNonfiniteName)).ptr());
}

uint32_t Clipping::sum_of(PyObject* param) {
  const py::object sum = take(PyObject_CallMethodOneArg(measurement_, kSumOfName, param));
  const auto number = py::cast<uint32_t>(sum);
  sums_ = std::max(sums_, number + 1);
  return number;
}

ExactSum Clipping::total(std::span<const ExactSum> sums) const {
  if (sums.size() == 1) return sums.front();
  py::list lists;
  for (ExactSum sum : sums) {
    sum.carry();
    lists.append(to_list(sum));
  }
  return to_sum(take(PyObject_CallMethodOneArg(measurement_, kTotalName, lists.ptr())));
}

void Clipping::tell(double norm, bool is_skipped) const {
  set_attribute(measurement_, kNormName, py::float_(norm));
  set_attribute(measurement_, kSkippedName, py::bool_(is_skipped));
}

py::list to_list(const ExactSum& sum) {
  py::list numbers;
  for (const int64_t number : sum.numbers()) numbers.append(py::int_(number));
  return numbers;
}

ExactSum to_sum(const py::handle& numbers) {
  ExactSum sum;
  const auto list = py::cast<py::sequence>(numbers);
  if (list.size() != ExactSum::kNumbers) {
    throw Refusal(Refusal::kValue, "a sum of squares is " + std::to_string(ExactSum::kNumbers) +
                                       " integers, not " + std::to_string(list.size()));
  }
  for (size_t i = 0; i < list.size(); ++i) sum.numbers()[i] = py::cast<int64_t>(list[i]);
  return sum;
}

}  // namespace fusedopt
