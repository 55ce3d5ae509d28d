// What is measured of gradients ahead of a step.
#pragma once

#include <span>

#include "core/square_list.h"
#include "cpu/kernels.h"

namespace fusedopt::cpu {

// Adds the squares of all tensors of a list, divided by a scale unless that is null, to its sums.
// Allocates, and writes nothing else.
void sum_squares(const KernelTable& isa, SquareList& list, const float* grad_scale, int max_threads,
                 std::span<ExactSum> sums);

}  // namespace fusedopt::cpu
