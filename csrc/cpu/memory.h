// What the CPU engine asks the operating system ahead of a step.
#pragma once

#include <cstddef>

namespace fusedopt::cpu {

// Has fresh memory of some size backed by huge pages when it is first written, where that is wanted
// and the system leaves it to the program (`madvise` in
// /sys/kernel/mm/transparent_hugepage/enabled). Fewer faults, and fewer misses of the address cache
// in every later step. Not wanted unless somebody asks: where a virtual machine's host takes back
// what is free, it takes back huge pages first, and each new one waits for the host.
void advise_huge_pages(void* memory, size_t size);
void use_huge_pages(bool wanted);

// Whether there is address space for the stacks of as many threads as a parallel region of this
// calling thread may have to start. Without it OpenMP's runtime would end the process.
bool can_start_threads(int threads);

}  // namespace fusedopt::cpu
