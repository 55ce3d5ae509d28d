// What all functions of the stand-in share: one lock, a log of the calls, and failures on demand.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>
#include <vector>

namespace fusedopt::stand_in {

struct ThreadState {
  int device = 0;
  cudaError_t last_error = cudaSuccess;
  cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
  bool may_call = true;  // not in the destructor of a user object
};
ThreadState& this_thread();

// Carries out a function of the runtime: with the lock, in the log, unless it is to fail.
cudaError_t call(const char* name, const std::function<cudaError_t()>& body);
void with_lock(const std::function<void()>& body);

// Notes what no correct program does. Returns the error, for the caller to return.
cudaError_t violation(const std::string& what, cudaError_t error = cudaErrorInvalidValue);

struct CallRecord {
  std::string name;
  cudaError_t result;
};

// Has the n-th next call of a function, or of any if the name is empty, fail without effect. 0:
// none of them.
struct Failure {
  std::string name;
  unsigned n = 0;
  cudaError_t error = cudaErrorUnknown;
};

// Read and changed by tests while no other thread calls the runtime.
struct Records {
  std::vector<CallRecord> calls;
  std::vector<std::string> violations;
  Failure failure;
  int device_count = 2;
};
Records& records();

}  // namespace fusedopt::stand_in
