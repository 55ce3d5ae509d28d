// One fault of each kind that `make sanitize` looks for, to be found where it runs the tests: in
// this Python, with these suppressions. Built for a sanitizer only.
#include <pybind11/pybind11.h>

#include <limits>
#include <memory>

#include "cpu/threads.h"

namespace {

int read_behind_the_end(int size) {
  const std::unique_ptr<int[]> memory(new int[static_cast<size_t>(size)]());
  const volatile int* const elements = memory.get();
  return elements[size];
}

int overflow(int number) { return number + std::numeric_limits<int>::max(); }

// Both parts write to the same number.
int race() {
  int shared = 0;
  volatile int* const number = &shared;
  fusedopt::cpu::run_parts(2, [&](int part) noexcept {
    for (int i = 0; i < 100000; ++i) *number = *number + part;
  });
  return shared;
}

// Each part writes to its own, and the caller reads them when they are done: no fault.
int sum_of_parts() {
  int numbers[2] = {};
  fusedopt::cpu::run_parts(2, [&](int part) noexcept { numbers[part] += part + 1; });
  return numbers[0] + numbers[1];
}

}  // namespace

PYBIND11_MODULE(_planted_faults, m) {
  m.def("address", [] { return read_behind_the_end(3); });
  m.def("undefined", [] { return overflow(1); });
  m.def("thread", &race);
  m.def("none", &sum_of_parts);
}
