// What the launch that measures tensors needs to know of them, as a kernel's parameter.
#pragma once

#include "core/decision.h"
#include "cuda/table.h"

namespace fusedopt::cuda {

constexpr unsigned kSquareThreads = kSquareLanes;
// With 16 numbers of each thread on their way that is 64 KB of a multiprocessor's reads.
constexpr unsigned kSquareBlocksPerMultiprocessor = 16;
// A tensor, whose blocks are the chunks.
struct SquareEntry {
  const std::byte* data;
  int64_t numel;
  uint32_t first_chunk;
  uint32_t walk;  // offset of the numbers of a Walk
  uint32_t sum;
  uint8_t format;
  bool in_double;     // the type in which it is divided
  uint8_t dim_count;  // of the dimensions to walk; 0: one run
  uint8_t unused = 0;
};

struct SquareHeader : LaunchHeader {
  const float* grad_scale;
  const float* found_inf;
  int64_t* sums;       // the numbers of one ExactSum after the other
  Decision* decision;  // of the first sum, which is zero again afterwards; null: there is none
  ClipOptions options;
};

template <unsigned size>
using SquareTable = Table<size, SquareHeader>;

}  // namespace fusedopt::cuda
