// The options of one parameter group, as a rule reads them.
#pragma once

#include <string>
#include <vector>

#include "bindings/python.h"

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

class GroupOptions {
 public:
  GroupOptions(PyObject* group, OptionNames& names) : group_(group), names_(names) {}

  // Each throws Refusal with the option's name and value if it is missing or out of bounds.
  double number(const char* name);
  double non_negative(const char* name);
  double rate(const char* name);  // not negative, but for what a scheduler's rounding leaves of 0
  double below_one(const char* name, int index);  // element of a sequence, in [0, 1)
  bool flag(const char* name);

 private:
  PyObject* find(const char* name);

  PyObject* group_;
  OptionNames& names_;
  size_t position_ = 0;
};

}  // namespace fusedopt
