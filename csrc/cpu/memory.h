// What the CPU engine asks the operating system ahead of a step.
#pragma once

#include <cstddef>

namespace fusedopt::cpu {

// Has fresh memory of some size backed by huge pages when it is first written, where the system
// leaves that to the program (`madvise` in /sys/kernel/mm/transparent_hugepage/enabled). Fewer
// faults, and fewer misses of the address cache in every later step.
void advise_huge_pages(void* memory, size_t size);

// Whether there is address space for the stacks of as many threads as a parallel region of this
// calling thread may have to start. Without it OpenMP's runtime would end the process.
bool can_start_threads(int threads);

}  // namespace fusedopt::cpu
