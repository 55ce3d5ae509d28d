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

// Reads a byte of every cache line of tensors without gaps, and nothing more: the floor of the time
// that summing takes.
void touch_lines(const SquareList& list, int max_threads);

}  // namespace fusedopt::cpu
