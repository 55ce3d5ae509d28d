// Updates in blocks that stay in the first-level cache, for operands that no kernel takes as they
// lie in memory: unusual combinations of formats, strides, new states, gradients with a scale,
// states in 8 bits. Each step of a block (gather, decode, prologue, rule, encode, scatter) is one
// pass over it, but for what the rule's kernel decodes and encodes by itself.
#pragma once

#include "core/update_list.h"
#include "cpu/kernels.h"

namespace fusedopt::cpu {

// Of one operand in one block: its elements without gaps, and as numbers of the arithmetic. Not a
// power of two long, or all operands would compete for the same places of the cache.
struct alignas(64) BlockBuffer {
  std::byte stored[kBlock * sizeof(double)];
  std::byte numbers[kBlock * sizeof(double)];
  std::byte gap[64];
};

// Updates the elements [begin, end) of one parameter, counted in the order of the update's walk.
// `buffers` has one for each operand.
void update_in_blocks(const KernelTable& isa, const UpdateList& list, const Update& update,
                      int64_t begin, int64_t end, BlockBuffer* buffers);

}  // namespace fusedopt::cpu
