// Whole tensors between numbers and a format, outside of any step: for checkpoints and export.
#pragma once

#include "bindings/torch_tensors.h"

namespace fusedopt {

void define_conversion(py::module_& m, const TorchTensors& torch);

}  // namespace fusedopt
