// The functions of the runtime that tests call themselves.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fusedopt::stand_in {

namespace py = pybind11;

// Memory, or a handle.
using Address = uintptr_t;
inline Address address_of(const void* pointer) { return reinterpret_cast<Address>(pointer); }
inline void* pointer_to(Address address) { return reinterpret_cast<void*>(address); }

// An error is a RuntimeError with its name and that of the function.
void define_calls(py::module_& m);

}  // namespace fusedopt::stand_in
