// Launches of kernels: checked when they are queued and when they run.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "footprint.h"
#include "kernels_on_host.h"

namespace fusedopt::stand_in {

struct Launch {
  const HostKernel* kernel;
  std::vector<uint64_t> parameter;  // the table, as it was at the call; uint64_t for its alignment
  uint32_t blocks, threads;
  int device;
  Footprint footprint;  // the table in the device's memory and the counter of blocks as well
};

// Runs a launch instead of the host's own body of the kernel. It may throw, and is called with the
// lock: if it needs Python, only one thread may call the runtime.
using Executor = std::function<void(const Launch&)>;
Executor& executor();

// The footprints of the launches that this thread is about to queue.
std::deque<Footprint>& announced();

// How many launches have run.
unsigned& launches_done();

}  // namespace fusedopt::stand_in
