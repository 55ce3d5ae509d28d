// Parameters that are away from their values for as long as a `with` lasts, and their way back.
//
// A class in C++, because CPython up to 3.13 runs no signal handler between an __enter__ or
// __exit__ in C and the body of the `with`, and none inside them. So Ctrl-C finds the parameters
// either where they were, with nothing kept, or inside the `with`, which takes them back.
#pragma once

#include <string>

#include "bindings/python.h"

namespace fusedopt {

// What has been saved is on the optimizer from before the first parameter moves until the last one
// is back: `optimizer.__dict__["_excursion"]` is there, and only there, if parameters may be away.
class Excursion {
 public:
  // `name` is for messages. `prepare()` moves nothing and returns a list of what will be moved, as
  // tuples (parameter, its value, group index, parameter index), and a callable that moves it. In
  // that one no Python code may run once it has moved anything.
  Excursion(py::object optimizer, std::string name, py::object prepare);

  void enter();
  // Does nothing if end_excursion() has been called meanwhile.
  void leave();

 private:
  py::object optimizer_;
  std::string name_;
  py::object prepare_;
  py::object saved_;  // None, or the list on the optimizer
};

// Takes all parameters back that are away. One that cannot be does not keep the others from it;
// what was saved of it stays on the optimizer, unless it has another shape now. The first error, or
// what a signal has raised meanwhile, is thrown at the end.
void end_excursion(const py::object& optimizer);

// Adds both to the module.
void define_excursion(py::module_& module);

}  // namespace fusedopt
