// Brings operands that a kernel cannot take as they are through contiguous buffers, a block at a
// time: widens and narrows 16-bit elements, gathers and scatters strided ones, divides gradients by
// the scale of a gradient scaler and stores them so, and gives new states their initial value.
#pragma once

#include "core/update_list.h"
#include "cpu/kernels.h"

namespace fusedopt::cpu {

// Elements a block. All buffers of one stay in the first-level cache.
constexpr int64_t kBlock = 256;

// What one thread needs: 15 KB, which small stacks do not have.
struct alignas(64) BlockBuffers {
  std::byte gathered[kMaxOperands][kBlock * sizeof(double)];
  std::byte widened[kMaxOperands][kBlock * sizeof(float)];
};

// Updates the elements [begin, end) of one parameter, counted in the order of the update's walk.
void update_staged(const KernelTable& isa, Kernel kernel, const UpdateList& list,
                   const Update& update, int64_t begin, int64_t end, BlockBuffers& buffers);

}  // namespace fusedopt::cpu
