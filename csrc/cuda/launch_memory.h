// Memory that a launch needs beside its parameters: a table too large for them, a counter of blocks
// that have arrived somewhere, and room for an exact sum. It is reused from step to step, once the
// GPU is done with it.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace fusedopt::cuda {

struct LaunchMemory {
  std::byte* host = nullptr;  // pinned
  std::byte* device = nullptr;
  uint32_t* arrivals = nullptr;    // on the device; 0 whenever no launch is under way
  int64_t* sum = nullptr;          // the numbers of an ExactSum, likewise
  size_t capacity = 0;             // of host and of device
  cudaEvent_t finished = nullptr;  // recorded after the launch that used it last
  std::atomic<bool> is_held = false;
};

struct GiveBack {
  void operator()(LaunchMemory* memory) const {
    memory->is_held.store(false, std::memory_order_release);
  }
};

// Held from the planning of a launch until it has been queued.
using HeldMemory = std::unique_ptr<LaunchMemory, GiveBack>;

// Memory of at least this capacity on a device, which must be the current one. It is that of an
// earlier launch that has finished; only where there is none is it allocated.
HeldMemory hold_memory(int device, size_t capacity);

// Gives memory back when what follows has been queued, or has failed to be: what is under way in
// the stream by then may use it, and nobody else does before it is done. Null stays null.
class ReuseWhenDone {
 public:
  ReuseWhenDone(HeldMemory& memory, cudaStream_t stream) : memory_(memory), stream_(stream) {}
  ~ReuseWhenDone();
  ReuseWhenDone(const ReuseWhenDone&) = delete;
  ReuseWhenDone& operator=(const ReuseWhenDone&) = delete;

 private:
  HeldMemory& memory_;
  cudaStream_t stream_;
};

// Copies the first `size` bytes of the pinned memory to the device and waits for them, whatever the
// state of any capture. If that fails, the memory is never used again.
void upload_now(HeldMemory& memory, size_t size);

// Leaves the memory to the graph that a stream is capturing, until that graph and all that was
// instantiated from it are destroyed.
void give_to_graph(HeldMemory memory, cudaStream_t stream);

}  // namespace fusedopt::cuda
