// CUDA's errors as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fusedopt::cuda {

[[noreturn]] inline void fail(cudaError_t error, const std::string& what) {
  (void)cudaGetLastError();  // forget it, if it is one that can be forgotten
  throw std::runtime_error("CUDA: " + std::string(cudaGetErrorString(error)) + " (" +
                           cudaGetErrorName(error) + ") " + what);
}

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(error, what);
}

// For a call that nothing depends on: whoever asks for the last error later does not find its.
inline void ignore(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
}

}  // namespace fusedopt::cuda
