// The options of one parameter group, as a rule reads them.
#pragma once

#include <string>
#include <vector>

#include "bindings/torch_tensors.h"
#include "core/option.h"

namespace fusedopt {

// Names as Python strings. A rule reads its options in one order at every step, so the n-th lookup
// finds the n-th name, and no string is made or hashed after the first step.
class OptionNames {
 public:
  PyObject* at(size_t position, const char* name);

 private:
  struct Entry {
    const char* name;
    PyObject* interned;
  };
  std::vector<Entry> entries_;
};

struct GroupOption {
  OptionValue value;           // its source is found when the tensors of the step are described
  Device device;               // that holds it
  PyObject* tensor = nullptr;  // if it is not the CPU
};

// A number, or a tensor of one element. Throws Refusal with the option's name and value if it is
// neither.
double to_number(PyObject* option, const char* name);
// Throws the Refusal of a value that is out of bounds.
[[noreturn]] void refuse_option(const char* name, PyObject* value, const char* requirement);

// Reads options and keeps what it reads, so that an engine can read the same again where a tensor
// on a device holds an option.
class GroupOptions {
 public:
  // Options that a device holds are left to the engine (they read as NaN, and are not checked), or
  // else fetched, which waits for the device.
  enum OnDevice { kLeave, kFetch };

  GroupOptions(PyObject* group, OptionNames& names, const TorchTensors& torch, OnDevice on_device,
               KeepAlive& keep, std::vector<GroupOption>& values)
      : group_(group),
        names_(names),
        torch_(torch),
        on_device_(on_device),
        keep_(keep),
        values_(values) {}

  // Each throws Refusal with the option's name and value if it is missing or out of bounds.
  double number(const char* name);
  double non_negative(const char* name);
  bool flag(const char* name);

  // These may be left to a device, so no rule may choose a variant by them but shared.h.
  double rate(const char* name);  // not negative, but for what a scheduler's rounding leaves of 0
  double below_one(const char* name, int index, int count);  // one of `count`, in [0, 1)

 private:
  PyObject* find(const char* name);  // kept, because a conversion may run Python code that frees it
  double keep(double value);
  bool is_left(PyObject* object, const char* name, int index);  // keeps it as well

  PyObject* group_;
  OptionNames& names_;
  const TorchTensors& torch_;
  OnDevice on_device_;
  KeepAlive& keep_;
  std::vector<GroupOption>& values_;
  size_t position_ = 0;
};

}  // namespace fusedopt
