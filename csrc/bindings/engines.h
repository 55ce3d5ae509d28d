// Which engine serves which device.
#pragma once

#include "bindings/python.h"
#include "core/engine.h"

namespace fusedopt {

// The name of a capsule that holds an Engine*, of this version only: the two sides of it are built
// from the same headers.
constexpr const char* kEngineCapsule = "fusedopt.Engine " FUSEDOPT_VERSION;

// Throws Refusal if there is none. The first tensor on a GPU loads the module fusedopt._cuda.
Engine& engine_for(const Device& device);

// Loads fusedopt._cuda; throws Refusal if it was not built.
Engine& cuda_engine_of_module();

// Has tensors on the CPU stepped by another engine; None: by the usual one. For tests.
void use_engine_on_cpu(const py::object& capsule);

}  // namespace fusedopt
