// Why a step cannot be done. Thrown before anything is written; the bindings turn it into the
// Python exception that torch would raise and add where in the parameter groups it happened.
#pragma once

#include <stdexcept>
#include <string>

namespace fusedopt {

struct Refusal : std::runtime_error {
  enum Kind { kValue, kType, kKey, kRuntime, kNotImplemented, kAssertion };

  Refusal(Kind kind, const std::string& message) : std::runtime_error(message), kind(kind) {}

  Kind kind;
};

}  // namespace fusedopt
