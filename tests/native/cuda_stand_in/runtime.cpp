#include "runtime.h"

#include <mutex>
#include <utility>

#include "graphs.h"
#include "operations.h"

namespace fusedopt::stand_in {
namespace {

std::mutex mutex;

bool is_to_fail(const char* name) {
  Failure& failure = records().failure;
  const bool is_meant = failure.name.empty() || failure.name == name;
  return is_meant && failure.n > 0 && --failure.n == 0;
}

}  // namespace

ThreadState& this_thread() {
  thread_local ThreadState state;
  return state;
}

Records& records() {
  static Records records;
  return records;
}

void with_lock(const std::function<void()>& body) {
  const std::lock_guard lock(mutex);
  body();
}

cudaError_t violation(const std::string& what, cudaError_t error) {
  records().violations.push_back(what);
  return error;
}

cudaError_t call(const char* name, const std::function<cudaError_t()>& body) {
  ThreadState& thread = this_thread();
  if (!thread.may_call) {  // whoever waits for this thread holds the lock
    return violation(std::string(name) + " in the destructor of a user object",
                     cudaErrorNotPermitted);
  }
  const std::lock_guard lock(mutex);
  scheduler().run_by_chance();
  if (scheduler().policy() == Policy::kRandom && scheduler().is_heads(0.2)) destroy_user_objects();
  const cudaError_t result = is_to_fail(name) ? records().failure.error : body();
  if (scheduler().policy() == Policy::kAtOnce) scheduler().run_all();
  records().calls.push_back({name, result});
  if (result != cudaSuccess) thread.last_error = result;
  return result;
}

}  // namespace fusedopt::stand_in

using namespace fusedopt::stand_in;

cudaError_t cudaGetLastError() { return std::exchange(this_thread().last_error, cudaSuccess); }

cudaError_t cudaPeekAtLastError() { return this_thread().last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define FUSEDOPT_NAME(code) \
  case code: return #code
    FUSEDOPT_NAME(cudaSuccess);
    FUSEDOPT_NAME(cudaErrorInvalidValue);
    FUSEDOPT_NAME(cudaErrorMemoryAllocation);
    FUSEDOPT_NAME(cudaErrorInvalidDevice);
    FUSEDOPT_NAME(cudaErrorInvalidDeviceFunction);
    FUSEDOPT_NAME(cudaErrorInvalidConfiguration);
    FUSEDOPT_NAME(cudaErrorInvalidResourceHandle);
    FUSEDOPT_NAME(cudaErrorNotReady);
    FUSEDOPT_NAME(cudaErrorNotPermitted);
    FUSEDOPT_NAME(cudaErrorNotSupported);
    FUSEDOPT_NAME(cudaErrorLaunchFailure);
    FUSEDOPT_NAME(cudaErrorStreamCaptureUnsupported);
    FUSEDOPT_NAME(cudaErrorStreamCaptureInvalidated);
    FUSEDOPT_NAME(cudaErrorStreamCaptureMerge);
    FUSEDOPT_NAME(cudaErrorStreamCaptureUnmatched);
    FUSEDOPT_NAME(cudaErrorStreamCaptureUnjoined);
    FUSEDOPT_NAME(cudaErrorStreamCaptureIsolation);
    FUSEDOPT_NAME(cudaErrorStreamCaptureImplicit);
    FUSEDOPT_NAME(cudaErrorCapturedEvent);
    FUSEDOPT_NAME(cudaErrorStreamCaptureWrongThread);
#undef FUSEDOPT_NAME
    default: return "cudaErrorUnknown";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the stand-in";
}

cudaError_t cudaGetDeviceCount(int* count) {
  return call("cudaGetDeviceCount", [&] {
    *count = records().device_count;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return call("cudaGetDevice", [&] {
    *device = this_thread().device;
    return cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return call("cudaSetDevice", [&] {
    if (device < 0 || device >= records().device_count) return cudaErrorInvalidDevice;
    this_thread().device = device;
    return cudaSuccess;
  });
}
