// CUDA's errors as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fusedopt::cuda {

inline void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // forget it, if it is one that can be forgotten
  throw std::runtime_error("CUDA: " + std::string(cudaGetErrorString(error)) + " (" +
                           cudaGetErrorName(error) + ") " + what);
}

}  // namespace fusedopt::cuda
