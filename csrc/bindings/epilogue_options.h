// Reads the options of a parameter group that say what follows a step.
#pragma once

#include "bindings/python.h"
#include "core/epilogue.h"

namespace fusedopt {

// Throws Refusal if an option is out of bounds.
EpilogueOptions read_epilogue_options(PyObject* group, KeepAlive& keep);

}  // namespace fusedopt
