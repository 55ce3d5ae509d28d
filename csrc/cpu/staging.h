// Brings operands that a kernel cannot take as they are through contiguous buffers on the stack, a
// block at a time: widens and narrows 16-bit elements, gathers and scatters strided ones, divides
// gradients by the scale of a gradient scaler and stores them so.
#pragma once

#include "core/update_list.h"
#include "cpu/kernels.h"

namespace fusedopt::cpu {

// Updates the elements [begin, end) of one parameter, counted in the order of the update's walk.
void update_staged(const KernelTable& isa, Kernel kernel, const UpdateList& list,
                   const Update& update, int64_t begin, int64_t end);

}  // namespace fusedopt::cpu
