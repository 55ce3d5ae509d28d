#include "launches.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include "cuda/square_table.h"
#include "device_memory.h"
#include "runtime.h"
#include "streams.h"

namespace fusedopt::stand_in {
namespace {

using cuda::LaunchHeader;

const LaunchHeader& header_of(const Launch& launch) {
  return *reinterpret_cast<const LaunchHeader*>(launch.parameter.data());
}

// Whether a kernel on a device may touch a run of elements. Memory that is no allocation is the
// host's own, which the tests use for tensors, too.
bool may_touch(const Elements& elements, const std::byte* begin, size_t size, int device) {
  const Allocation* const allocation = find_allocation(begin, 1);
  if (allocation == nullptr) return true;
  return !allocation->is_pinned && allocation->device == device &&
         begin + size <= allocation->end() &&
         (!elements.is_read || allocation->holds_only_written(begin, size));
}

// Whether a launch finds what it needs.
bool check_memory(const Launch& launch) {
  bool is_all_fine = true;
  for (const Elements& elements : launch.footprint.elements) {
    bool is_fine = true;
    elements.for_each_run([&](const std::byte* begin, size_t size) {
      is_fine = is_fine && may_touch(elements, begin, size, launch.device);
    });
    if (is_fine) continue;
    is_all_fine = false;
    (void)violation(
        "a launch touches memory of another device, or that was never written, or beyond its "
        "end: " +
        std::string(elements.name));
  }
  return is_all_fine;
}

// Whether a number is there and not 0.
template <class Number>
bool is_set(const Number* number) {
  return number != nullptr && *reinterpret_cast<const Number*>(on_host(number)) != 0;
}

bool is_skipped(const Footprint& footprint) {
  return is_set(footprint.found_inf) || is_set(footprint.is_skipped);
}

void mark_written(const Launch& launch) {
  if (is_skipped(launch.footprint)) return;
  for (const Elements& elements : launch.footprint.elements) {
    if (!elements.is_written) continue;
    elements.for_each_run([](const std::byte* begin, size_t size) {
      Allocation* const allocation = find_allocation(begin, size);
      if (allocation != nullptr) allocation->mark_written(begin, size);
    });
  }
}

void run_on_host(const Launch& launch) {
  std::vector<uint32_t> order(launch.blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), scheduler().generator());
  const OpenDevice open(launch.device);
  launch.kernel->run(launch.parameter.data(), order);
}

// The numbers that a launch which measures adds to.
std::span<int64_t> sums_of(const Launch& launch) {
  const size_t count = launch.footprint.sums * ExactSum::kNumbers;
  if (count == 0) return {};
  return {reinterpret_cast<const cuda::SquareHeader&>(header_of(launch)).sums, count};
}

// Whether counters and sums are as they are between launches.
bool are_clear(const Launch& launch) {
  const void* const arrivals = header_of(launch).arrivals;
  if (arrivals != nullptr && *reinterpret_cast<const uint32_t*>(on_host(arrivals)) != 0) {
    return false;
  }
  if (!launch.footprint.decides) return true;
  const auto* const sums = reinterpret_cast<const int64_t*>(on_host(sums_of(launch).data()));
  return std::all_of(sums, sums + sums_of(launch).size(), [](int64_t n) { return n == 0; });
}

void run(const Launch& launch) {
  if (!check_memory(launch)) return;
  if (!are_clear(launch)) (void)violation("a launch finds blocks that have arrived");
  launches_done() += 1;
  if (executor()) {
    executor()(launch);
  } else {
    run_on_host(launch);
  }
  mark_written(launch);
  if (!are_clear(launch)) (void)violation("blocks that arrived were not counted out");
}

// What the kernel gets from the engine itself.
void add_launch_memory(Launch& launch) {
  auto& elements = launch.footprint.elements;
  const LaunchHeader& header = header_of(launch);
  if (header.overflow != nullptr) {
    const auto size = static_cast<int64_t>(launch.footprint.table_size);
    elements.push_back({"the table", header.overflow, 1, {{size, 1}}, true, false});
  }
  if (header.arrivals != nullptr) {
    const auto* const arrivals = reinterpret_cast<const std::byte*>(header.arrivals);
    elements.push_back({"the arrivals", arrivals, sizeof(uint32_t), {{1, 1}}, true, true});
  }
  if (const std::span<int64_t> sums = sums_of(launch); !sums.empty()) {
    const auto* const numbers = reinterpret_cast<const std::byte*>(sums.data());
    const auto count = static_cast<int64_t>(sums.size());
    elements.push_back({"the sums", numbers, sizeof(int64_t), {{count, 1}}, true, true});
  }
}

cudaError_t launch_kernel(const HostKernel& kernel, dim3 grid, dim3 block, const void* parameter,
                          CUstream_st& stream) {
  if (stream.device != this_thread().device) return cudaErrorInvalidResourceHandle;
  const bool is_flat = grid.y == 1 && grid.z == 1 && block.y == 1 && block.z == 1;
  if (!is_flat || grid.x == 0 || block.x != kernel.threads) return cudaErrorInvalidConfiguration;
  auto launch = std::make_shared<Launch>(
      Launch{&kernel,
             std::vector<uint64_t>(kernel.parameter_size / sizeof(uint64_t)),
             grid.x,
             block.x,
             stream.device,
             {}});
  std::memcpy(launch->parameter.data(), parameter, kernel.parameter_size);
  if (announced().empty()) return violation("a launch that is none of a round");
  launch->footprint = std::move(announced().front());
  announced().pop_front();
  add_launch_memory(*launch);
  return submit(stream, [launch] { run(*launch); });
}

}  // namespace

Executor& executor() {
  static Executor executor;
  return executor;
}

std::deque<Footprint>& announced() {
  thread_local std::deque<Footprint> footprints;
  return footprints;
}

unsigned& launches_done() {
  static unsigned count = 0;
  return count;
}

}  // namespace fusedopt::stand_in

using namespace fusedopt::stand_in;

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                             size_t shared_memory, cudaStream_t handle) {
  return call("cudaLaunchKernel", [&]() -> cudaError_t {
    CUstream_st* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    const auto* const kernel = fusedopt::find_host_kernel(function);
    if (kernel == nullptr || shared_memory != 0) return cudaErrorInvalidDeviceFunction;
    return launch_kernel(*kernel, grid, block, arguments[0], *stream);
  });
}
