#include "core/ieee_environment.h"
#include "cuda/squares.h"
#include "kernels_on_host.h"

namespace fusedopt {
namespace {

using namespace cuda;

template <unsigned size>
void run_square_blocks(const void* parameter, std::span<const uint32_t> blocks) {
  const IeeeEnvironment environment;
  const auto& table = *static_cast<const SquareTable<size>*>(parameter);
  for (uint32_t index : blocks) {
    const SquareBlock<size> block(table, index);
    SharedSquares shared{};
    const auto for_each_thread = [&](auto part) {
      for (unsigned thread = 0; thread < kSquareThreads; ++thread) part(thread);
    };
    for_each_thread([&](unsigned thread) { block.sum_lane(thread, shared); });
    for (unsigned half = kSquareLanes / 2; half > 0; half /= 2) {
      for_each_thread([&](unsigned thread) { block.add_half(thread, half, shared); });
    }
    for_each_thread([&](unsigned thread) { block.add_block(thread, shared); });
    if (!shared.is_last) continue;
    for_each_thread([&](unsigned thread) { block.take_total(thread, shared); });
    for_each_thread([&](unsigned thread) { block.decide(thread, shared); });
  }
}

template <unsigned size>
constexpr HostKernel square_kernel(const char* kind) {
  return {"squares", kind, sizeof(SquareTable<size>), kSquareThreads, &run_square_blocks<size>};
}

constexpr HostKernel kSquareKernels[] = {square_kernel<kSmallTable>("small"),
                                         square_kernel<kLargeTable>("large")};

}  // namespace

std::span<const HostKernel> square_kernels() { return kSquareKernels; }

const void* cuda::square_kernel_of(bool has_large_table) {
  return &kSquareKernels[has_large_table];
}

}  // namespace fusedopt
