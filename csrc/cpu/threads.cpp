#include "cpu/threads.h"

#include <omp.h>
#include <pthread.h>

#include "core/ieee_environment.h"

namespace fusedopt::cpu {
namespace {

bool is_forked_child = false;

[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });

void run_part(int part, const std::function<void(int)>& work) {
  const IeeeEnvironment environment;
  work(part);
}

}  // namespace

void run_parts(int parts, const std::function<void(int)>& work) {
  if (parts == 1 || is_forked_child) {
    for (int part = 0; part < parts; ++part) run_part(part, work);
    return;
  }
#pragma omp parallel num_threads(parts)
  {
    // OpenMP may give fewer threads than asked for; every part is done all the same.
    for (int part = omp_get_thread_num(); part < parts; part += omp_get_num_threads()) {
      run_part(part, work);
    }
  }
}

}  // namespace fusedopt::cpu
