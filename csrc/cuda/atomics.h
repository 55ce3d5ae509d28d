// What blocks that run at the same time do together.
#pragma once

#include <cstdint>

#include "rules/math.h"

namespace fusedopt::cuda {

// Counts a block in and returns how many were in before it. What the block has done before, it has
// done before any block that is counted in later does anything: the first fence keeps it ahead of
// the count (release), the second keeps what follows behind it (acquire).
FUSEDOPT_FN uint32_t arrive(uint32_t* arrivals) {
#if defined(__CUDA_ARCH__)
  __threadfence();
  const uint32_t before = atomicAdd(arrivals, 1u);
  __threadfence();
  return before;
#else
  return (*arrivals)++;
#endif
}

// Adds to an integer that other blocks add to.
FUSEDOPT_FN void add_atomically(int64_t* sum, int64_t number) {
#if defined(__CUDA_ARCH__)
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(number));
#else
  *sum += number;
#endif
}

}  // namespace fusedopt::cuda
