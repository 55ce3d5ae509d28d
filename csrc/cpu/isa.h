// Which instruction sets were built, which of them this CPU has, and which one is in use.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace fusedopt::cpu {

// Those that this CPU can run, slowest first.
const std::vector<const KernelTable*>& available_isas();

// The one in use: the fastest available, unless another was selected.
const KernelTable& selected_isa();

// Throws Refusal, naming those available, if `name` is not one of them.
void select_isa(const std::string& name);

}  // namespace fusedopt::cpu
