// What C++ throws, as Python sees it.
#pragma once

#include <string>

#include "bindings/python.h"
#include "core/refusal.h"

namespace fusedopt {

// Adds to an exception of somebody else's where in the parameter groups it was raised. Python shows
// notes from 3.11 on.
void add_note(const py::error_already_set& error, const std::string& location);

void set_error(const Refusal& refusal, const std::string& location);

// Turns a Refusal into the exception that Python sees. `location` says where it happened.
template <class F, class Location>
void with_exceptions(F f, Location location) {
  try {
    f();
  } catch (const Refusal& refusal) {
    set_error(refusal, location());
    throw py::error_already_set();
  } catch (const py::error_already_set& error) {
    add_note(error, location());
    throw;
  } catch (const ForcedUnwind&) {
    wait_for_the_end();
  }
}

template <class F>
void with_exceptions(F f) {
  with_exceptions(f, [] { return std::string(); });
}

}  // namespace fusedopt
