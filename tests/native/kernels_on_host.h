// The body of the CUDA kernels, compiled for the host: what an address that is launched leads to
// where there is no GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "cuda/kernels.h"

namespace fusedopt {

struct HostKernel {
  const char* rule;  // or "squares", of the measuring pass
  const char* kind;  // of the launch: small, large, any, double
  size_t parameter_size;
  unsigned threads;  // of a block
  // Runs the blocks, one after the other, with a Table of that size.
  void (*run)(const void* parameter, std::span<const uint32_t> blocks);
};

// Those of the measuring pass.
std::span<const HostKernel> square_kernels();

// The kernel at an address that cuda::kernel_of or cuda::square_kernel_of has given, or null.
const HostKernel* find_host_kernel(const void* address);

}  // namespace fusedopt
