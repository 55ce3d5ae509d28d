// The threads of the CPU engine: torch's own OpenMP pool, or in a forked process new ones.
//
// OpenMP's pool of the forking thread does not survive a fork, and nobody can ask a thread whether
// it has such a stale one: it waits for ever. So a process that was forked, and has not begun
// another program since, leaves OpenMP alone.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fusedopt::cpu {

// What does the parts, by reference: it owns nothing, allocates nothing and throws nothing.
class PartWork {
 public:
  template <class Work>
  PartWork(const Work& work)
      : work_(&work),
        call_([](const void* of, int part) noexcept { (*static_cast<const Work*>(of))(part); }) {
    static_assert(std::is_nothrow_invocable_v<const Work&, int>,
                  "no exception may leave a parallel region");
  }

  void operator()(int part) const noexcept { call_(work_, part); }

 private:
  const void* work_;
  void (*call_)(const void* work, int part) noexcept;
};

// Calls work(part) for every part in [0, parts), in one parallel region, or on the calling thread
// alone where parts is 1. In a forked process the region's threads are made for it, and the calling
// thread does what is left where the system has no more threads. Each call runs with IEEE 754's
// default environment, so that no flush-to-zero mode changes a bit.
void run_parts(int parts, PartWork work) noexcept;

// Whether this process was forked, and has not begun another program since.
bool is_forked_process();

// So many elements make another thread worth its while.
int64_t min_elements_per_thread();

}  // namespace fusedopt::cpu
