#include "cpu/threads.h"

#include <omp.h>
#include <pthread.h>

#include "core/ieee_environment.h"

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#define FUSEDOPT_UNCHECKED __attribute__((no_sanitize("thread")))
#else
#define FUSEDOPT_UNCHECKED
#endif

namespace fusedopt::cpu {
namespace {

bool is_forked_child = false;

[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });

// Tells ThreadSanitizer, which cannot see into libgomp, what the fork and the join of a parallel
// region order. Two places, so that one part is not ordered behind another.
class Region {
 public:
#if defined(__SANITIZE_THREAD__)
  void fork() { __tsan_release(&forked_); }   // by the caller
  void begin() { __tsan_acquire(&forked_); }  // by each thread
  void end() { __tsan_release(&joined_); }    // by each thread
  void join() { __tsan_acquire(&joined_); }   // by the caller

 private:
  char forked_ = 0, joined_ = 0;
#else
  void fork() {}
  void begin() {}
  void end() {}
  void join() {}
#endif
};

void run_part(int part, const std::function<void(int)>& work) {
  const IeeeEnvironment environment;
  work(part);
}

}  // namespace

// What gcc makes of the region reads the caller's stack before `begin`: not ThreadSanitizer's
// business here. Everything that `work` does is.
FUSEDOPT_UNCHECKED void run_parts(int parts, const std::function<void(int)>& work) {
  if (parts == 1 || is_forked_child) {
    for (int part = 0; part < parts; ++part) run_part(part, work);
    return;
  }
  Region region;
  region.fork();
#pragma omp parallel num_threads(parts)
  {
    region.begin();
    // OpenMP may give fewer threads than asked for; every part is done all the same.
    for (int part = omp_get_thread_num(); part < parts; part += omp_get_num_threads()) {
      run_part(part, work);
    }
    region.end();
  }
  region.join();
}

}  // namespace fusedopt::cpu
