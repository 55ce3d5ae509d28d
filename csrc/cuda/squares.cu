#include "cuda/squares.h"

#include "cuda/kernels.h"

namespace fusedopt::cuda {

template <unsigned size>
__global__ void __launch_bounds__(kSquareThreads, kSquareBlocksPerMultiprocessor)
    square_kernel(const __grid_constant__ SquareTable<size> table) {
  const SquareBlock<size> block(table, blockIdx.x);
  __shared__ SharedSquares shared;
  block.sum_lane(threadIdx.x, shared);
  __syncthreads();
  for (unsigned half = kSquareLanes / 2; half > 0; half /= 2) {
    block.add_half(threadIdx.x, half, shared);
    __syncthreads();
  }
  block.add_block(threadIdx.x, shared);
  __syncthreads();
  if (!shared.is_last) return;
  block.take_total(threadIdx.x, shared);
  __syncthreads();
  block.decide(threadIdx.x, shared);
}

const void* square_kernel_of(bool has_large_table) {
  return has_large_table ? reinterpret_cast<const void*>(&square_kernel<kLargeTable>)
                         : reinterpret_cast<const void*>(&square_kernel<kSmallTable>);
}

}  // namespace fusedopt::cuda
