#include "bindings/group_options.h"

#include <limits>

#include "core/refusal.h"

namespace fusedopt {
namespace {

constexpr int kNoIndex = -1;

[[noreturn]] void refuse(Refusal::Kind kind, const char* name, int index, PyObject* value,
                         const std::string& requirement) {
  const std::string label =
      index == kNoIndex ? name : std::string(name) + "[" + std::to_string(index) + "]";
  throw Refusal(kind,
                "invalid " + label + ": " + repr_of(value) + " (must be " + requirement + ")");
}

double to_number(PyObject* value, const char* name, int index) {
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

double to_number(PyObject* option, const char* name) { return to_number(option, name, kNoIndex); }

void refuse_option(const char* name, PyObject* value, const char* requirement) {
  refuse(Refusal::kValue, name, kNoIndex, value, requirement);
}

PyObject* OptionNames::at(size_t position, const char* name) {
  if (position < entries_.size() && entries_[position].name == name) {
    return entries_[position].interned;
  }
  entries_.resize(position);
  entries_.push_back({name, intern(name)});
  return entries_.back().interned;
}

PyObject* GroupOptions::find(const char* name) {
  PyObject* const value = find_item(group_, names_.at(position_++, name), keep_);
  if (value == nullptr) {
    throw Refusal(Refusal::kKey, "option '" + std::string(name) + "' is missing");
  }
  return value;
}

double GroupOptions::keep(double value) {
  values_.push_back({{.value = value}, {}, nullptr});
  return value;
}

bool GroupOptions::is_left(PyObject* object, const char* name, int index) {
  GroupOption option;
  if (!PyFloat_CheckExact(object) && torch_.is_tensor(object)) {
    if (const auto place = torch_.find_number(object)) {
      if (place->device.type == DeviceType::kCpu) {
        return keep(load_number(place->data, place->type)), false;
      }
      option = {{.type = place->type}, place->device, object};
    }
  }
  const bool is_left = option.tensor != nullptr && on_device_ == kLeave;
  if (!is_left) return keep(to_number(object, name, index)), false;
  option.value.value = std::numeric_limits<double>::quiet_NaN();
  values_.push_back(option);
  return true;
}

double GroupOptions::number(const char* name) { return keep(to_number(find(name), name)); }

double GroupOptions::non_negative(const char* name) {
  PyObject* const object = find(name);
  const double value = keep(to_number(object, name));
  if (!(value >= 0)) refuse(Refusal::kValue, name, kNoIndex, object, "at least 0");
  return value;
}

bool GroupOptions::flag(const char* name) {
  const int truth = PyObject_IsTrue(find(name));
  if (truth < 0) throw py::error_already_set();
  return keep(truth) != 0;
}

double GroupOptions::rate(const char* name) {
  // torch's LinearLR from 0.1 to 0 ends at -5e-19, and torch's optimizers carry on.
  constexpr double kRounding = 1e-12;
  PyObject* const object = find(name);
  const bool is_known = !is_left(object, name, kNoIndex);
  const double value = values_.back().value.value;
  if (is_known && !(value >= -kRounding)) {
    refuse(Refusal::kValue, name, kNoIndex, object, "at least 0");
  }
  return value;
}

double GroupOptions::below_one(const char* name, int index, int count) {
  PyObject* const object = find(name);
  PyObject* const items = to_sequence(object, keep_);
  if (items == nullptr || PySequence_Fast_GET_SIZE(items) != count) {
    refuse(items == nullptr ? Refusal::kType : Refusal::kValue, name, kNoIndex, object,
           std::to_string(count) + " numbers");
  }
  PyObject* const item = keep_.share(PySequence_Fast_GET_ITEM(items, index));
  const bool is_known = !is_left(item, name, index);
  const double value = values_.back().value.value;
  if (is_known && !(value >= 0 && value < 1)) {
    refuse(Refusal::kValue, name, index, item, "at least 0 and below 1");
  }
  return value;
}

}  // namespace fusedopt
