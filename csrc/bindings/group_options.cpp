#include "bindings/group_options.h"

#include "core/refusal.h"

namespace fusedopt {
namespace {

constexpr int kNoIndex = -1;

[[noreturn]] void refuse(Refusal::Kind kind, const char* name, int index, PyObject* value,
                         const char* requirement) {
  const std::string label =
      index == kNoIndex ? name : std::string(name) + "[" + std::to_string(index) + "]";
  throw Refusal(kind, "invalid " + label + ": " + py::repr(py::handle(value)).cast<std::string>() +
                          " (must be " + requirement + ")");
}

double to_number(PyObject* value, const char* name, int index = kNoIndex) {
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  // Integers, NumPy scalars, and tensors of one element wherever they are.
  const double number = PyFloat_AsDouble(value);
  if (number == -1.0 && PyErr_Occurred()) {
    const bool is_type_error = PyErr_ExceptionMatches(PyExc_TypeError);
    // A tensor of several elements raises one of these.
    const bool is_value_error =
        PyErr_ExceptionMatches(PyExc_ValueError) || PyErr_ExceptionMatches(PyExc_RuntimeError);
    if (!is_type_error && !is_value_error) throw py::error_already_set();
    PyErr_Clear();
    refuse(is_type_error ? Refusal::kType : Refusal::kValue, name, index, value, "a number");
  }
  return number;
}

}  // namespace

PyObject* OptionNames::at(size_t position, const char* name) {
  if (position < entries_.size() && entries_[position].name == name) {
    return entries_[position].interned;
  }
  entries_.resize(position);
  entries_.push_back({name, intern(name)});
  return entries_.back().interned;
}

PyObject* GroupOptions::find(const char* name) {
  PyObject* value = find_item(group_, names_.at(position_++, name));
  if (value == nullptr) {
    throw Refusal(Refusal::kKey, "option '" + std::string(name) + "' is missing");
  }
  return value;
}

double GroupOptions::number(const char* name) { return to_number(find(name), name); }

double GroupOptions::non_negative(const char* name) {
  PyObject* const object = find(name);
  const double value = to_number(object, name);
  if (!(value >= 0)) refuse(Refusal::kValue, name, kNoIndex, object, "at least 0");
  return value;
}

double GroupOptions::rate(const char* name) {
  // torch's LinearLR from 0.1 to 0 ends at -5e-19, and torch's optimizers carry on.
  constexpr double kRounding = 1e-12;
  PyObject* const object = find(name);
  const double value = to_number(object, name);
  if (!(value >= -kRounding)) refuse(Refusal::kValue, name, kNoIndex, object, "at least 0");
  return value;
}

double GroupOptions::below_one(const char* name, int index) {
  const py::object item = take(PySequence_GetItem(find(name), index));
  const double value = to_number(item.ptr(), name, index);
  if (!(value >= 0 && value < 1)) {
    refuse(Refusal::kValue, name, index, item.ptr(), "at least 0 and below 1");
  }
  return value;
}

bool GroupOptions::flag(const char* name) {
  const int truth = PyObject_IsTrue(find(name));
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

}  // namespace fusedopt
