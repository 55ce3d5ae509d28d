#include "cpu/memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>

#include "core/address_space.h"

namespace fusedopt::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Where smaller memory comes from, a heap that others use too, is not ours to advise on.
constexpr size_t kLarge = 4 * kHugePage;

// What OpenMP's runtime allocates for a region beside the stacks.
constexpr size_t kOfRuntime = size_t{1} << 20;

size_t stack_size() {
  pthread_attr_t attributes;
  size_t size = size_t{8} << 20;
  if (pthread_attr_init(&attributes) != 0) return size;
  pthread_attr_getstacksize(&attributes, &size);
  pthread_attr_destroy(&attributes);
  return size;
}

bool huge_pages_are_wanted = false;

// The largest region that this thread has begun; OpenMP keeps its threads.
thread_local int most_threads = 1;

}  // namespace

void advise_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t size) {
#if defined(MADV_HUGEPAGE)
  if (size < kLarge || !huge_pages_are_wanted) return;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + size) / kHugePage * kHugePage;
  (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

void use_huge_pages(bool wanted) { huge_pages_are_wanted = wanted; }

bool can_start_threads(int threads) {
  if (threads <= most_threads) return true;
  const auto added = static_cast<size_t>(threads - most_threads);
  if (!AddressSpace(added * stack_size() + kOfRuntime).is_there()) return false;
  most_threads = threads;
  return true;
}

}  // namespace fusedopt::cpu
