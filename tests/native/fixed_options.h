// One value for every option of every rule, away from its default.
#pragma once

#include <cstring>

namespace fusedopt {

struct FixedOptions {
  bool on;

  double number(const char*) { return 0.3; }
  double rate(const char*) { return 0.3; }
  double non_negative(const char* name) { return std::strcmp(name, "states") ? 0.3 : on * 3; }
  double below_one(const char*, int index, int) { return index ? 0.95 : 0.8; }
  bool flag(const char*) { return on; }
};

}  // namespace fusedopt
