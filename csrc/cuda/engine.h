// The engine for tensors in the memory of NVIDIA GPUs.
#pragma once

#include "core/engine.h"

namespace fusedopt {

Engine& cuda_engine();

}  // namespace fusedopt
