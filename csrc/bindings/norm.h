// Sums of squares of any tensors, for fusedopt.get_total_norm.
#pragma once

#include "bindings/torch_tensors.h"

namespace fusedopt {

void define_norm(py::module_& m, const TorchTensors& torch);

}  // namespace fusedopt
