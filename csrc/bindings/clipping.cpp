#include "bindings/clipping.h"

#include <algorithm>

#include "core/refusal.h"

namespace fusedopt {
namespace {

PyObject* const kMaxNormName = intern("max_norm");
PyObject* const kSkipNonfiniteName = intern("skip_nonfinite");
PyObject* const kSumOfName = intern("sum_of");
PyObject* const kTotalName = intern("total");
PyObject* const kNewDecisionName = intern("new_decision");
PyObject* const kTellName = intern("tell");
PyObject* const kIsDoneName = intern("is_done");

}  // namespace

Clipping::Clipping(PyObject* measurement) : measurement_(measurement) {
  if (!is_asked_for()) return;
  const py::object max_norm = take(PyObject_GetAttr(measurement_, kMaxNormName));
  if (!max_norm.is_none()) options_.max_norm = PyFloat_AsDouble(max_norm.ptr());
  if (PyErr_Occurred()) throw py::error_already_set();
  options_.skips_nonfinite =
      is_true(take(PyObject_GetAttr(measurement_, kSkipNonfiniteName)).ptr());
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

std::pair<Decision*, bool> Clipping::decision_on(const Device& device, PyObject* param,
                                                 const TorchTensors& torch) {
  for (const auto& [of, decision] : decisions_) {
    if (of == device) return {decision, false};
  }
  // The measurement holds it.
  const py::object tensor = take(PyObject_CallMethodOneArg(measurement_, kNewDecisionName, param));
  decisions_.emplace_back(device, to_decision(tensor.ptr(), device, torch));
  return {decisions_.back().second, true};
}

bool Clipping::tell(const Decision& decision) const {
  take(PyObject_CallMethodObjArgs(measurement_, kTellName, py::float_(decision.norm).ptr(),
                                  py::float_(decision.factor).ptr(),
                                  py::bool_(decision.is_skipped != 0).ptr(), nullptr));
  return !decisions_.empty();
}

void Clipping::leave() const {
  if (PyObject_SetAttr(measurement_, kIsDoneName, Py_True) != 0) throw py::error_already_set();
}

Decision* to_decision(PyObject* tensor, const Device& device, const TorchTensors& torch) {
  constexpr const char* kName = "the memory for a norm";
  constexpr int64_t kNumbers = sizeof(Decision) / sizeof(double);
  torch.require_tensor(tensor, kName);
  const TensorView view = to_view(torch.describe(tensor, kName), kName);
  // Modes of torch, and whoever replaces its functions, may make anything of it.
  if (view.device == device && view.format == Format::kFloat64 && view.numel == kNumbers &&
      is_contiguous(view)) {
    return static_cast<Decision*>(view.data);
  }
  throw Refusal(Refusal::kType, kName + std::string(" is no tensor of three numbers of dtype "
                                                    "float64 on the parameters' device"));
}

py::list to_list(const ExactSum& sum) {
  py::list numbers;
  for (const int64_t number : sum.numbers()) numbers.append(py::int_(number));
  return numbers;
}

ExactSum to_sum(const py::handle& numbers) {
  ExactSum sum{};
  const auto list = py::cast<py::sequence>(numbers);
  if (list.size() != ExactSum::kNumbers) {
    throw Refusal(Refusal::kValue, "a sum of squares is " + std::to_string(ExactSum::kNumbers) +
                                       " integers, not " + std::to_string(list.size()));
  }
  for (size_t i = 0; i < list.size(); ++i) sum.numbers()[i] = py::cast<int64_t>(list[i]);
  return sum;
}

}  // namespace fusedopt
