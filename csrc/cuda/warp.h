// A warp: 32 threads that do a piece of work together, in phases. On a GPU each of them does the
// part of one lane. On the host one thread does the parts of all lanes, phase by phase.
#pragma once

#include <cstdint>

#include "cuda/tuning.h"
#include "rules/math.h"

// A GPU's compiler inlines it, because arrays of registers cannot be handed on; the host's is free.
#if defined(__CUDACC__)
#define FUSEDOPT_GROUP_FN FUSEDOPT_FN
#else
#define FUSEDOPT_GROUP_FN inline
#endif

namespace fusedopt::cuda {

// What every lane has of its own from phase to phase: registers, on a GPU.
template <class State>
class PerLane {
 public:
#if defined(__CUDA_ARCH__)
  FUSEDOPT_GROUP_FN State& of(unsigned) { return state_; }
  FUSEDOPT_GROUP_FN const State& of(unsigned) const { return state_; }

 private:
  State state_;
#else
  FUSEDOPT_GROUP_FN State& of(unsigned lane) { return states_[lane]; }
  FUSEDOPT_GROUP_FN const State& of(unsigned lane) const { return states_[lane]; }

 private:
  State states_[kWarpSize];
#endif
};

// Whether a thread does something of what its warp does.
FUSEDOPT_GROUP_FN bool works_for_its_warp(unsigned thread) {
#if defined(__CUDA_ARCH__)
  return true;
#else
  return thread % kWarpSize == 0;
#endif
}

class Warp {
 public:
  // That of a thread of a block.
  FUSEDOPT_GROUP_FN explicit Warp(unsigned thread) : lane_(thread % kWarpSize) {}

  // One phase: calls work(lane) for all lanes.
  template <class Work>
  FUSEDOPT_GROUP_FN void run(Work work) const {
#if defined(__CUDA_ARCH__)
    work(lane_);
#else
    for (unsigned lane = 0; lane < kWarpSize; ++lane) work(lane);
#endif
  }

  // Between phases of which one writes what another lane touches in the other.
  FUSEDOPT_GROUP_FN void synchronize() const {
#if defined(__CUDA_ARCH__)
    __syncwarp();
#endif
  }

  // The largest of the numbers of all lanes, none of which is negative.
  FUSEDOPT_GROUP_FN int32_t largest(const PerLane<int32_t>& numbers) const {
#if defined(__CUDA_ARCH__)
    return __reduce_max_sync(0xffffffff, numbers.of(lane_));
#else
    int32_t result = 0;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      result = numbers.of(lane) > result ? numbers.of(lane) : result;
    }
    return result;
#endif
  }

 private:
  unsigned lane_;
};

}  // namespace fusedopt::cuda
