// The numbers that the kernel's shape is made of, apart from the kernel.
//
// A multiprocessor of an H100 has to keep about 18 KB of reads under way to reach its share of the
// memory's bandwidth (3.35 TB/s times some 700 ns, over 132 multiprocessors). 640 resident threads
// that each read one 16-byte pack of two operands have 20 KB under way, and leave a thread the
// registers that double precision with three states takes. Rules that take fewer registers get more
// threads by themselves.
#pragma once

#include <cstdint>

#include "cuda/kernels.h"

namespace fusedopt::cuda {

constexpr unsigned kThreads = 128;
// The kernels for any formats keep eight elements of every operand in registers, so fewer threads
// have as much under way.
constexpr unsigned min_blocks_per_multiprocessor(KernelKind kind) {
  if (!takes_any_formats(kind)) return 5;
  return kind == KernelKind::kAnyFormats ? 4 : 2;
}

// The widest access of one thread. A pack has as many elements as fill it in the widest format of
// the operands.
constexpr unsigned kPackBytes = 16;

// Packs of every operand that a thread reads before it waits for the first. With few operands one
// pack each is little to have under way.
constexpr unsigned packs_at_once(unsigned operands) { return operands <= 3 ? 2 : 1; }

// A block updates so many packs of every operand. Small enough that the last blocks of a launch end
// together, large enough that finding the tensor is a small part of the block's work.
constexpr unsigned kPacksPerThread = 8;
constexpr unsigned chunk_elements(unsigned lanes) { return kThreads * kPacksPerThread * lanes; }

// In a launch for any formats, a warp updates groups of 256 elements: so many codes share a scale,
// and for so many elements the calls of 32 lanes draw random bits. A lane has the two packs of four
// elements for which its call draws.
constexpr unsigned kWarpSize = 32;
constexpr unsigned kPack = 4, kPacks = 2, kLaneElements = kPack * kPacks;
constexpr unsigned kGroup = kWarpSize * kLaneElements;

// Sizes of a table that is passed by value. A launch copies all of it, so that a small model should
// not pay for the largest that CUDA allows: 32,764 bytes from CUDA 12.1 and Volta on.
constexpr unsigned kSmallTable = 4096;
constexpr unsigned kLargeTable = 32752;
constexpr unsigned table_size(KernelKind kind) {
  return kind == KernelKind::kLarge ? kLargeTable : kSmallTable;
}

}  // namespace fusedopt::cuda
