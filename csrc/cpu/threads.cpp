#include "cpu/threads.h"

#include <omp.h>
#include <pthread.h>

#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

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

// Waking a thread costs as much as updating some ten thousand elements; measured, two threads begin
// to pay between 65 and 130 thousand. Making one takes some 30 us.
constexpr int64_t kMinElementsPerWokenThread = 32768;
constexpr int64_t kMinElementsPerNewThread = 1 << 20;

// Whether this process was forked before this library was loaded. Linux knows: the ninth field of
// /proc/self/stat has a flag for a process that was forked and has not begun another program.
bool was_forked_before() {
  constexpr unsigned long kForkNoExec = 0x40;  // PF_FORKNOEXEC of the kernel's sched.h
  std::FILE* const file = std::fopen("/proc/self/stat", "re");
  if (file == nullptr) return false;
  char text[1024];
  text[std::fread(text, 1, sizeof text - 1, file)] = '\0';
  std::fclose(file);
  // The second field is a name in parentheses, which may hold any character.
  const char* const behind_name = std::strrchr(text, ')');
  unsigned long flags = 0;
  const bool is_read = behind_name != nullptr &&
                       std::sscanf(behind_name + 1, " %*c %*d %*d %*d %*d %*d %lu", &flags) == 1;
  return is_read && (flags & kForkNoExec) != 0;
}

// Written by the only thread that a forked child has.
bool is_forked = was_forked_before();

[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { is_forked = true; });

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

void run_part(int part, PartWork work) noexcept {
  const IeeeEnvironment environment;
  work(part);
}

// What gcc makes of the region reads the caller's stack before `begin`: not ThreadSanitizer's
// business here. Everything that `work` does is.
FUSEDOPT_UNCHECKED void run_in_pool(int parts, PartWork work) noexcept {
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

void run_on_new_threads(int parts, PartWork work) noexcept {
  std::vector<std::thread> threads;
  int part = 1;
  try {
    threads.reserve(static_cast<size_t>(parts));
    for (; part < parts; ++part) threads.emplace_back(run_part, part, work);
  } catch (...) {  // no memory or no more threads: what is left is done here
  }
  run_part(0, work);
  for (; part < parts; ++part) run_part(part, work);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

void run_parts(int parts, PartWork work) noexcept {
  if (parts == 1) {
    run_part(0, work);
  } else if (is_forked) {
    run_on_new_threads(parts, work);
  } else {
    run_in_pool(parts, work);
  }
}

bool is_forked_process() { return is_forked; }

int64_t min_elements_per_thread() {
  return is_forked ? kMinElementsPerNewThread : kMinElementsPerWokenThread;
}

}  // namespace fusedopt::cpu
