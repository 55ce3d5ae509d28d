// The threads of the CPU engine: torch's own OpenMP pool.
#pragma once

#include <functional>

namespace fusedopt::cpu {

// Calls work(part) for every part in [0, parts), in one parallel region, or on the calling thread
// alone where parts is 1 or this process was forked: OpenMP's pool does not survive a fork. Each
// call runs with IEEE 754's default environment, so that no flush-to-zero mode changes a bit.
void run_parts(int parts, const std::function<void(int)>& work);

}  // namespace fusedopt::cpu
